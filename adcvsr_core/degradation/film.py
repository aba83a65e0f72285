"""Old film, scanned: soft and unsteady frames, faded dyes, grain, scratches, dust, flicker, interlace residue, H.264.

All lengths are LR pixels, so that a film looks the same whatever the scale. Colour stays colour: a target that no
network could guess from grey would teach it nothing. Knows nothing about the other pipelines; dirt is in `film_dirt`.
Source: our own, after looking at scans.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .codecs import h264_round_trip
from .draws import Range, require_probabilities, require_ranges, require_scale, wander
from .film_dirt import add_dust, add_scratches
from .filters import gaussian, gaussian_blur, luma
from .levels import to_levels
from .noise import normal
from .resize import downscale


@dataclass(frozen=True, kw_only=True)
class FilmConfig:
    """How old the film is. A clip draws one number from each range; (0, 0) is neutral where nothing else is said.

    Attributes:
        scale: HR size over LR size, a whole number; HR must be a multiple of it.
        softness: sigma of the lens and the copies.
        weave: standard deviation of the picture's place in the gate, each way. The HR clip does not move with it, so
            more than a fraction of a pixel would teach blur.
        contrast: what is left of it (neutral: 1).
        black: how far black has risen, in 0..1.
        saturation: what is left of it (neutral: 1).
        cast: largest change of a channel's gain; dyes fade unevenly.
        flicker: standard deviation of the exposure from frame to frame, as a share of it.
        grain: standard deviation in mid grey, in levels of 255.
        grain_size: sigma of a grain.
        grain_color: share of the grain that differs between channels, 0 to 1.
        scratches: expected number over 100 columns, at any time.
        dust: expected number of specks and hairs on 100 x 100 pixels of a frame.
        interlace_probability: chance of combs left over from fields (neutral: 0).
        interlace: how much of the other field is left in every second line, 0 to 1.
        h264_probability: chance of an H.264 round trip (neutral: 0).
        h264_crf: x264's constant rate factor, 0 to 51.
    """

    scale: int = 4
    softness: Range = (0.2, 0.8)
    weave: Range = (0.0, 0.35)
    contrast: Range = (0.7, 0.95)
    black: Range = (0.0, 0.08)
    saturation: Range = (0.45, 0.95)
    cast: Range = (0.0, 0.12)
    flicker: Range = (0.0, 0.05)
    grain: Range = (4.0, 18.0)
    grain_size: Range = (0.4, 0.9)
    grain_color: Range = (0.1, 0.5)
    scratches: Range = (0.0, 2.0)
    dust: Range = (0.0, 2.0)
    interlace_probability: float = 0.25
    interlace: Range = (0.15, 0.6)
    h264_probability: float = 0.8
    h264_crf: Range = (16.0, 28.0)

    def __post_init__(self) -> None:
        require_scale(self.scale)
        require_probabilities(self, "interlace_probability", "h264_probability")
        unit = ("contrast", "black", "saturation", "cast", "flicker", "grain_color", "interlace")
        limits = {"softness": (0, 10), "weave": (0, 10), "grain": (0, 255), "grain_size": (0, 10)}
        limits |= {"scratches": (0, 100), "dust": (0, 100), "h264_crf": (0, 51)}
        require_ranges(self, dict.fromkeys(unit, (0, 1)) | limits)


def degrade_film(frames: Tensor, config: FilmConfig, rng: np.random.Generator) -> np.ndarray:
    """Map HR frames [T,3,H,W] in 0..1 to LR levels [T,H/scale,W/scale,3] uint8."""
    optics, dyes, grain, scratches, dust, lamp, fields, codec = rng.spawn(8)
    frames = _photograph(frames, config, optics)
    frames = _fade(frames, config, dyes)
    frames = add_grain(frames, config, grain)
    frames = add_scratches(frames, scratches.uniform(*config.scratches), scratches)
    frames = add_dust(frames, dust.uniform(*config.dust), dust)
    frames = _flicker(frames, config, lamp)
    if fields.random() < config.interlace_probability:
        frames = interlace(frames, fields.uniform(*config.interlace), int(fields.integers(2)))
    levels = to_levels(frames.permute(0, 2, 3, 1))
    if codec.random() < config.h264_probability:
        levels = h264_round_trip(levels, codec.uniform(*config.h264_crf))
    return levels


def _photograph(frames: Tensor, config: FilmConfig, rng: np.random.Generator) -> Tensor:
    """Blur and shift HR frames, and reduce them."""
    softness, weave = rng.uniform(*config.softness), rng.uniform(*config.weave)
    shifts = np.stack([wander(len(frames), 0.6, rng) for _ in "xy"], axis=1) * weave * config.scale  # [T,2] HR pixels
    if softness:
        frames = gaussian_blur(frames, softness * config.scale)
    if weave:
        frames = torch.cat([shift(frame[None], *at) for frame, at in zip(frames, shifts)])
    return downscale(frames, config.scale)


def shift(frames: Tensor, x: float, y: float) -> Tensor:
    """Move [N,3,H,W] by a fraction of pixels, to the right and down; the edge is mirrored."""
    height, width = frames.shape[2:]
    move = torch.tensor([[1, 0, -2 * x / width], [0, 1, -2 * y / height]], dtype=frames.dtype, device=frames.device)
    grid = F.affine_grid(move.expand(len(frames), 2, 3), list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def _fade(frames: Tensor, config: FilmConfig, rng: np.random.Generator) -> Tensor:
    contrast, black, saturation, cast = (
        rng.uniform(*limits) for limits in (config.contrast, config.black, config.saturation, config.cast)
    )
    gains = frames.new_tensor(1 + cast * rng.uniform(-1, 1, 3))[:, None, None]
    gray = luma(frames)
    return ((gray + saturation * (frames - gray)) * contrast + black) * gains


def add_grain(frames: Tensor, config: FilmConfig, rng: np.random.Generator) -> Tensor:
    """Add grain to LR frames [T,3,h,w], new in every frame: strongest in mid grey, weaker towards black and white."""
    level, size, color = (rng.uniform(*limits) for limits in (config.grain, config.grain_size, config.grain_color))
    if not level:
        return frames
    num_frames, _, height, width = frames.shape
    deviates = normal((num_frames, 4, height, width), rng, frames.device)
    grain = (1 - color**2) ** 0.5 * deviates[:, :1] + color * deviates[:, 1:]
    if size:
        loss = gaussian(size, max(1, int(np.ceil(3 * size)))).square().sum()  # of deviation, by the blur
        grain = gaussian_blur(grain, size) / loss.to(grain)
    gray = luma(frames).clamp(0, 1)
    return frames + grain * (0.35 + 2.6 * gray * (1 - gray)) * (level / 255)


def _flicker(frames: Tensor, config: FilmConfig, rng: np.random.Generator) -> Tensor:
    """Change the exposure of every frame, and a little of its evenness over the frame."""
    deviation = rng.uniform(*config.flicker)
    num_frames, _, height, width = frames.shape
    level, tilt_x, tilt_y = (wander(num_frames, 0.3, rng) * deviation for _ in range(3))
    level, tilt_x, tilt_y = (frames.new_tensor(each)[:, None, None, None] for each in (level, tilt_x, tilt_y))
    y = torch.linspace(-0.5, 0.5, height, dtype=frames.dtype, device=frames.device)[:, None]
    x = torch.linspace(-0.5, 0.5, width, dtype=frames.dtype, device=frames.device)
    return frames * (1 + level + tilt_x * x + tilt_y * y)


def interlace(frames: Tensor, amount: float, first: int) -> Tensor:
    """Mix the next frame into every second line of [T,3,h,w], from line `first` (0 or 1); the last frame has none."""
    mixed = frames.clone()
    mixed[:-1, :, first::2] = torch.lerp(frames[:-1, :, first::2], frames[1:, :, first::2], amount)
    return mixed
