"""Blur kernels: seven shapes, drawn once a clip and wandering from frame to frame.

Knows nothing about frames; `filters` applies what is made here. Source: the kernels of Real-ESRGAN and RealBasicVSR
(Gaussian, generalised Gaussian, plateau, each round or stretched, and the circular low-pass that rings). Our betas
are uniform in their range; the originals draw half of them below 1.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import ConfigError
from .draws import Walk, choose, require_probabilities

SHAPES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", "sinc")


@dataclass(frozen=True, kw_only=True)
class BlurConfig:
    """Which kernels a blur draws.

    Attributes:
        sigma: standard deviation along each axis, in pixels; round shapes use the first of two.
        probability: chance of any blur.
        sizes: edges to choose from, odd.
        shares: of `SHAPES`.
        angle: of stretched shapes, in radians.
        beta_gaussian, beta_plateau: exponents of generalised Gaussians and of plateaus; 1 is the plain curve.
        omega_lows: lowest cut-off of "sinc" for kernels below 13 pixels and for others, in radians a pixel; the
            highest is pi.
        omega_step: how far the cut-off wanders in a frame.
    """

    sigma: Walk
    probability: float = 1.0
    sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    shares: tuple[float, ...] = (0.405, 0.225, 0.108, 0.027, 0.108, 0.027, 0.1)
    angle: Walk = Walk(-math.pi, math.pi)
    beta_gaussian: Walk = Walk(1.0, 1.0)
    beta_plateau: Walk = Walk(1.0, 1.0)
    omega_lows: tuple[float, float] = (math.pi / 3, math.pi / 5)
    omega_step: float = 0.0

    def __post_init__(self) -> None:
        require_probabilities(self, "probability")
        if any(size < 1 or size % 2 == 0 for size in self.sizes):
            raise ConfigError(f"blur sizes {self.sizes} are not all odd")
        if len(self.shares) != len(SHAPES) or min(self.shares) < 0 or not sum(self.shares):
            raise ConfigError(f"blur shares {self.shares} are not {len(SHAPES)} shares, of {', '.join(SHAPES)}")
        if self.sigma.low <= 0:
            raise ConfigError(f"blur sigma begins at {self.sigma.low}; it must be above 0")


def draw_kernels(config: BlurConfig, num_frames: int, rng: np.random.Generator) -> np.ndarray | None:
    """Draw one kernel a frame, [T,K,K] float64, each summing to 1; None = this clip is not blurred."""
    happens = rng.random() < config.probability
    shape = SHAPES[choose(config.shares, rng)]
    size = config.sizes[int(rng.integers(len(config.sizes)))]
    sigma_x, sigma_y = config.sigma.path(num_frames, rng), config.sigma.path(num_frames, rng)
    angle = config.angle.path(num_frames, rng)
    beta = (config.beta_plateau if shape.startswith("plateau") else config.beta_gaussian).path(num_frames, rng)
    omega = Walk(config.omega_lows[size >= 13], math.pi, config.omega_step).path(num_frames, rng)
    if not happens:
        return None
    if shape == "sinc":
        return sinc_kernels(size, omega)
    if shape in ("iso", "aniso"):
        beta = np.ones(num_frames)
    if not shape.endswith("aniso"):
        sigma_y = sigma_x
    return bell_kernels(size, sigma_x, sigma_y, angle, beta, plateau=shape.startswith("plateau"))


def bell_kernels(
    size: int, sigma_x: np.ndarray, sigma_y: np.ndarray, angle: np.ndarray, beta: np.ndarray, *, plateau: bool = False
) -> np.ndarray:
    """Return [T,K,K]: exp(-d^2b / 2), or 1 / (1 + d^2b) for a plateau; d is the distance in standard deviations.

    Args:
        size: K.
        sigma_x, sigma_y, angle, beta: [T] each; the axes are turned by the angle.
        plateau: which of the two curves.
    """
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    cos, sin = (function(angle)[:, None, None] for function in (np.cos, np.sin))
    along = (cos * x + sin * y) / sigma_x[:, None, None]
    across = (cos * y - sin * x) / sigma_y[:, None, None]
    power = (along**2 + across**2) ** beta[:, None, None]
    return _normalised(1 / (1 + power) if plateau else np.exp(-0.5 * power))


def sinc_kernels(size: int, omega: np.ndarray) -> np.ndarray:
    """Return [T,K,K] circular low-passes, w J1(w r) / (2 pi r), with cut-offs `omega` [T] in radians a pixel."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(x, y)[None]
    omega = omega[:, None, None]
    with np.errstate(invalid="ignore"):
        ring = omega * torch.special.bessel_j1(torch.from_numpy(omega * radius)).numpy() / (2 * np.pi * radius)
    return _normalised(np.where(radius == 0, omega**2 / (4 * np.pi), ring))


def _normalised(kernels: np.ndarray) -> np.ndarray:
    return kernels / kernels.sum((1, 2), keepdims=True)
