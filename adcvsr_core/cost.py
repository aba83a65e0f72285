"""What a student costs: parameters, FLOPs per frame, temporal state. Counted, never timed.

FLOPs follow the usual convention of 2 per multiply-add and include attention. Knows nothing about files.
"""

import functools

import torch
from torch.utils.flop_counter import FlopCounterMode

from .config import WHOLE_FRAMES, StepConfig, StudentConfig
from .streaming import StreamState
from .student import Student


@functools.lru_cache(maxsize=32)
def count_parameters(config: StudentConfig) -> tuple[int, int]:
    """Return the number of all parameters and of those through which a frame sees others."""
    student = _meta_student(config)
    sizes = {name: parameter.numel() for name, parameter in student.named_parameters()}
    return sum(sizes.values()), sum(sizes[name] for name in student.temporal_names())


def count_flops(
    config: StudentConfig, height: int, width: int, temporal_strength: float = 1.0, how: StepConfig = WHOLE_FRAMES
) -> int:
    """Return the FLOPs of one LR frame of height x width (multiples of 16) in the middle of a stream."""
    student = _meta_student(config)
    state = _filled_state(student, height, width, temporal_strength)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(_meta_frames(1, height, width), state, False, temporal_strength, how)
    return counter.get_total_flops()


def state_bytes(
    config: StudentConfig, height: int, width: int, dtype: torch.dtype, *, recompute_skips: bool = False
) -> int:
    """Return the bytes a stream holds between steps at an LR size (multiples of 16), weights in `dtype`."""
    return sum(_slot_sizes(config, height, width, recompute_skips).values()) * dtype.itemsize


def window_bytes(config: StudentConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Return the part of `state_bytes` that every step makes anew: the windows of temporal convolutions."""
    sizes = _slot_sizes(config, height, width, False)
    return sum(size for name, size in sizes.items() if name.endswith((".x", ".h"))) * dtype.itemsize


@functools.lru_cache(maxsize=16)
def _slot_sizes(config: StudentConfig, height: int, width: int, recompute_skips: bool) -> dict[str, int]:
    """Return the numbers that each slot of a stream holds between steps."""
    state = _filled_state(_meta_student(config), height, width, 1.0, recompute_skips)
    return {name: sum(piece.numel() for piece in slot.pieces) for name, slot in state.slots.items()}


def _meta_student(config: StudentConfig) -> Student:
    with torch.device("meta"):
        # Training mode: the check for non-finite values needs values.
        return Student(config).train()


def _meta_frames(count: int, height: int, width: int) -> torch.Tensor:
    return torch.empty((1, count, 3, height, width), device="meta")


def _filled_state(
    student: Student, height: int, width: int, strength: float, recompute_skips: bool = False
) -> StreamState:
    state = StreamState(recompute_skips=recompute_skips)
    frames = _meta_frames(student.lookahead + 1, height, width)
    with torch.no_grad():
        student(frames, state, last=False, temporal_strength=strength)
    return state
