"""What lies on film: scratches that run through it and stay, specks and hairs that are there for one frame.

Painted at LR size with soft edges, in numpy on the CPU, then laid over the frames where these are. Knows nothing about
film otherwise.
"""

import numpy as np
import torch
from torch import Tensor

from .draws import wander

MEAN_LIFE = 40  # frames that a scratch lasts on average


def add_scratches(frames: Tensor, density: float, rng: np.random.Generator) -> Tensor:
    """Lay vertical scratches over [T,3,h,w].

    Args:
        frames: LR frames in 0..1.
        density: expected number over 100 columns, at any time.
        rng: where they come from.
    """
    num_frames, _, height, width = frames.shape
    # Alive at some time of the clip are those that begin in it and those that began before.
    number = rng.poisson(density * width / 100 * (1 + num_frames / MEAN_LIFE))
    for child in rng.spawn(number):
        cover, color = draw_scratch(num_frames, height, width, child)
        frames = lay_over(frames, cover, color)
    return frames


def draw_scratch(
    num_frames: int, height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Draw one scratch: how much it covers, [T,h,w] in 0..1, and its colour."""
    life = rng.exponential(MEAN_LIFE)
    birth = rng.uniform(-MEAN_LIFE, num_frames)
    frame = np.arange(num_frames)[:, None, None]
    alive = (frame >= birth) & (frame < birth + life)
    place = rng.uniform(0, width) + rng.normal(0, 0.04) * frame + 0.2 * wander(num_frames, 0.8, rng)[:, None, None]
    thickness, strength = rng.uniform(0.25, 0.6), rng.uniform(0.2, 0.85)
    line = np.exp(-0.5 * ((np.arange(width) - place) / thickness) ** 2)  # [T,1,w]
    # It comes and goes along the film: a slow wave over the rows, another one in every frame.
    gaps = rng.uniform(-0.2, 1.0)
    rows = np.stack([_slow_wave(height, rng) for _ in range(num_frames)])[:, :, None]
    along = np.clip(0.6 + gaps + 0.8 * rows, 0, 1)  # [T,h,1]
    bright = rng.uniform(0.75, 1.0) if rng.random() < 0.7 else rng.uniform(0.0, 0.15)
    tint = rng.uniform(0, 0.25) * np.array([1.0, rng.uniform(0, 0.5), 0.0])[rng.permutation(3)]  # a colour layer bared
    return strength * line * along * alive, tuple(np.clip(bright - tint, 0, 1))


def _slow_wave(length: int, rng: np.random.Generator, period: int = 24) -> np.ndarray:
    """Return smooth noise [length] of standard deviation near 1."""
    knots = rng.standard_normal(length // period + 3)
    return np.interp(np.arange(length) / period + rng.random(), np.arange(len(knots)), knots)


def add_dust(frames: Tensor, density: float, rng: np.random.Generator) -> Tensor:
    """Lay specks and hairs over [T,3,h,w], others in every frame.

    Args:
        frames: LR frames in 0..1.
        density: expected number on 100 x 100 pixels.
        rng: where they come from.
    """
    num_frames, _, height, width = frames.shape
    dark, light = np.zeros((2, num_frames, height, width))
    for t, child in enumerate(rng.spawn(num_frames)):
        for _ in range(child.poisson(density * height * width / 1e4)):
            paint_speck(dark[t] if child.random() < 0.55 else light[t], child)
    if dark.any():
        frames = lay_over(frames, dark, (0.06, 0.05, 0.04))
    return lay_over(frames, light, (0.95, 0.94, 0.9)) if light.any() else frames


def paint_speck(cover: np.ndarray, rng: np.random.Generator) -> None:
    """Paint a speck, or now and then a hair, into one frame's cover [h,w]: all that is near to a few points."""
    height, width = cover.shape
    centre = rng.uniform((0, 0), (height, width))
    if rng.random() < 0.12:
        points, radius = centre + _hair(rng), rng.uniform(0.2, 0.5)
    else:
        radius = np.clip(rng.lognormal(-0.4, 0.5), 0.25, 3.0)
        points = centre + rng.normal(0, 0.6 * radius, (4, 2))
    strength = rng.uniform(0.4, 0.95)
    reach = radius + 1
    top, left = np.maximum(np.floor(points.min(0) - reach), 0).astype(int)
    bottom, right = np.ceil(points.max(0) + reach).astype(int) + 1
    window = cover[top:bottom, left:right]
    y, x = np.mgrid[top : top + window.shape[0], left : left + window.shape[1]]
    distance = np.hypot(y[..., None] - points[:, 0], x[..., None] - points[:, 1]).min(-1)
    np.maximum(window, strength * np.clip(radius + 0.5 - distance, 0, 1), out=window)


def _hair(rng: np.random.Generator, num_points: int = 40) -> np.ndarray:
    """Return points [P,2] along a bent line through the origin."""
    length, heading = rng.uniform(6, 22), rng.uniform(0, 2 * np.pi)
    bends = (
        heading
        + rng.normal(0, 1.2) * np.linspace(-1, 1, num_points)
        + 0.6 * rng.normal() * np.linspace(-1, 1, num_points) ** 2
    )
    steps = np.stack([np.sin(bends), np.cos(bends)], axis=1) * (length / num_points)
    return np.cumsum(steps, axis=0) - steps.sum(0) / 2


def lay_over(frames: Tensor, cover: np.ndarray, color: tuple[float, float, float]) -> Tensor:
    """Blend [T,3,h,w] towards a colour by `cover` [T,h,w]."""
    cover = torch.from_numpy(cover).to(frames)[:, None]
    return torch.lerp(frames, frames.new_tensor(color)[:, None, None], cover)
