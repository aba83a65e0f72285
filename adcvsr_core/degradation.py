"""Turning good frames into the kind of frames people have: seeded, reproducible, one pure function.

`degrade` is what training draws its LR clips from and what a node can offer for previews. It works on frames
[T,H,W,3] in 0..1 on the CPU and knows nothing about networks or files. All randomness of a clip comes from one
numpy Generator made from its seed: parameters are drawn once per clip, in a fixed order, and noise once per frame.
Source of the idea: the RealBasicVSR and Real-ESRGAN pipelines; these numbers are milder and our own.
"""

import io
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import ConfigError, InputError

Range = tuple[float, float]


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
        if self.scale < 1:
            raise ConfigError(f"scale {self.scale} is below 1")
        for name in ("blur", "noise", "noise_gray", "jpeg", "h264"):
            value = getattr(self, f"{name}_probability")
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}_probability {value} is outside [0, 1]")
        for name, low, high in (
            ("blur_sigma", 0, 50),
            ("noise_sigma", 0, 255),
            ("jpeg_quality", 1, 95),
            ("h264_crf", 0, 51),
        ):
            start, stop = getattr(self, name)
            if not low <= start <= stop <= high:
                raise ConfigError(f"{name} ({start}, {stop}) is not an increasing range inside [{low}, {high}]")


DEGRADATIONS: dict[str, DegradationConfig] = {
    "clean": DegradationConfig(),
    "light": DegradationConfig(
        blur_probability=0.7, blur_sigma=(0.4, 2.4), noise_probability=0.6, jpeg_probability=0.6
    ),
    "h264": DegradationConfig(h264_probability=1.0),
    "noise10": DegradationConfig(noise_probability=1.0, noise_sigma=(10.0, 10.0)),
    "h264_crf30": DegradationConfig(h264_probability=1.0, h264_crf=(30.0, 30.0), h264_presets=("medium",)),
}


def degrade(hr: Tensor, config: DegradationConfig | str, seed: int | tuple[int, ...]) -> Tensor:
    """Degrade one clip.

    Args:
        hr: [T,H,W,3] in 0..1, T >= 1, H and W multiples of the scale.
        config: a configuration, or the name of one in `DEGRADATIONS`.
        seed: whole numbers >= 0; equal seeds and clips give equal results on one machine and one codec version.

    Returns:
        lr: [T,H/scale,W/scale,3] float32 in 0..1, on the grid of 8-bit levels.

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
    rng = np.random.default_rng(seed)
    draw = _draw(config, rng)
    frames = hr.detach().float().cpu().permute(0, 3, 1, 2)  # [T,3,H,W]
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
    return torch.from_numpy(levels).float() / 255


@dataclass(frozen=True)
class _Draw:
    """One clip's parameters; 0 or "" = this step does not happen."""

    blur_sigma: float
    noise_sigma: float
    noise_gray: bool
    jpeg_quality: int
    h264_crf: float
    h264_preset: str


def _draw(config: DegradationConfig, rng: np.random.Generator) -> _Draw:
    # Every number is drawn whether it is used or not, so that one probability does not shift the others.
    blur, noise, gray, jpeg, h264 = rng.random(5)
    sigma, level, quality, crf = (
        rng.uniform(*limits) for limits in (config.blur_sigma, config.noise_sigma, config.jpeg_quality, config.h264_crf)
    )
    preset = config.h264_presets[int(rng.integers(len(config.h264_presets)))]
    return _Draw(
        blur_sigma=sigma if blur < config.blur_probability else 0.0,
        noise_sigma=level if noise < config.noise_probability else 0.0,
        noise_gray=bool(gray < config.noise_gray_probability),
        jpeg_quality=round(quality) if jpeg < config.jpeg_probability else 0,
        h264_crf=crf,
        h264_preset=preset if h264 < config.h264_probability else "",
    )


def to_levels(frames: Tensor) -> np.ndarray:
    """Clamp and round 0..1 to uint8: a cast without both would wrap the overshoot of a bicubic filter."""
    return frames.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous().numpy()


def downscale(frames: Tensor, scale: int) -> Tensor:
    """Antialiased bicubic (Pillow's kernel, a = -0.5) of [N,3,H,W] by a whole number; not clamped."""
    if scale == 1:
        return frames
    size = (frames.shape[2] // scale, frames.shape[3] // scale)
    return F.interpolate(frames, size=size, mode="bicubic", antialias=True, align_corners=False)


def gaussian_blur(frames: Tensor, sigma: float) -> Tensor:
    """Blur [N,3,H,W] by a Gaussian of `sigma` pixels; the edge repeats."""
    radius = max(1, int(np.ceil(3 * sigma)))
    positions = torch.arange(-radius, radius + 1, dtype=frames.dtype)
    kernel = torch.exp(-0.5 * (positions / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1, 1)  # [3,1,1,K]
    frames = F.pad(frames, (radius, radius, radius, radius), mode="replicate")
    frames = F.conv2d(frames, kernel, groups=3)
    return F.conv2d(frames, kernel.transpose(2, 3), groups=3)


def add_noise(frames: Tensor, sigma: float, gray: bool, rng: np.random.Generator) -> Tensor:
    """Add Gaussian noise of `sigma` levels of 255 to [N,3,H,W] in 0..1, independent in every frame."""
    shape = (frames.shape[0], 1 if gray else 3, *frames.shape[2:])
    return frames + torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) * (sigma / 255)


def jpeg_round_trip(levels: np.ndarray, quality: int) -> np.ndarray:
    """Encode and decode every frame of [T,H,W,3] uint8 as a JPEG (4:2:0)."""
    return np.stack([_jpeg_frame(frame, quality) for frame in levels])


def _jpeg_frame(frame: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def h264_round_trip(levels: np.ndarray, crf: float, preset: str = "medium") -> np.ndarray:
    """Encode and decode [T,H,W,3] uint8 with x264 (yuv420p, BT.709) in memory.

    Odd sizes are padded by a repeated row or column and cropped back. One thread, so that equal clips give equal bits.
    """
    height, width = levels.shape[1:3]
    padded = np.pad(levels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height = padded.shape[2], padded.shape[1]
    encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, 24), Fraction(24)
    encoder.thread_count = 1
    # mbtree=0: x264's AVX-512 code for it reads memory that nobody wrote, so equal clips gave five different results.
    encoder.options = {"crf": f"{crf:.2f}", "preset": preset, "x264-params": "log-level=none:mbtree=0"}
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    packets = []
    for index, planes in enumerate(rgb_to_yuv420(padded)):
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts = index
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoded = [frame for packet in packets for frame in decoder.decode(packet)] + decoder.decode(None)
    assert len(decoded) == len(levels), f"x264 returned {len(decoded)} of {len(levels)} frames"
    return yuv420_to_rgb(np.stack([frame.to_ndarray() for frame in decoded]))[:, :height, :width]


# BT.709 in studio range. By hand, for libswscale's default conversion darkens by more than one level.
_TO_YUV = np.array(
    [[0.2126, 0.7152, 0.0722], [-0.2126 / 1.8556, -0.7152 / 1.8556, 0.5], [0.5, -0.7152 / 1.5748, -0.0722 / 1.5748]],
    dtype=np.float32,
)
_YUV_SCALE = np.array([219, 224, 224], dtype=np.float32) / 255
_YUV_OFFSET = np.array([16, 128, 128], dtype=np.float32)
_TO_RGB = np.linalg.inv(_TO_YUV)


def rgb_to_yuv420(levels: np.ndarray) -> np.ndarray:
    """Map [T,H,W,3] uint8, H and W even, to stacked planes [T,H*3/2,W] uint8: Y, then U, then V."""
    num_frames, height, width, _ = levels.shape
    yuv = levels.astype(np.float32) @ _TO_YUV.T * _YUV_SCALE + _YUV_OFFSET
    chroma = yuv[..., 1:].reshape(num_frames, height // 2, 2, width // 2, 2, 2).mean((2, 4))
    planes = (yuv[..., 0], chroma[..., 0], chroma[..., 1])
    stacked = np.concatenate([plane.reshape(num_frames, -1) for plane in planes], axis=1)
    return stacked.round().clip(0, 255).astype(np.uint8).reshape(num_frames, height * 3 // 2, width)


def yuv420_to_rgb(planes: np.ndarray) -> np.ndarray:
    """Map stacked planes [T,H*3/2,W] uint8 to [T,H,W,3] uint8; chroma is repeated."""
    num_frames, rows, width = planes.shape
    height = rows * 2 // 3
    flat = planes.reshape(num_frames, -1)
    luma = flat[:, : height * width].reshape(num_frames, height, width)
    chroma = flat[:, height * width :].reshape(num_frames, 2, height // 2, width // 2)
    chroma = chroma.repeat(2, axis=2).repeat(2, axis=3)
    yuv = np.stack([luma, chroma[:, 0], chroma[:, 1]], axis=-1).astype(np.float32)
    rgb = (yuv - _YUV_OFFSET) / _YUV_SCALE @ _TO_RGB.T
    return rgb.round().clip(0, 255).astype(np.uint8)
