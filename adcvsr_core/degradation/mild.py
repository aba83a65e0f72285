"""The mild pipeline: blur, clean reduction, noise, JPEG, H.264, each at most once and by chance.

Parameters are drawn once a clip, in a fixed order, and noise once a frame. Knows nothing about the other pipelines.
Source of the idea: RealBasicVSR and Real-ESRGAN; these numbers are milder and our own. The bundled model was trained
on it, so what a seed means here must never change.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .codecs import h264_round_trip, jpeg_round_trip
from .draws import Range, require_probabilities, require_ranges, require_scale
from .filters import gaussian_blur
from .levels import to_levels
from .noise import add_noise
from .resize import downscale


@dataclass(frozen=True, kw_only=True)
class DegradationConfig:
    """What may happen to a clip, in this order: blur, downscale, noise, JPEG, H.264.

    Attributes:
        scale: HR size over LR size, a whole number; HR must be a multiple of it (neutral: 1).
        blur_probability: chance of a Gaussian blur of the HR frames (neutral: 0).
        blur_sigma: its standard deviation, in HR pixels.
        noise_probability: chance of Gaussian noise, new in every frame (neutral: 0).
        noise_sigma: its standard deviation, in levels of 255.
        noise_gray_probability: chance that the noise is the same in all three channels.
        jpeg_probability: chance that every frame is a JPEG (neutral: 0).
        jpeg_quality: Pillow's quality, 1 to 95.
        h264_probability: chance of an H.264 round trip (neutral: 0).
        h264_crf: x264's constant rate factor, 0 to 51.
        h264_presets: x264 speed presets to choose from.
    """

    scale: int = 4
    blur_probability: float = 0.0
    blur_sigma: Range = (0.2, 2.0)
    noise_probability: float = 0.0
    noise_sigma: Range = (1.0, 8.0)
    noise_gray_probability: float = 0.4
    jpeg_probability: float = 0.0
    jpeg_quality: Range = (60.0, 95.0)
    h264_probability: float = 0.0
    h264_crf: Range = (18.0, 35.0)
    h264_presets: tuple[str, ...] = ("veryfast", "medium")

    def __post_init__(self) -> None:
        require_scale(self.scale)
        require_probabilities(
            self, *(f"{name}_probability" for name in ("blur", "noise", "noise_gray", "jpeg", "h264"))
        )
        limits = {"blur_sigma": (0, 50), "noise_sigma": (0, 255), "jpeg_quality": (1, 95), "h264_crf": (0, 51)}
        require_ranges(self, limits)


def degrade_mildly(frames: Tensor, config: DegradationConfig, rng: np.random.Generator) -> np.ndarray:
    """Map HR frames [T,3,H,W] in 0..1 to LR levels [T,H/scale,W/scale,3] uint8."""
    draw = draw_mild(config, rng)
    if draw.blur_sigma:
        frames = gaussian_blur(frames, draw.blur_sigma)
    frames = downscale(frames, config.scale)
    if draw.noise_sigma:
        frames = add_noise(frames, draw.noise_sigma, draw.noise_gray, rng)
    levels = to_levels(frames.permute(0, 2, 3, 1))
    if draw.jpeg_quality:
        levels = jpeg_round_trip(levels, draw.jpeg_quality)
    if draw.h264_preset:
        levels = h264_round_trip(levels, draw.h264_crf, draw.h264_preset)
    return levels


@dataclass(frozen=True)
class MildDraw:
    """One clip's parameters; 0 or "" = this step does not happen."""

    blur_sigma: float
    noise_sigma: float
    noise_gray: bool
    jpeg_quality: int
    h264_crf: float
    h264_preset: str


def draw_mild(config: DegradationConfig, rng: np.random.Generator) -> MildDraw:
    """Draw a clip's parameters."""
    # Every number is drawn whether it is used or not, so that one probability does not shift the others.
    blur, noise, gray, jpeg, h264 = rng.random(5)
    sigma, level, quality, crf = (
        rng.uniform(*limits) for limits in (config.blur_sigma, config.noise_sigma, config.jpeg_quality, config.h264_crf)
    )
    preset = config.h264_presets[int(rng.integers(len(config.h264_presets)))]
    return MildDraw(
        blur_sigma=sigma if blur < config.blur_probability else 0.0,
        noise_sigma=level if noise < config.noise_probability else 0.0,
        noise_gray=bool(gray < config.noise_gray_probability),
        jpeg_quality=round(quality) if jpeg < config.jpeg_probability else 0,
        h264_crf=crf,
        h264_preset=preset if h264 < config.h264_probability else "",
    )
