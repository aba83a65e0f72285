"""Checks on clips held as one tensor, with messages for the person who connected the wrong thing.

The engine checks what streams through it by itself; this is for functions that are given whole clips. Knows
nothing about networks or files.
"""

import math

import torch
from torch import Tensor

from .errors import InputError


def require_clip(frames: Tensor, name: str, *, finite: bool = True) -> Tensor:
    """Return the RGB part [T,H,W,3] of a clip [T,H,W,3 or 4], T >= 1.

    Args:
        frames: what was given.
        name: what to call it in messages.
        finite: whether NaN and infinity are refused.

    Raises:
        InputError: no such tensor, no frame, or a value that is NaN or infinite.
    """
    if not isinstance(frames, Tensor) or not frames.is_floating_point() or frames.ndim != 4:
        found = f"{frames.dtype} {list(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
        raise InputError(f"{name}: expected frames [T,H,W,3] of a floating-point type in 0..1, got {found}")
    if frames.shape[3] not in (3, 4):
        raise InputError(f"{name}: expected 3 channels, or 4 with alpha, got {frames.shape[3]}")
    if not frames.numel():
        raise InputError(f"{name} has no frames ({list(frames.shape)}); expected at least one")
    if finite:
        for index, frame in enumerate(frames):
            if not all(math.isfinite(float(v)) for v in torch.aminmax(frame)):
                raise InputError(f"{name}: frame {index} holds NaN or infinity; repair the input first")
    return frames[..., :3]


def require_equal_length(a: Tensor, b: Tensor, name_a: str, name_b: str) -> None:
    """Raise InputError unless two clips have as many frames."""
    if len(a) != len(b):
        raise InputError(f"{name_a} has {len(a)} frames and {name_b} has {len(b)}; they must be the same clip")
