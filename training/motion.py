"""Photographs set in motion: clips whose every pixel's motion is known.

A `Scene` is a camera over one photograph and, in front of it, perhaps a piece of another photograph with a motion
and a soft outline of its own, so that things get hidden and come out again. Rendering is sub-pixel, by bicubic
interpolation at two by two points per pixel. Knows nothing about files, degradations or networks; all randomness
comes from the generator that is given.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[int, int, int, int]
FARTHEST = 1.6
_PURE = 1 / 512  # a pixel with less than this of one layer shows the other alone: half a level of 255


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

    def __len__(self) -> int:
        return len(self.scale)

    @property
    def middle(self) -> np.ndarray:
        """The frames' middle (x, y) in HR pixels."""
        return np.array([(self.size[1] - 1) / 2, (self.size[0] - 1) / 2])

    def matrix(self, t: int) -> np.ndarray:
        """Return scale and turn of frame t as [2,2]."""
        cos, sin = np.cos(self.angle[t]), np.sin(self.angle[t])
        return self.scale[t] * np.array([[cos, -sin], [sin, cos]])

    def points(self, t: int, pixels: np.ndarray) -> np.ndarray:
        """Map HR pixels [...,2] (x, y) of frame t to photograph points."""
        return self.centre[t] + (pixels - self.middle) @ self.matrix(t).T

    def pixels(self, t: int, points: np.ndarray) -> np.ndarray:
        """Map photograph points [...,2] (x, y) to HR pixels of frame t: the inverse of `points`."""
        return (points - self.centre[t]) @ np.linalg.inv(self.matrix(t)).T + self.middle

    def flow(self, t: int) -> np.ndarray:
        """Return the exact motion [H,W,2] of every HR pixel from frame t to frame t + 1, in HR pixels (x, y)."""
        back = np.linalg.inv(self.matrix(t + 1))
        change = back @ self.matrix(t) - np.eye(2)
        x = (np.arange(self.size[1]) - self.middle[0])[None, :, None]
        y = (np.arange(self.size[0]) - self.middle[1])[:, None, None]
        return x * change[:, 0] + y * change[:, 1] + back @ (self.centre[t] - self.centre[t + 1])

    def reversed(self) -> "Motion":
        """Return the same path walked backwards."""
        return dataclasses.replace(self, centre=self.centre[::-1], scale=self.scale[::-1], angle=self.angle[::-1])

    def held(self) -> "Motion":
        """Return a camera that stays where this one begins."""
        first = np.zeros(len(self), dtype=int)
        return dataclasses.replace(self, centre=self.centre[first], scale=self.scale[first], angle=self.angle[first])


@dataclass(frozen=True)
class Cutout:
    """Which part of a photograph is there.

    Attributes:
        corner: x and y of the mask's first pixel in the photograph.
        mask: [h,w] float32, 1 inside, soft at the outline, 0 along the border.
    """

    corner: tuple[int, int]
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A photograph in motion, and what moves in front of it.

    Attributes:
        photo: [H,W,3] uint8.
        motion: the camera's.
        front: another photograph, its motion and the part of it that is there, or None.
    """

    photo: np.ndarray
    motion: Motion
    front: tuple[np.ndarray, Motion, Cutout] | None = None

    def reversed(self) -> "Scene":
        """Return the same scene run backwards."""
        front = None
        if self.front is not None:
            photo, motion, cutout = self.front
            front = (photo, motion.reversed(), cutout)
        return Scene(self.photo, self.motion.reversed(), front)

    def render(self) -> tuple[Tensor, Tensor, Tensor]:
        """Render every frame.

        Returns:
            frames [T,H,W,3] in 0..1; flow [T-1,H,W,2] (x, y) in HR pixels from frame t to t + 1, exact for whatever
            covers the larger part of a pixel; visible [T-1,H,W], 1 where pixel and target show one layer alone and the
            target's four neighbours lie inside the frame, so that warping frame t + 1 back gives frame t, else 0.
        """
        fine = _sample(_texture(self.photo, *_reach(self.motion)), self.motion, (0, 0, *self.motion.size))
        share = torch.zeros(len(self.motion), 1, *self.motion.size)
        if self.front is not None:
            _paint_front(*self.front, fine, share)
        frames = F.avg_pool2d(fine, 2).permute(0, 2, 3, 1).clamp(0, 1)
        return frames, *_flow_and_visible(self, share)


def draw_motion(
    rng: np.random.Generator,
    num_frames: int,
    size: tuple[int, int],
    photo_size: tuple[int, int],
    farthest: float = FARTHEST,
) -> Motion:
    """Draw a smooth camera path whose every frame lies inside the photograph.

    The camera shows it at its own size up to `farthest` times smaller. Speeds are up to 6 HR pixels a frame for the pan
    (often sub-pixel), 1.5 % for the zoom, 1.2 degrees for the turn.
    """
    steps = np.arange(num_frames) - (num_frames - 1) / 2
    reach = 0.5 * float(np.hypot(*size)) + 2
    limit = min(photo_size) / 2 / reach
    scale = rng.uniform(1.0, farthest) * np.exp(rng.uniform(-0.015, 0.015) * (rng.random() < 0.5) * steps)
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


def draw_scene(
    rng: np.random.Generator,
    num_frames: int,
    size: tuple[int, int],
    photo: np.ndarray,
    front: np.ndarray | None,
    fixed: bool = False,
    farthest: float = FARTHEST,
) -> Scene:
    """Draw a camera over `photo` and, where `front` is given, a piece of it that moves by itself (both [H,W,3]).

    A fixed camera stands still; the piece in front of it moves all the same. `farthest`: see `draw_motion`.
    """
    motion = draw_motion(rng, num_frames, size, photo.shape[:2], farthest)
    motion = motion.held() if fixed else motion
    if front is None:
        return Scene(photo, motion)
    own = draw_motion(rng, num_frames, size, front.shape[:2])
    return Scene(photo, motion, (front, own, draw_cutout(rng, own, front.shape[:2])))


def draw_cutout(rng: np.random.Generator, motion: Motion, photo_size: tuple[int, int]) -> Cutout:
    """Draw a piece that stands somewhere in the frame at mid-clip: a bent ellipse, from round to three times as long.

    Its longer half is 0.15 to 0.4 of the frame's shorter edge, its outline 0.7 to 3 HR pixels soft.
    """
    height, width = photo_size
    t = len(motion) // 2
    half = rng.uniform(0.15, 0.4) * min(motion.size) * motion.scale[t]
    half = min(half, min(photo_size) / 2 - 4)
    softness = rng.uniform(0.7, 3.0) * motion.scale[t]
    spot = motion.points(t, rng.uniform(0.15, 0.85, 2) * np.array([motion.size[1], motion.size[0]]))
    spot = np.clip(spot, half + 3, np.array([width, height]) - half - 4)
    corner = np.floor(spot - half - 2).astype(int)
    edge = int(2 * half + 6)
    x, y = (np.arange(edge) + corner[axis] - spot[axis] for axis in range(2))
    turn, slimness = rng.uniform(0, np.pi), rng.uniform(1, 3)
    along = np.cos(turn) * x + np.sin(turn) * y[:, None]
    across = (np.cos(turn) * y[:, None] - np.sin(turn) * x) * slimness
    bends = rng.uniform(-0.06, 0.06, 4)
    around = np.arctan2(across, along)[..., None] * np.arange(2, 6) + rng.uniform(0, 2 * np.pi, 4)
    outline = half * (1 - np.abs(bends).sum() + np.cos(around) @ bends) - slimness * softness / 2
    inside = (outline - np.hypot(along, across)) / slimness
    mask = np.clip(0.5 + inside / softness, 0, 1).astype(np.float32)
    mask[[0, -1]], mask[:, [0, -1]] = 0, 0
    return Cutout((int(corner[0]), int(corner[1])), mask)


def pixel_grid(height: int, width: int) -> np.ndarray:
    """Return pixel centres [H,W,2] as (x, y)."""
    y, x = np.meshgrid(np.arange(height, dtype=np.float64), np.arange(width, dtype=np.float64), indexing="ij")
    return np.stack([x, y], axis=-1)


def _reach(motion: Motion) -> tuple[np.ndarray, np.ndarray]:
    """Return the window (low, high) of the photograph, x and y, that the camera and its interpolation see."""
    height, width = motion.size
    corners = np.array([[x, y] for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)])
    reached = np.concatenate([motion.points(t, corners) for t in range(len(motion))])
    return np.maximum(np.floor(reached.min(0)).astype(int) - 3, 0), np.ceil(reached.max(0)).astype(int) + 4


def _texture(photo: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Return a window of a photograph as [3,h,w] in 0..1, and the photograph's point (x, y) of its first pixel."""
    window = np.ascontiguousarray(photo[low[1] : high[1], low[0] : high[0]])
    return torch.from_numpy(window).permute(2, 0, 1).float() / 255, low


def _sample(texture: tuple[Tensor, np.ndarray], motion: Motion, box: Box) -> Tensor:
    """Return what the camera sees of a texture in a box (top, left, bottom, right) of HR pixels: [T,C,2h,2w]."""
    source, low = texture
    top, left, bottom, right = box
    extent = np.array([source.shape[2], source.shape[1]])
    box_size, box_middle = np.array([right - left, bottom - top]), np.array([left + right - 1, top + bottom - 1]) / 2
    # In grid_sample's units, where -1 and 1 are the outer edges of both pictures.
    theta = np.empty((len(motion), 2, 3))
    for t in range(len(motion)):
        theta[t, :, :2] = motion.matrix(t) * box_size / extent[:, None]
        theta[t, :, 2] = (2 * (motion.points(t, box_middle) - low) + 1) / extent - 1
    shape = [len(motion), len(source), 2 * (bottom - top), 2 * (right - left)]
    grid = F.affine_grid(torch.from_numpy(theta).float(), shape, align_corners=False)
    source = source[None].expand(len(motion), -1, -1, -1)
    return F.grid_sample(source, grid, mode="bicubic", padding_mode="border", align_corners=False)


def _paint_front(photo: np.ndarray, motion: Motion, cutout: Cutout, fine: Tensor, share: Tensor) -> None:
    """Lay the front over `fine` [T,3,2H,2W], and write how much of each pixel it covers into `share` [T,1,H,W]."""
    low, extent = np.array(cutout.corner), np.array(cutout.mask.shape[::-1])
    top, left, bottom, right = box = _box(motion, low, low + extent)
    if top >= bottom or left >= right:
        return
    colours, _ = _texture(photo, low, low + extent)
    texture = torch.cat([colours, torch.from_numpy(cutout.mask)[None]])
    seen = _sample((texture, low), motion, box)
    cover = seen[:, 3:].clamp(0, 1)
    behind = fine[:, :, 2 * top : 2 * bottom, 2 * left : 2 * right]
    behind.lerp_(seen[:, :3], cover)
    share[:, :, top:bottom, left:right] = F.avg_pool2d(cover, 2)


def _box(motion: Motion, low: np.ndarray, high: np.ndarray) -> Box:
    """Return the box (top, left, bottom, right) of HR pixels where a window of the photograph is ever seen."""
    corners = np.array([[x, y] for x in (low[0], high[0]) for y in (low[1], high[1])])
    seen = np.concatenate([motion.pixels(t, corners) for t in range(len(motion))])
    left, top = np.maximum(np.floor(seen.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(seen.max(0)).astype(int) + 1, motion.size[::-1])
    return int(top), int(left), int(bottom), int(right)


def _flow_and_visible(scene: Scene, share: Tensor) -> tuple[Tensor, Tensor]:
    steps = range(len(scene.motion) - 1)
    if not steps:
        return torch.zeros(0, *scene.motion.size, 2), torch.zeros(0, *scene.motion.size)
    behind = torch.from_numpy(np.stack([scene.motion.flow(t) for t in steps])).float()
    if scene.front is None:
        return behind, _lands(behind, torch.ones_like(share[1:])).float()
    before = torch.from_numpy(np.stack([scene.front[1].flow(t) for t in steps])).float()
    is_front, is_back = share > 1 - _PURE, share < _PURE
    visible = is_front[:-1, 0] & _lands(before, is_front[1:])
    visible |= is_back[:-1, 0] & _lands(behind, is_back[1:])
    return torch.where(share[:-1, 0, ..., None] > 0.5, before, behind), visible.float()


def _lands(flow: Tensor, there: Tensor) -> Tensor:
    """Return [N,H,W] whether the four pixels around each target of `flow` [N,H,W,2] are all in `there` [N,1,H,W]."""
    height, width = flow.shape[1:3]
    targets = flow + torch.from_numpy(pixel_grid(height, width)).float()
    grid = targets * 2 / torch.tensor([width - 1, height - 1]) - 1
    return F.grid_sample(there.float(), grid, padding_mode="zeros", align_corners=True)[:, 0] > 0.999
