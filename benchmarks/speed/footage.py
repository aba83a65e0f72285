"""Made-up footage: soft and fine texture that drifts, the same in every run. Knows nothing about what it is for."""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from adcvsr_core.video import VideoWriter

FPS = 24
_DRIFT = 2  # pixels a frame
_SOFT = 16  # pixels of a blob
_FINE = 0.15  # amplitude of the fine texture


def moving_frames(num_frames: int, height: int, width: int, seed: int = 0) -> Iterator[Tensor]:
    """Yield frames [1,H,W,3] in 0..1, one at a time: memory does not depend on their number."""
    generator = torch.Generator().manual_seed(seed)
    wide = width + _DRIFT * min(num_frames, width)
    blobs = torch.rand(1, 3, height // _SOFT + 2, wide // _SOFT + 2, generator=generator)
    picture = F.interpolate(blobs, size=(height, wide), mode="bicubic", align_corners=False)
    picture = (picture + _FINE * torch.randn(1, 3, height, wide, generator=generator)).clamp(0, 1).permute(0, 2, 3, 1)
    for index in range(num_frames):
        left = _DRIFT * index % (wide - width + 1)
        yield picture[:, :, left : left + width].contiguous()


def write_clip(path: Path, num_frames: int, height: int, width: int, seed: int = 0) -> Path:
    """Write a video of `moving_frames` without sound; returns its path."""
    with VideoWriter(path, width=width, height=height, fps=FPS) as writer:
        for frame in moving_frames(num_frames, height, width, seed):
            writer.write(frame)
    return path
