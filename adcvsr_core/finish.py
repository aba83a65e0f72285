"""The last touches on frames that are already upscaled: detail, colour, size, grain.

Works frame by frame, so memory does not grow with the clip, on the output of any upscaler. Knows nothing about
networks: moving these settings never needs one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .color import match_color, resize, scale_detail
from .config import COLORS
from .errors import ConfigError, InputError
from .frames import require_clip, require_equal_length

_MAX_GRAIN = 64


@dataclass(frozen=True, kw_only=True)
class FinishConfig:
    """How to finish; the defaults change nothing.

    Attributes:
        detail: gain in [0, 4] on what the upscaler added over the source in the finest wavelet bands (neutral: 1).
        color: colour match to the source, "adain" | "wavelet" | "none" (neutral).
        height: final height in pixels, the width follows (neutral: 0).
        grain: standard deviation of the film grain in mid greys, in levels of 255 (neutral: 0).
        grain_size: size of a grain in pixels, at least 1.
        seed: which grain; every frame has its own.
    """

    detail: float = 1.0
    color: str = "none"
    height: int = 0
    grain: float = 0.0
    grain_size: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.detail <= 4:
            raise ConfigError(f"detail {self.detail} is outside [0, 4]")
        if self.color not in COLORS:
            raise ConfigError(f"color is {self.color!r}; expected one of {', '.join(COLORS)}")
        if self.height < 0 or not 0 <= self.grain <= _MAX_GRAIN or not 1 <= self.grain_size <= 16 or self.seed < 0:
            raise ConfigError(
                f"height {self.height} and seed {self.seed} must be >= 0, grain {self.grain} in [0, {_MAX_GRAIN}], "
                f"grain_size {self.grain_size} in [1, 16]"
            )


def finish(frames: Tensor, source: Tensor, config: FinishConfig) -> Iterator[Tensor]:
    """Finish an upscaled clip.

    Args:
        frames: [T,H,W,3 or 4] in 0..1; alpha is dropped, see `carry_alpha`.
        source: the clip before upscaling, [T,h,w,3 or 4] in 0..1.
        config: what to do.

    Yields:
        [1,H',W',3] float32 on the CPU in 0..1, T times.

    Raises:
        InputError: clips that do not fit each other, or hold NaN.
    """
    frames, source = require_clip(frames, "the upscaled clip"), require_clip(source, "the source")
    require_equal_length(frames, source, "the upscaled clip", "the source")
    _check_aspect(frames, source)
    return (_finish_frame(frames[i : i + 1], source[i : i + 1], config, i) for i in range(len(frames)))


def carry_alpha(pieces: Iterable[Tensor], source: Tensor) -> Iterator[Tensor]:
    """Give finished frames [t,H,W,3] the alpha of their source frames [T,h,w,4], resized by bicubic.

    A source of three channels passes the frames through.
    """
    first = 0
    for piece in pieces:
        if source.shape[3] == 4:
            alpha = source[first : first + len(piece), ..., 3:].permute(0, 3, 1, 2).to(piece)
            alpha = resize(alpha, *piece.shape[1:3]).clamp(0, 1).permute(0, 2, 3, 1)
            first += len(piece)
            piece = torch.cat((piece, alpha), dim=3)
        yield piece


@torch.no_grad()
def _finish_frame(frame: Tensor, source: Tensor, config: FinishConfig, index: int) -> Tensor:
    """Finish one frame [1,H,W,3]; `index` chooses its grain."""
    sr, lr = (each.detach().to("cpu", torch.float32).permute(0, 3, 1, 2) * 2 - 1 for each in (frame, source))
    sr = scale_detail(match_color(sr, lr, config.color), lr, config.detail)
    if config.height:
        # Even, because most video formats store colour at half the size.
        sr = resize(sr, config.height, max(2, 2 * round(sr.shape[3] * config.height / sr.shape[2] / 2)))
    finished = ((sr + 1) / 2).clamp(0, 1)
    if config.grain:
        finished = _add_grain(finished, config, index)
    return finished.permute(0, 2, 3, 1).contiguous()


def _add_grain(frame: Tensor, config: FinishConfig, index: int) -> Tensor:
    """Add grain to [1,3,H,W] in 0..1: the same in all channels, strongest in mid greys, none in black and white."""
    generator = torch.Generator().manual_seed((config.seed * 1_000_003 + index) % 2**63)
    height, width = frame.shape[2:]
    coarse = max(2, round(height / config.grain_size)), max(2, round(width / config.grain_size))
    noise = resize(torch.randn((1, 1, *coarse), generator=generator), height, width)
    noise = noise / noise.std().clamp(min=1e-6)
    brightness = frame.mean(dim=1, keepdim=True)
    return (frame + noise * 4 * brightness * (1 - brightness) * config.grain / 255).clamp(0, 1)


def _check_aspect(frames: Tensor, source: Tensor) -> None:
    (height, width), (h, w) = frames.shape[1:3], source.shape[1:3]
    # One pixel of the source is the rounding that an upscaler may do.
    if abs(width * h - height * w) > max(height, width):
        raise InputError(f"{width}x{height} is not a larger version of {w}x{h}; connect the matching source")
