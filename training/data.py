"""What is trained on: clips of the prepared film and photographs set in motion, drawn without any state.

A sample is a pure function of (seed, step, rank, slot): resuming is one integer and the number of workers changes
nothing. Knows nothing about networks. `training.prepare_bundled_data` writes the folder that `Corpus` reads.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adcvsr_core.degradation import degrade
from adcvsr_core.errors import InputError

from .config import DataConfig, StageConfig

HELD_OUT_FILE = Path(__file__).with_name("heldout.json")


@dataclass(frozen=True)
class Motion:
    """A camera over a photograph: HR pixel p of frame t shows the point centre[t] + scale[t] R(angle[t]) (p - c).

    Attributes:
        centre: [T,2] x and y in photograph pixels.
        scale: [T] photograph pixels per HR pixel.
        angle: [T] radians.
        size: edge (height, width) of the HR frames; c is their middle.
    """

    centre: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    size: tuple[int, int]

    def points(self, t: int, pixels: np.ndarray) -> np.ndarray:
        """Map HR pixels [...,2] (x, y) of frame t to photograph points."""
        return self.centre[t] + (pixels - self._middle) @ self.matrix(t).T

    def flow(self, t: int) -> np.ndarray:
        """Return the exact motion [H,W,2] of every HR pixel from frame t to frame t + 1, in HR pixels (x, y)."""
        pixels = pixel_grid(*self.size)
        points = self.points(t, pixels)
        back = np.linalg.inv(self.matrix(t + 1))
        return (points - self.centre[t + 1]) @ back.T + self._middle - pixels

    @property
    def _middle(self) -> np.ndarray:
        return np.array([(self.size[1] - 1) / 2, (self.size[0] - 1) / 2])

    def matrix(self, t: int) -> np.ndarray:
        """Return scale and turn of frame t as [2,2]."""
        cos, sin = np.cos(self.angle[t]), np.sin(self.angle[t])
        return self.scale[t] * np.array([[cos, -sin], [sin, cos]])


def pixel_grid(height: int, width: int) -> np.ndarray:
    """Return pixel centres [H,W,2] as (x, y)."""
    y, x = np.meshgrid(np.arange(height, dtype=np.float64), np.arange(width, dtype=np.float64), indexing="ij")
    return np.stack([x, y], axis=-1)


def draw_motion(
    rng: np.random.Generator, num_frames: int, size: tuple[int, int], photo_size: tuple[int, int]
) -> Motion:
    """Draw a smooth camera path whose every frame lies inside the photograph.

    Speeds are up to 6 HR pixels a frame for the pan (often sub-pixel), 1.5 % for the zoom, 1.2 degrees for the turn.
    """
    steps = np.arange(num_frames) - (num_frames - 1) / 2
    reach = 0.5 * float(np.hypot(*size)) + 2
    limit = min(photo_size) / 2 / reach
    scale = rng.uniform(1.0, 1.6) * np.exp(rng.uniform(-0.015, 0.015) * (rng.random() < 0.5) * steps)
    scale = np.minimum(scale, max(0.5, limit * 0.9))
    angle = np.deg2rad(rng.uniform(-1.2, 1.2)) * (rng.random() < 0.4) * steps + rng.uniform(-0.1, 0.1)
    speed = 6.0 * rng.random() ** 2
    heading = rng.uniform(0, 2 * np.pi)
    pan = speed * np.array([np.cos(heading), np.sin(heading)])
    path = steps[:, None] * pan + 0.5 * (steps**2)[:, None] * rng.uniform(-0.15, 0.15, 2)
    path = path * scale[:, None]
    margin = reach * scale.max()
    bounds = np.array([photo_size[1], photo_size[0]])
    room = np.maximum(0, bounds / 2 - margin)
    path = np.clip(path, -room, room)
    low, high = margin - path.min(0), bounds - margin - path.max(0)
    start = np.where(high > low, rng.uniform(np.minimum(low, high), np.maximum(low, high)), bounds / 2)
    return Motion(start + path, scale, angle, size)


def render_motion(photo: np.ndarray, motion: Motion) -> Tensor:
    """Render a camera path over a photograph [H,W,3] uint8: frames [T,h,w,3] in 0..1, two by two supersampled."""
    height, width = motion.size
    num_frames = len(motion.scale)
    corners = np.array([[x, y] for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)])
    reached = np.concatenate([motion.points(t, corners) for t in range(num_frames)])
    low = np.maximum(np.floor(reached.min(0)).astype(int) - 3, 0)
    high = np.ceil(reached.max(0)).astype(int) + 4
    window = np.ascontiguousarray(photo[low[1] : high[1], low[0] : high[0]])
    source = torch.from_numpy(window).permute(2, 0, 1)[None].float() / 255
    extent = np.array([source.shape[3], source.shape[2]])
    # In grid_sample's units, where -1 and 1 are the outer edges of both pictures.
    theta = np.empty((num_frames, 2, 3))
    for t in range(num_frames):
        theta[t, :, :2] = motion.matrix(t) * np.array([width, height]) / extent[:, None]
        theta[t, :, 2] = (2 * (motion.centre[t] - low) + 1) / extent - 1
    grid = F.affine_grid(torch.from_numpy(theta).float(), [num_frames, 3, 2 * height, 2 * width], align_corners=False)
    source = source.expand(num_frames, -1, -1, -1)
    frames = F.grid_sample(source, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return F.avg_pool2d(frames, 2).permute(0, 2, 3, 1).clamp(0, 1)


class Corpus:
    """The prepared folder: the film as a memory map, the photographs, and which of them are held out.

    Args:
        folder: what `training.prepare_bundled_data` wrote.
        split: "train" or "heldout".

    Raises:
        InputError: the folder lacks what is needed.
    """

    def __init__(self, folder: Path | str, split: str = "train"):
        folder = Path(folder)
        index = folder / "corpus.json"
        if not index.exists():
            raise InputError(f"{folder} holds no corpus.json; make it with `python -m training.prepare_bundled_data`")
        described = json.loads(index.read_text())
        held_out = described["heldout"]
        self.film = np.load(folder / "film.npy", mmap_mode="r") if described["shots"] else None
        self.shots = [
            (start, stop)
            for start, stop in described["shots"]
            if _overlaps(start, stop, held_out["film"]) == (split == "heldout")
        ]
        names = [name for name in described["photographs"] if (name in held_out["photographs"]) == (split == "heldout")]
        self.photographs = {name: np.load(folder / "photographs" / f"{name}.npy", mmap_mode="r") for name in names}
        if not self.shots and not self.photographs:
            raise InputError(f"{folder} holds no {split} material")

    def draw_clip(self, rng: np.random.Generator, num_frames: int, size: int, data: DataConfig) -> Tensor:
        """Draw one HR clip [T,size,size,3] in 0..1 with random flips; clips may run backwards."""
        from_film = rng.random() < data.film_share
        shots = [shot for shot in self.shots if shot[1] - shot[0] >= num_frames]
        if shots and (from_film or not self.photographs):
            clip = self._film_clip(rng, shots, num_frames, size)
        else:
            clip = self._photo_clip(rng, num_frames, size)
        if rng.random() < 0.5:
            clip = clip.flip(2)
        if rng.random() < 0.5:
            clip = clip.flip(0)
        if rng.random() < data.transpose_probability:
            clip = clip.transpose(1, 2)
        return clip

    def _film_clip(self, rng: np.random.Generator, shots: list, num_frames: int, size: int) -> Tensor:
        lengths = np.array([min(stop - start, 240) for start, stop in shots], dtype=np.float64)
        start, stop = shots[int(rng.choice(len(shots), p=lengths / lengths.sum()))]
        stride = int(rng.integers(1, 3)) if stop - start >= 2 * num_frames else 1
        first = int(rng.integers(start, stop - (num_frames - 1) * stride))
        height, width = self.film.shape[1:3]
        if size > min(height, width):
            raise InputError(
                f"clips of {size}x{size} do not fit into a film of {width}x{height}; use a smaller lr_size"
            )
        y, x = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        frames = self.film[first : first + num_frames * stride : stride, y : y + size, x : x + size]
        return torch.from_numpy(np.ascontiguousarray(frames)).float() / 255

    def _photo_clip(self, rng: np.random.Generator, num_frames: int, size: int) -> Tensor:
        names = list(self.photographs)
        photo = self.photographs[names[int(rng.integers(len(names)))]]
        if num_frames == 1 and rng.random() < 0.5:  # untouched pixels are the sharpest
            y, x = (int(rng.integers(edge - size + 1)) for edge in photo.shape[:2])
            return torch.from_numpy(photo[None, y : y + size, x : x + size].copy()).float() / 255
        return render_motion(photo, draw_motion(rng, num_frames, (size, size), photo.shape[:2]))


def _overlaps(start: int, stop: int, ranges: list[list[int]]) -> bool:
    return any(start < high and low < stop for low, high in ranges)


class Batches(torch.utils.data.Dataset):
    """Step -> batch, for a stage. `Batches(...)[step]` is the same in any process at any time.

    Args:
        corpus: where clips come from.
        stage: sizes, batch and degradation mixture.
        data: shares.
        seed, rank: which run and which process of it.
    """

    def __init__(self, corpus: Corpus, stage: StageConfig, data: DataConfig, seed: int, rank: int = 0):
        self.corpus, self.stage, self.data, self.seed, self.rank = corpus, stage, data, seed, rank

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return (lr [B,T,3,h,w], hr [B,T,3,4h,4w]) in [-1, 1]."""
        pairs = [self.sample(step, slot) for slot in range(self.stage.batch)]
        return torch.stack([lr for lr, _ in pairs]), torch.stack([hr for _, hr in pairs])

    def sample(self, step: int, slot: int) -> tuple[Tensor, Tensor]:
        """Return one pair (lr [T,3,h,w], hr [T,3,4h,4w]) in [-1, 1]."""
        stage = self.stage
        rng = np.random.default_rng((self.seed, stage.seed_offset, step, self.rank, slot))
        kinds, shares = zip(*stage.mixture, strict=True)
        kind = kinds[int(rng.choice(len(kinds), p=np.array(shares) / sum(shares)))]
        coded = "h264" in kind
        # A codec damages what it predicted: give a single frame neighbours to be predicted from.
        extra = 2 if coded and stage.num_frames == 1 else 0
        hr = self.corpus.draw_clip(rng, stage.num_frames + extra, 4 * stage.lr_size, self.data)
        lr = degrade(hr, kind, int(rng.integers(2**31)))
        keep = slice(int(rng.integers(extra + 1)), None)
        hr, lr = (to_network(clip[keep][: stage.num_frames]) for clip in (hr, lr))
        return lr, hr


def to_network(frames: Tensor) -> Tensor:
    """[T,H,W,3] in 0..1 -> [T,3,H,W] in [-1, 1]."""
    return frames.permute(0, 3, 1, 2) * 2 - 1


def to_frames(clip: Tensor) -> Tensor:
    """[T,3,H,W] in [-1, 1] -> [T,H,W,3] in 0..1, clamped."""
    return (clip.float().permute(0, 2, 3, 1) * 0.5 + 0.5).clamp(0, 1)


def make_loader(batches: Batches, first_step: int, workers: int) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Yield (step, batch) from a step on; `workers` processes draw ahead, 0 = this process draws."""
    steps = range(first_step, len(batches))
    loader = torch.utils.data.DataLoader(
        batches,
        sampler=steps,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    yield from zip(steps, loader, strict=True)
