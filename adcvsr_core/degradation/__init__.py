"""Turning good frames into the kind of frames people have: seeded, reproducible, one pure function.

`degrade` is what training draws its LR clips from and what a node offers. It works on frames [T,H,W,3] in 0..1 and
knows nothing about networks or files. All randomness of a clip comes from one numpy Generator made from its seed.
Filters, sizes and noise are computed where the frames are, codecs on the CPU; devices differ by rounding only.

    mild                        blur, reduction, noise, JPEG, H.264 by chance
    realworld                   the two rounds of RealBasicVSR, DOVE and Real-ESRGAN
    film, film_dirt             old film, scanned
    generated                   what video generators make
    presets                     names and numbers
    kernels filters resize noise codecs yuv levels draws       what they are built from
"""

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, InputError
from .codecs import bits_round_trip, h264_round_trip, jpeg_round_trip
from .film import FilmConfig, degrade_film
from .generated import GeneratedConfig, degrade_generated
from .levels import to_levels
from .mild import DegradationConfig, degrade_mildly
from .presets import DEGRADATIONS, Degradation
from .realworld import RealWorldConfig, degrade_really
from .yuv import rgb_to_yuv420, yuv420_to_rgb

__all__ = [
    "DEGRADATIONS",
    "Degradation",
    "DegradationConfig",
    "FilmConfig",
    "GeneratedConfig",
    "RealWorldConfig",
    "bits_round_trip",
    "degrade",
    "h264_round_trip",
    "jpeg_round_trip",
    "rgb_to_yuv420",
    "to_levels",
    "yuv420_to_rgb",
]

_PIPELINES = {
    DegradationConfig: degrade_mildly,
    RealWorldConfig: degrade_really,
    FilmConfig: degrade_film,
    GeneratedConfig: degrade_generated,
}


def degrade(hr: Tensor, config: Degradation | str, seed: int | tuple[int, ...]) -> Tensor:
    """Degrade one clip.

    Args:
        hr: [T,H,W,3] in 0..1, T >= 1, H and W multiples of the scale.
        config: a configuration, or the name of one in `DEGRADATIONS`.
        seed: whole numbers >= 0; equal seeds and clips give equal results on one machine and one codec version.

    Returns:
        lr: [T,H/scale,W/scale,3] float32 in 0..1, on the grid of 8-bit levels, on the device of `hr`.

    Raises:
        ConfigError: an unknown name.
        InputError: a shape that does not fit.
    """
    if isinstance(config, str):
        if config not in DEGRADATIONS:
            raise ConfigError(f"unknown degradation {config!r}; expected one of {', '.join(DEGRADATIONS)}")
        config = DEGRADATIONS[config]
    if hr.ndim != 4 or hr.shape[3] != 3 or hr.shape[0] < 1:
        raise InputError(f"expected frames [T,H,W,3], got {list(hr.shape)}")
    if hr.shape[1] % config.scale or hr.shape[2] % config.scale:
        raise InputError(f"frames of {hr.shape[2]}x{hr.shape[1]} are no multiple of {config.scale}; crop them first")
    frames = hr.detach().float().permute(0, 3, 1, 2)  # [T,3,H,W]
    levels = _PIPELINES[type(config)](frames, config, np.random.default_rng(seed))
    return torch.from_numpy(levels).to(hr.device).float() / 255
