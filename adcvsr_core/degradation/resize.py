"""Other sizes: the clean reduction of every clip, and the random resizing of the two-round pipelines.

Knows nothing about what comes before or after. Sources: Pillow's bicubic; RealBasicVSR's and Real-ESRGAN's resizing.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .draws import FrameStep, Walk, choose

MODES = ("bilinear", "area", "bicubic")
SMALLEST_EDGE = 8  # Below this no codec makes sense. It binds for crops far smaller than the papers' 256 pixels only.


@dataclass(frozen=True, kw_only=True)
class ResizeConfig:
    """A random change of size, without antialiasing, by one of `MODES` in equal shares.

    Attributes:
        shares: of larger, smaller and the same.
        factor: size after over size before.
        even: whether both edges become even.
        of_lr: whether the factor is that of the LR size instead (Real-ESRGAN's second round).
    """

    shares: tuple[float, float, float]
    factor: Walk
    even: bool = False
    of_lr: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.factor.low <= 1 <= self.factor.high:
            raise ConfigError(f"resize factors {self.factor} must reach from above 0 over 1")
        if len(self.shares) != 3 or min(self.shares) < 0 or not sum(self.shares):
            raise ConfigError(f"resize shares {self.shares} are not three shares, of larger, smaller and the same")


def resize_step(config: ResizeConfig, num_frames: int, rng: np.random.Generator, lr_size: tuple[int, int]) -> FrameStep:
    """Draw a clip's sizes and return the resizing of its frames; a factor that wanders gives frames of several sizes.

    Args:
        config: what to draw.
        num_frames: T.
        rng: where from.
        lr_size: (height, width) that the clip ends with.
    """
    larger, smaller = rng.uniform(1, config.factor.high), rng.uniform(config.factor.low, 1)
    start = (larger, smaller, 1.0)[choose(config.shares, rng)]
    mode = draw_mode(rng)
    factors = config.factor.path(num_frames, rng, start)
    grid = 2 if config.even else 1

    def step(t: int, frame: Tensor) -> Tensor:
        base = lr_size if config.of_lr else frame.shape[1:]
        size = tuple(max(int(edge * factors[t]) // grid * grid, SMALLEST_EDGE) for edge in base)
        return resize(frame, size, mode)

    return step


def draw_mode(rng: np.random.Generator) -> str:
    """Draw one of `MODES`."""
    return MODES[int(rng.integers(len(MODES)))]


def resize(frame: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize [3,H,W] to (height, width) by one of `MODES`, without antialiasing; not clamped."""
    if tuple(frame.shape[1:]) == tuple(size):
        return frame
    if mode == "bilinear":
        return _bilinear(frame, size)
    corners = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(frame[None], size=tuple(size), mode=mode, **corners)[0]


def _bilinear(frame: Tensor, size: tuple[int, int]) -> Tensor:
    # torch's own rounds differently with another number of threads.
    for dim, length in zip((1, 2), size):
        last = frame.shape[dim] - 1
        place = ((torch.arange(length, dtype=torch.float64) + 0.5) * (last + 1) / length - 0.5).clamp(0, last)
        before = place.long()
        share = (place - before).to(frame).view(-1, *[1] * (2 - dim))
        before, after = (index.to(frame.device) for index in (before, (before + 1).clamp(max=last)))
        frame = frame.index_select(dim, before) * (1 - share) + frame.index_select(dim, after) * share
    return frame


def downscale(frames: Tensor, scale: int) -> Tensor:
    """Antialiased bicubic (Pillow's kernel, a = -0.5) of [N,3,H,W] by a whole number; not clamped."""
    if scale == 1:
        return frames
    size = (frames.shape[2] // scale, frames.shape[3] // scale)
    return F.interpolate(frames, size=size, mode="bicubic", antialias=True, align_corners=False)
