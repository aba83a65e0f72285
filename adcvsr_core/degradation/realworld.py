"""Footage from the wild: two rounds of blur, resizing, noise and compression, then the LR size and ringing.

`RealWorldConfig` describes RealBasicVSR's pipeline, DOVE's copy of it and Real-ESRGAN's; their numbers are in
`presets`. Parameters are drawn once a clip and may wander from frame to frame. Only the LR side is made here: whether
a target is sharpened too is the training's business. Knows nothing about single steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from .codecs import JpegConfig, VideoConfig, bits_round_trip, draw_video, jpeg_step
from .draws import FrameStep, require_scale
from .filters import blur_step, unsharp_mask
from .kernels import BlurConfig
from .levels import frame_from_levels, frame_to_levels
from .noise import NoiseConfig, noise_step
from .resize import ResizeConfig, draw_mode, resize, resize_step

Compression = JpegConfig | VideoConfig
Clip = list[Tensor]
"""T frames [3,h,w] in about 0..1, not all of one size while a resizing wanders. Steps replace its frames in place."""


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """Blur, resizing, noise, then the compressions one after the other."""

    blur: BlurConfig
    resize: ResizeConfig
    noise: NoiseConfig
    compressions: tuple[Compression, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RealWorldConfig:
    """The whole pipeline.

    Attributes:
        rounds: first to last.
        last: a compression that trades places with the way to the LR size, 50 to 50; None = there is none.
        ringing: the blur after the way to the LR size; None = there is none.
        sharpen: whether an unsharp mask goes first (RealBasicVSR).
        scale: HR size over LR size, a whole number; HR must be a multiple of it.
    """

    rounds: tuple[RoundConfig, ...] = ()
    last: Compression | None = None
    ringing: BlurConfig | None = None
    sharpen: bool = False
    scale: int = 4

    def __post_init__(self) -> None:
        require_scale(self.scale)


def degrade_really(frames: Tensor, config: RealWorldConfig, rng: np.random.Generator) -> np.ndarray:
    """Map HR frames [T,3,H,W] in 0..1 to LR levels [T,H/scale,W/scale,3] uint8."""
    num_frames, _, height, width = frames.shape
    lr_size = (height // config.scale, width // config.scale)
    clip = [unsharp_mask(frame) if config.sharpen else frame for frame in frames]
    compress = partial(_compress, clip, hr_area=height * width)
    for round_, child in zip(config.rounds, rng.spawn(len(config.rounds))):
        blur, size, noise, *rest = child.spawn(3 + len(round_.compressions))
        _apply(clip, blur_step(round_.blur, num_frames, blur))
        _apply(clip, resize_step(round_.resize, num_frames, size, lr_size))
        _apply(clip, noise_step(round_.noise, num_frames, noise))
        for compression, compression_rng in zip(round_.compressions, rest):
            compress(compression, rng=compression_rng)
    to_lr, last, order = rng.spawn(3)
    finish: list[Callable[[], None]] = [lambda: _reduce(clip, config.ringing, lr_size, to_lr)]
    if config.last is not None:
        finish.insert(int(order.integers(2)), partial(compress, config.last, rng=last))
    for step in finish:
        step()
    return np.stack([frame_to_levels(frame) for frame in clip])


def _apply(clip: Clip, step: FrameStep) -> None:
    for t, frame in enumerate(clip):
        clip[t] = step(t, frame)


def _reduce(clip: Clip, ringing: BlurConfig | None, lr_size: tuple[int, int], rng: np.random.Generator) -> None:
    mode = draw_mode(rng)
    _apply(clip, lambda t, frame: resize(frame, lr_size, mode))
    if ringing is not None:
        _apply(clip, blur_step(ringing, len(clip), rng))


def _compress(clip: Clip, config: Compression, *, hr_area: int, rng: np.random.Generator) -> None:
    if isinstance(config, JpegConfig):
        _apply(clip, jpeg_step(config, len(clip), rng))
        return
    codec, bits = draw_video(config, hr_area, rng)
    device, size = clip[0].device, tuple(clip[0].shape[1:])
    # A video has one size: that of its first frame.
    levels = [frame_to_levels(resize(frame, size, "bilinear")) for frame in clip]
    clip[:] = [frame_from_levels(frame, device) for frame in bits_round_trip(levels, codec, bits)]
