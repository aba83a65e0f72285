"""Clips of training and how they are drawn: which shot, which frames, which crop, which flips.

A `Source` draws from shots (pieces of video without a cut) and stills (photographs, which it sets in motion), wherever
they are stored; `training.sources` and `training.footage` say where. What is drawn depends on the given generator
alone, never on what was drawn before. Knows nothing about degradations, batches or networks.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from adcvsr_core.errors import InputError

from .config import DataConfig
from .motion import FARTHEST, draw_scene

FRONT_SHARE = 0.5
"""Share of moving photographs that have a piece of another one in front."""
_LONG_SHOT = 240  # frames; a longer shot is drawn no more often than one of this length
_ATTEMPTS = 20  # broken pictures in a row before a source gives up
_BLOCK = 65_536
_PAGE_FARTHEST = 1.15

Report = Callable[[str], None]
T = TypeVar("T")


class BrokenFile(InputError):
    """A picture whose header is fine and whose pixels are not, found when it was drawn."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What was drawn.

    Attributes:
        frames: [T,s,s,3] in 0..1.
        name: says which file (and its content), frames, crop and flips; equal names mean equal clips.
        flow: [T-1,s,s,2] exact motion (x, y) in pixels from frame t to t + 1, None = unknown.
        visible: [T-1,s,s] 1 where the point of frame t is seen in frame t + 1 too, else 0; None = unknown.
        lr: [T,s/4,s/4,3] in 0..1 where the material has its own low resolution, None = it is to be made.
    """

    frames: Tensor
    name: str
    flow: Tensor | None = None
    visible: Tensor | None = None
    lr: Tensor | None = None

    def mirrored(self) -> "Clip":
        """Return the clip with left and right swapped."""
        flow = None if self.flow is None else self.flow.flip(2) * torch.tensor([-1.0, 1.0])
        return self._turned(lambda images: images.flip(2), flow, "mirrored")

    def transposed(self) -> "Clip":
        """Return the clip with rows and columns swapped."""
        flow = None if self.flow is None else self.flow.transpose(1, 2).flip(3)
        return self._turned(lambda images: images.transpose(1, 2), flow, "transposed")

    def _turned(self, turn: Callable[[Tensor], Tensor], flow: Tensor | None, how: str) -> "Clip":
        visible, lr = (None if images is None else turn(images) for images in (self.visible, self.lr))
        return Clip(frames=turn(self.frames), name=f"{self.name} {how}", flow=flow, visible=visible, lr=lr)


class Frames(Protocol):
    """A stored video."""

    def read(self, frames: range, top: int, left: int, size: int) -> Tensor:
        """Return the same crop of some frames, in rising order: [T,size,size,3] in 0..1."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A piece of video without a cut.

    Attributes:
        file: the video's, for messages.
        name: of the video, with its content's fingerprint.
        start, stop: its frames, [start, stop).
        height, width: of its frames.
        frames: where they are stored.
        lr: where the same frames are stored at a quarter of the size, None = nowhere.
    """

    file: str
    name: str
    start: int
    stop: int
    height: int
    width: int
    frames: Frames
    lr: Frames | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, frames: range, top: int, left: int, size: int) -> tuple[Tensor, Tensor | None]:
        """Return a crop of some frames [T,size,size,3], and of their low resolution where there is one."""
        hr = self.frames.read(frames, top, left, size)
        return hr, None if self.lr is None else self.lr.read(frames, top // 4, left // 4, size // 4)


class Still(Protocol):
    """A stored photograph.

    Attributes:
        file: for messages.
        height, width: in pixels.
    """

    file: str
    height: int
    width: int

    def name(self) -> str:
        """Return what it is called, with its content's fingerprint."""

    def load(self) -> np.ndarray:
        """Return its pixels [H,W,3] uint8; they may lie in a file.

        Raises:
            BrokenFile: they cannot be decoded.
        """


def name_some(names: Sequence[str]) -> str:
    """Return the first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def to_stderr(message: str) -> None:
    """Print one line for the user."""
    print(message, file=sys.stderr, flush=True)


class Source:
    """Material of one split.

    Args:
        origin: what messages call it.
        shots, stills: the material.
        data: shares, mode, stride.
        report: gets a line for whatever is left out.
        pages: stills of text, drawn by `data.page_share`: never mirrored, because letters are not, and hardly reduced,
            because small ones would be past reading.

    Raises:
        InputError: `data.page_share` without pages.
    """

    def __init__(
        self,
        origin: str,
        shots: Sequence[Shot],
        stills: Sequence[Still],
        data: DataConfig,
        report: Report = to_stderr,
        pages: Sequence[Still] = (),
    ):
        if data.page_share and not pages:
            raise InputError(f"{origin} has no pages of text for data.page_share={data.page_share:g}; set it to 0")
        self.origin, self.shots, self.stills, self.data = origin, list(shots), list(stills), data
        self.pages = list(pages)
        self._report = report
        self._reported: set[str] = set()
        self._usable: dict[tuple[int, int], tuple[list[Shot], np.ndarray, list[Still]]] = {}

    @property
    def has_lr(self) -> bool:
        """Whether clips come with a low resolution of their own."""
        return any(shot.lr is not None for shot in self.shots)

    def check(self, num_frames: int, size: int) -> None:
        """Report what is too small for such clips.

        Raises:
            InputError: nothing is large and long enough.
        """
        self._choose_from(num_frames, size)

    def draw_clip(self, rng: np.random.Generator, num_frames: int, size: int, *, video: bool | None = None) -> Clip:
        """Draw a clip.

        Args:
            rng: all randomness.
            num_frames: T.
            size: edge of the frames, in pixels; a multiple of 4.
            video: True for video, False for photographs in motion, None for either by `data.video_share`. Where only
                one of them is there, it is drawn.

        Raises:
            InputError: nothing is large and long enough.
        """
        return self._until_whole(lambda: self._draw_clip(rng, num_frames, size, video))

    def draw_crop(self, rng: np.random.Generator, size: int) -> Tensor:
        """Draw a crop [size,size,3] in 0..1 of a photograph, or of a frame of video where there is none.

        Of two places in it the one with more detail is taken.
        """
        return self._until_whole(lambda: self._draw_crop(rng, size))

    def _until_whole(self, draw: Callable[[], T]) -> T:
        for _ in range(_ATTEMPTS):
            try:
                return draw()
            except BrokenFile as error:
                self._say(f"{error}; left out")
        raise InputError(f"{self.origin}: {_ATTEMPTS} broken pictures in a row; remove them")

    def _draw_clip(self, rng: np.random.Generator, num_frames: int, size: int, video: bool | None) -> Clip:
        shots, shares, stills = self._choose_from(num_frames, size)
        from_video = rng.random() < self.data.video_share
        mirrored, backwards, transposed = rng.random(3) < (0.5, 0.5, self.data.transpose_probability)
        if ((from_video if video is None else video) and shots) or not stills:
            shot = shots[int(np.searchsorted(shares, rng.random(), side="right"))]
            clip = self._video_clip(rng, shot, num_frames, size, bool(backwards))
        elif self.pages and rng.random() < self.data.page_share:
            return self._still_clip(rng, self.pages, num_frames, size, bool(backwards), _PAGE_FARTHEST)
        else:
            clip = self._still_clip(rng, stills, num_frames, size, bool(backwards))
        clip = clip.mirrored() if mirrored else clip
        return clip.transposed() if transposed else clip

    def _video_clip(self, rng: np.random.Generator, shot: Shot, num_frames: int, size: int, backwards: bool) -> Clip:
        frames = draw_frames(rng, len(shot), num_frames, self.data)
        frames = range(frames.start + shot.start, frames.stop + shot.start, frames.step)
        grid = 1 if shot.lr is None else 4
        top, left = (grid * int(rng.integers((edge - size) // grid + 1)) for edge in (shot.height, shot.width))
        hr, lr = shot.read(frames, top, left, size)
        name = f"{shot.name} frames {frames[0]} to {frames[-1]} by {frames.step} {_crop_name(top, left, size)}"
        if backwards:
            hr, lr, name = hr.flip(0), None if lr is None else lr.flip(0), f"{name} backwards"
        return Clip(frames=hr, name=name, lr=lr)

    def _still_clip(
        self,
        rng: np.random.Generator,
        stills: list[Still],
        num_frames: int,
        size: int,
        backwards: bool,
        farthest: float = FARTHEST,
    ) -> Clip:
        still = stills[int(rng.integers(len(stills)))]
        photo = still.load()
        if num_frames == 1 and rng.random() < 0.5:  # untouched pixels are the sharpest
            places = [[int(rng.integers(edge - size + 1)) for edge in photo.shape[:2]] for _ in range(2)]
            crop, (top, left) = max(
                ((_cut(photo, *place, size), place) for place in places), key=lambda c: detail(c[0])
            )
            return Clip(frames=crop[None], name=f"{still.name()} {_crop_name(top, left, size)}")
        front, name = None, still.name()
        if num_frames > 1 and rng.random() < FRONT_SHARE:
            other = stills[int(rng.integers(len(stills)))]
            front, name = other.load(), f"{name} behind {other.name()}"
        seed = int(rng.integers(2**63))
        # Nothing is drawn where no camera is fixed, so that what was drawn before there were such stays as it was.
        fixed = num_frames > 1 and self.data.fixed_camera > 0 and rng.random() < self.data.fixed_camera
        scene = draw_scene(np.random.default_rng(seed), num_frames, (size, size), photo, front, fixed, farthest)
        frames, flow, visible = (scene.reversed() if backwards else scene).render()
        motion = "before a fixed camera" if fixed else "in motion"
        name = f"{name} {motion} {seed:x}, {num_frames} of {size}x{size}" + (" backwards" if backwards else "")
        return Clip(frames=frames, name=name, flow=flow, visible=visible)

    def _draw_crop(self, rng: np.random.Generator, size: int) -> Tensor:
        shots, shares, stills = self._choose_from(1, size)
        if stills:
            photo = stills[int(rng.integers(len(stills)))].load()
            places = [[int(rng.integers(edge - size + 1)) for edge in photo.shape[:2]] for _ in range(2)]
            crops = [_cut(photo, top, left, size) for top, left in places]
        else:
            shot = shots[int(np.searchsorted(shares, rng.random(), side="right"))]
            frame = int(rng.integers(shot.start, shot.stop))
            places = [[int(rng.integers(edge - size + 1)) for edge in (shot.height, shot.width)] for _ in range(2)]
            crops = [shot.frames.read(range(frame, frame + 1), top, left, size)[0] for top, left in places]
        return max(crops, key=detail)

    def _choose_from(self, num_frames: int, size: int) -> tuple[list[Shot], np.ndarray, list[Still]]:
        """Return the shots that are long and large enough, their cumulative shares, and the stills."""
        if (num_frames, size) not in self._usable:
            shots = [shot for shot in self._large(self.shots, size) if len(shot) >= num_frames]
            stills = self._large(self.stills, size)
            if not shots and not stills:
                longest = max((len(shot) for shot in self.shots), default=0)
                largest = max((min(each.height, each.width) for each in (*self.shots, *self.stills)), default=0)
                raise InputError(
                    f"{self.origin} has nothing for clips of {num_frames} frames of {size}x{size}: its longest shot "
                    f"has {longest} frames, the shorter edge of its largest picture {largest} pixels; lower "
                    "stage.num_frames or stage.lr_size, or add other material"
                )
            weights = np.cumsum([min(len(shot), _LONG_SHOT) for shot in shots], dtype=np.float64)
            self._usable[num_frames, size] = shots, weights / (weights[-1] if len(weights) else 1), stills
        return self._usable[num_frames, size]

    def _large(self, material: list, size: int) -> list:
        small = [each for each in material if min(each.height, each.width) < size]
        if small:
            files = list(dict.fromkeys(f"{each.file} ({each.width}x{each.height})" for each in small))
            self._say(f"left out, smaller than crops of {size}x{size}: {name_some(files)}")
        return [each for each in material if min(each.height, each.width) >= size]

    def _say(self, message: str) -> None:
        if message not in self._reported:
            self._reported.add(message)
            self._report(message)


def draw_frames(rng: np.random.Generator, length: int, num_frames: int, data: DataConfig) -> range:
    """Draw which of a shot's `length` frames make a clip, by `data.mode` and `data.stride`."""
    longest = (length - 1) // (num_frames - 1) if num_frames > 1 else 1
    stride = longest if data.mode == "full" else int(rng.integers(1, min(data.stride, longest) + 1))
    span = (num_frames - 1) * stride + 1
    room = length - span
    step = max(1, span // 2) if data.mode == "slide" else 1
    first = 0 if data.mode == "head" else step * int(rng.integers(room // step + 1))
    return range(first, first + span, stride)


def split(tokens: Sequence[str], held_out: float) -> list[bool]:
    """Return for each piece of material whether it is held out.

    A token's hash decides, so that adding material moves nothing; but where there are two different tokens or more,
    the lowest is held out and the highest trained on whatever the share, unless that is 0.
    """
    values = [int.from_bytes(hashlib.sha256(token.encode()).digest()[:8], "big") / 2**64 for token in tokens]
    if held_out == 0 or len(set(values)) < 2:
        return [False] * len(values)
    lowest, highest = min(values), max(values)
    return [(value < held_out or value == lowest) and value != highest for value in values]


def fingerprint(path: Path) -> str:
    """Return twelve digits that tell a file's content: its size, and 64 KiB of its beginning, middle and end."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - _BLOCK)):
            file.seek(start)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:12]


def _crop_name(top: int, left: int, size: int) -> str:
    return f"at {left},{top} of {size}x{size}"


def _cut(photo: np.ndarray, top: int, left: int, size: int) -> Tensor:
    return torch.from_numpy(photo[top : top + size, left : left + size].copy()).float() / 255


def detail(crop: Tensor) -> float:
    """Return the mean change between neighbouring pixels of [H,W,3]."""
    return ((crop[1:] - crop[:-1]).abs().mean() + (crop[:, 1:] - crop[:, :-1]).abs().mean()).item()
