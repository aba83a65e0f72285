"""The latent grid of a video generator under a clip: where its cells and its latent frames lie, and noise on them.

Knows nothing about pictures.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .noise import normal

CELL = 8  # pixels, each way
GROUP = 4  # frames of one latent frame
# Share of the following latent frame in each frame of a group: a slow change, then a jump.
_FOLLOWING = np.array([0.0, 0.1, 0.2, 0.3])


@dataclass(frozen=True)
class Latents:
    """A clip's place on the grid.

    Attributes:
        size: (height, width) of its frames.
        corner: (row, column) of the first pixel inside its cell.
        group: [T] index of the latent frame of each frame, from 0.
        place: [T] position of each frame in its group, 0 to 3.
    """

    size: tuple[int, int]
    corner: tuple[int, int]
    group: np.ndarray
    place: np.ndarray

    @property
    def num_groups(self) -> int:
        return int(self.group[-1]) + 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells that the frames touch."""
        return tuple(-(-(edge + corner) // CELL) for edge, corner in zip(self.size, self.corner))

    def noise(self, shape: tuple[int, ...], rng: np.random.Generator, device: torch.device) -> Tensor:
        """Return [T,*shape] of standard deviation 1: slow inside a group, a jump between groups."""
        fresh = normal((self.num_groups + 1, *shape), rng, device)
        share = fresh.new_tensor(_FOLLOWING[self.place]).view(-1, *[1] * len(shape))
        mixed = (1 - share) * fresh[self.group] + share * fresh[self.group + 1]
        return mixed / ((1 - share) ** 2 + share**2).sqrt()

    def smooth_noise(self, channels: int, rng: np.random.Generator, device: torch.device) -> Tensor:
        """Return [T,C,h,w]: one number a cell and latent frame, flowing into its neighbours."""
        return self._spread(self.noise((channels, *self.grid), rng, device), "bicubic")

    def block_noise(self, channels: int, rng: np.random.Generator, device: torch.device) -> Tensor:
        """Return [T,C,h,w]: one number a cell and latent frame, with hard edges."""
        return self._spread(self.noise((channels, *self.grid), rng, device), "nearest")

    def tile(self, pattern: Tensor) -> Tensor:
        """Repeat a pattern [8,8] over the cells: [h,w]."""
        return self._crop(pattern.repeat(*self.grid))

    def _spread(self, cells: Tensor, mode: str) -> Tensor:
        corners = {} if mode == "nearest" else {"align_corners": False}
        return self._crop(F.interpolate(cells, scale_factor=CELL, mode=mode, **corners))

    def _crop(self, picture: Tensor) -> Tensor:
        (top, left), (height, width) = self.corner, self.size
        return picture[..., top : top + height, left : left + width]


def draw_latents(num_frames: int, size: tuple[int, int], rng: np.random.Generator) -> Latents:
    """Draw where on the grid a clip begins: it may be a crop, from the middle of a video."""
    top, left = (int(each) for each in rng.integers(CELL, size=2))
    frames = np.arange(num_frames) + int(rng.integers(GROUP))
    return Latents(size, (top, left), frames // GROUP, frames % GROUP)


def draw_pattern(rng: np.random.Generator) -> np.ndarray:
    """Draw what a decoder leaves in every cell, [8,8] of mean 0 and standard deviation 1: a few waves of its period."""
    y, x = np.mgrid[:CELL, :CELL] * (2 * np.pi / CELL)
    waves = [(1, 0), (0, 1), (2, 0), (0, 2), (4, 0), (0, 4), (4, 4)]
    strengths = rng.uniform(0.2, 1.0, len(waves)) * np.array([1.0, 1.0, 0.6, 0.6, 0.6, 0.6, 0.8])
    # Waves of half the sampling rate have two phases only; in between they vanish.
    phases = [rng.integers(2) * np.pi if 4 in wave else rng.uniform(0, 2 * np.pi) for wave in waves]
    pattern = sum(s * np.cos(i * y + j * x + p) for (i, j), s, p in zip(waves, strengths, phases))
    return (pattern - pattern.mean()) / pattern.std()
