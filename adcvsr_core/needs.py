"""What a run will need, before it starts: RAM for a result held whole, and a device's memory for its steps.

Knows nothing about files or nodes.
"""

import torch

from .config import UpscaleConfig
from .cost import state_bytes
from .engine import RunPlan, plan_run
from .errors import InputError
from .memory import MAX_CHUNK, available_bytes, bytes_per_frame
from .student import Student

_GIB = 2**30


def step_bytes(height: int, width: int, student: Student, config: UpscaleConfig) -> int:
    """Return the estimated memory of a run on the student's device, beside the weights.

    Args:
        height, width: of the source frames, in pixels.
        student: the network; where it lies now does not matter.
        config: the run's settings; an automatic chunk counts as the largest.
    """
    plan = plan_run(height, width, student, config)
    frame = bytes_per_frame(student.config, *plan.grid.tile_size, student.dtype)
    state = state_bytes(student.config, *plan.grid.tile_size, student.dtype) if config.temporal_strength else 0
    in_turn = student.config.recurrent and config.temporal_strength
    return frame * (1 if in_turn else config.chunk or MAX_CHUNK) + state * len(plan.grid.tiles)


def require_ram(num_frames: int, height: int, width: int, channels: int, itemsize: int, advice: str) -> None:
    """Raise InputError, with both numbers and the advice, when a result held whole does not fit the free RAM.

    Args:
        num_frames, height, width, channels, itemsize: of the result.
        advice: what to do instead.
    """
    needed, free = num_frames * height * width * channels * itemsize, available_bytes(torch.device("cpu"))
    if needed > free:
        raise InputError(
            f"{num_frames} frames of {width}x{height} need {needed / _GIB:.1f} GiB of RAM and {free / _GIB:.1f} GiB "
            f"are free; {advice}"
        )


def describe_plan(plan: RunPlan, student: Student) -> str:
    """Return one line on how a run goes: sizes, steps, tiles, dtype, device."""
    sizes = " -> ".join(f"{width}x{height}" for height, width in dict.fromkeys((plan.source, plan.work, plan.target)))
    tiles = "" if len(plan.grid.tiles) == 1 else f", {len(plan.grid.tiles)} tiles"
    dtype = str(student.dtype).removeprefix("torch.")
    return f"{sizes}, {plan.chunk} frames per step{tiles}, {dtype} on {student.device}"
