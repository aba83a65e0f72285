"""Frames on the grid of 8-bit levels and back: the one place where floats become bytes. Knows nothing else."""

import numpy as np
import torch
from torch import Tensor


def to_levels(frames: Tensor) -> np.ndarray:
    """Clamp and round 0..1 to uint8: a cast without both would wrap the overshoot of a filter."""
    return frames.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous().cpu().numpy()


def frame_to_levels(frame: Tensor) -> np.ndarray:
    """Map one frame [3,H,W] in 0..1, on any device, to uint8 [H,W,3]."""
    return to_levels(frame.permute(1, 2, 0))


def frame_from_levels(levels: np.ndarray, device: torch.device) -> Tensor:
    """Map uint8 [H,W,3] to one frame [3,H,W] in 0..1."""
    return torch.from_numpy(levels).to(device).permute(2, 0, 1).float() / 255
