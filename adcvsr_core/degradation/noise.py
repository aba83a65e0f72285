"""Noise, new in every frame: Gaussian, and Poisson that grows with brightness.

Numbers are drawn on the CPU and then moved, so that a seed means the same noise on every device. Knows nothing about
where frames come from. Sources: RealBasicVSR's and Real-ESRGAN's noise.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .draws import FrameStep, Walk, require_probabilities
from .filters import luma


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Gaussian or Poisson noise.

    Attributes:
        sigma: standard deviation of the Gaussian, in levels of 255.
        poisson: factor on the difference that counting makes.
        poisson_white: white's value when counting, times the number of different levels in the frame. Real-ESRGAN
            counts frames in 0..1, RealBasicVSR frames in 0..255: its Poisson noise is 16 times weaker.
        gaussian_share: chance of Gaussian noise; otherwise it is Poisson's.
        gray_probability: chance that the noise is the same in all three channels.
    """

    sigma: Walk
    poisson: Walk
    poisson_white: float = 1.0
    gaussian_share: float = 0.5
    gray_probability: float = 0.4

    def __post_init__(self) -> None:
        require_probabilities(self, "gaussian_share", "gray_probability")
        if self.poisson_white <= 0:
            raise ConfigError(f"poisson_white {self.poisson_white} is not above 0")


def noise_step(config: NoiseConfig, num_frames: int, rng: np.random.Generator) -> FrameStep:
    """Draw a clip's noise levels and return the function that adds the noise; its results are clamped to 0..1."""
    is_gaussian, gray = rng.random() < config.gaussian_share, bool(rng.random() < config.gray_probability)
    sigma, poisson = config.sigma.path(num_frames, rng), config.poisson.path(num_frames, rng)
    per_frame = rng.spawn(num_frames)

    def step(t: int, frame: Tensor) -> Tensor:
        if is_gaussian:
            return add_noise(frame[None], sigma[t], gray, per_frame[t])[0].clamp(0, 1)
        noise = poisson_noise(frame, config.poisson_white, gray, per_frame[t])
        return (frame + poisson[t] * noise).clamp(0, 1)

    return step


def add_noise(frames: Tensor, sigma: float, gray: bool, rng: np.random.Generator) -> Tensor:
    """Add Gaussian noise of `sigma` levels of 255 to [N,3,H,W] in 0..1, independent in every frame."""
    shape = (frames.shape[0], 1 if gray else 3, *frames.shape[2:])
    return frames + normal(shape, rng, frames.device) * (sigma / 255)


def normal(shape: tuple[int, ...], rng: np.random.Generator, device: torch.device) -> Tensor:
    """Return standard normal numbers, float32."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device)


def poisson_noise(frame: Tensor, white: float, gray: bool, rng: np.random.Generator) -> Tensor:
    """Return counted minus expected brightness of [3,H,W] in 0..1: [3,H,W], or [1,H,W] if gray.

    White expects `white` times the number of different levels in the frame, rounded up to a power of 2.
    """
    if gray:
        frame = luma(frame[None])[0]
    frame = frame.clamp(0, 1).mul(255).round() / 255
    levels = int((torch.bincount((frame * 255).round().long().flatten(), minlength=256) > 0).sum())
    counts = white * 2 ** np.ceil(np.log2(levels))
    return poisson_counts(frame * counts, normal(tuple(frame.shape), rng, frame.device)) / counts - frame


def poisson_counts(mean: Tensor, deviates: Tensor) -> Tensor:
    """Turn standard normal deviates into Poisson counts of the given means, by Cornish and Fisher's expansion.

    Close to the exact distribution from a mean of 1, several times faster than drawing from it, and smooth in the mean:
    exact samplers reject, and then a rounding error of one device shifts every number that follows.
    """
    return (mean + mean.sqrt() * deviates + (deviates**2 - 1) / 6).round().clamp(min=0) * (mean > 0)
