"""What the tests of degradations start from: clips in memory, and configurations that change nothing."""

import torch

from adcvsr_core.degradation import DegradationConfig, FilmConfig, GeneratedConfig, RealWorldConfig

ZERO = (0.0, 0.0)
NEUTRAL = {
    "mild": DegradationConfig(scale=1),
    "realworld": RealWorldConfig(scale=1),
    "film": FilmConfig(
        scale=1,
        contrast=(1.0, 1.0),
        saturation=(1.0, 1.0),
        interlace_probability=0.0,
        h264_probability=0.0,
        **dict.fromkeys(("softness", "weave", "black", "cast", "flicker", "grain", "scratches", "dust"), ZERO),
    ),
    "generated": GeneratedConfig(
        scale=1,
        h264_probability=0.0,
        **dict.fromkeys(("softness", "wax", "boil", "texture", "smear", "grid", "jump"), ZERO),
    ),
}


def moving_clip(num_frames: int = 6, height: int = 64, width: int = 96, seed: int = 0, cell: int = 8) -> torch.Tensor:
    """Smooth colour noise with blobs of `cell` pixels that pans by two pixels a frame: [T,H,W,3] in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // cell + 2, (width + 2 * num_frames) // cell + 2, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, scale_factor=cell, mode="bicubic").clamp(0, 1)[0]
    frames = [wide[:, :height, 2 * t : 2 * t + width] for t in range(num_frames)]
    return torch.stack(frames).permute(0, 2, 3, 1).contiguous()


def noisy_clip(num_frames: int, height: int, width: int, deviation: float = 0.05) -> torch.Tensor:
    """The same with noise on it, new in every frame: what codecs find hard."""
    noise = torch.randn(num_frames, height, width, 3, generator=torch.Generator().manual_seed(1))
    return (moving_clip(num_frames, height, width) + deviation * noise).clamp(0, 1)


def still_clip(num_frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """One textured frame repeated."""
    texture = torch.randn(1, height, width, 1, generator=torch.Generator().manual_seed(seed))
    return (moving_clip(1, height, width, seed) * 0.7 + 0.15 + 0.06 * texture).clamp(0, 1).repeat(num_frames, 1, 1, 1)


def gray_clip(num_frames: int, height: int, width: int, value: float = 128 / 255) -> torch.Tensor:
    """Frames of one grey."""
    return torch.full((num_frames, height, width, 3), value)
