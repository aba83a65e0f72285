"""Any frames of a video file, quickly and exactly: one pass that lists frames and cuts, then seeks.

`index_video` decodes a file once and notes every frame's timestamp, which of them are keyframes, and the shots.
`VideoFile.read` then seeks to the keyframe before the wanted frame and decodes forward; a frame is known by its
timestamp, and where a seek misses it, decoding begins earlier, at last at the file's beginning, so that what comes out
is always what playing the file from its start would show. Knows nothing about clips or training.
"""

import bisect
import dataclasses
import itertools
import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from adcvsr_core.errors import InputError
from adcvsr_core.pixels import ColorTags, frame_to_rgb, resize, upright
from adcvsr_core.shots import cut_scores, describe
from adcvsr_core.video import read_video

from .clips import fingerprint

LEAST_FRAMES = 5
"""Shorter shots are left out: flashes, and cuts found where there are none."""
# A cut is what `upscale` cuts at, or a lower score that stands out from its neighbours': here the whole file is known,
# and a cut too many shortens a shot, while one too few is trained across.
_SURE, _LEAST, _RATIO, _AROUND = 0.4, 0.1, 2.5, 3
_THUMBNAIL = (64, 36)
_CHUNK = 64
_MOST_OPEN = 4
_VERSION = 1
# `pixels.upright`'s (transpose, flip_x, flip_y) of a turn in degrees clockwise.
_TURNS = {0: (False, False, False), 90: (True, True, False), 180: (False, True, True), 270: (True, False, True)}


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """What one pass over a video file found.

    Attributes:
        fingerprint: of the file's content.
        height, width: of the upright frames with square pixels.
        stored: (height, width) of the frames as stored.
        rotation: degrees clockwise that make them upright.
        color: resolved tags.
        num_frames: how many are displayed.
        pts: timestamp of each, rising; empty = they cannot be told apart by it and are counted from the beginning.
        keyframes: numbers of the frames that decoding can begin at.
        shots: frames [start, stop) without a cut and without damage.
        notes: what the user should know.
    """

    fingerprint: str
    height: int
    width: int
    stored: tuple[int, int]
    rotation: int
    color: ColorTags
    num_frames: int
    pts: tuple[int, ...]
    keyframes: tuple[int, ...]
    shots: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]


def index_video(path: Path) -> VideoIndex:
    """Decode a file once.

    Raises:
        InputError: it is no video, or no frame of it is whole.
    """
    with read_video(path) as reader:
        info = reader.info
    pts, keyframes, bad, scores, waiting = [], [], [], [], []
    with _open(path) as container:
        stream = _video_stream(container)
        # Threads over frames are quick, and safe here where every file is read to its end.
        stream.thread_type = "AUTO"
        stored = None
        for number, (frame, is_damaged) in enumerate(_decode(container, stream)):
            stored = stored or (frame.height, frame.width)
            pts.append(frame.pts)
            bad.append(is_damaged or (frame.height, frame.width) != stored)
            if frame.key_frame:
                keyframes.append(number)
            waiting.append(frame.reformat(*_THUMBNAIL, "rgb24", interpolation="AREA").to_ndarray())
            if len(waiting) == _CHUNK:
                scores += _take_scores(waiting)
    shots = _shots(find_cuts(np.array(scores + _take_scores(waiting))), bad)
    if not shots:
        raise InputError(f"{path} holds no undamaged frames; convert it anew from its original")
    has_order = None not in pts and all(a < b for a, b in itertools.pairwise(pts))
    return VideoIndex(
        fingerprint=fingerprint(path),
        height=info.height,
        width=info.width,
        stored=stored,
        rotation=info.rotation,
        color=info.color.resolve(stored[0]),
        num_frames=len(pts),
        pts=tuple(pts) if has_order else (),
        keyframes=tuple(keyframes),
        shots=tuple(shots),
        notes=tuple(_notes(path, bad, has_order)),
    )


def cached_index(path: Path, folder: Path | None) -> tuple[VideoIndex, bool]:
    """Return a file's index, from memory or `folder` where its content is known there, and whether it was made now."""
    content = fingerprint(path)
    if content in _known:
        return _known[content], False
    stored = None if folder is None else folder / f"{content}.json"
    index = None
    if stored is not None and stored.exists():
        with suppress(ValueError, TypeError, KeyError):  # written by another version
            index = _from_json(stored.read_text())
    if index is None:
        _known[content] = index_video(path)
        if stored is not None:
            folder.mkdir(parents=True, exist_ok=True)
            partial = stored.with_suffix(f".{os.getpid()}.part")
            partial.write_text(json.dumps({"version": _VERSION} | dataclasses.asdict(_known[content])))
            os.replace(partial, stored)
        return _known[content], True
    _known[content] = index
    return index, False


_known: dict[str, VideoIndex] = {}


class VideoFile:
    """A video file whose frames can be read in any order. Holds nothing open itself, so it can go to any process.

    Args:
        path: the file.
        index: what `index_video` found in it.
    """

    def __init__(self, path: Path, index: VideoIndex):
        self.path, self.index = path, index

    def read(self, frames: range, top: int, left: int, size: int) -> Tensor:
        """Return the same crop of some frames, in rising order: [T,size,size,3] in 0..1.

        Raises:
            InputError: the file is gone or has changed since it was indexed.
        """
        opened = _borrow(self.path, self.index)
        return torch.stack([self._crop(opened.frame(number), top, left, size) for number in frames])

    def _crop(self, frame: av.VideoFrame, top: int, left: int, size: int) -> Tensor:
        index = self.index
        transform = _TURNS[index.rotation]
        transpose, flip_x, flip_y = transform
        if {index.height, index.width} != set(index.stored):  # pixels that are not square
            square_width = index.height if transpose else index.width
            whole = upright(resize(frame_to_rgb(frame, index.color), index.stored[0], square_width), transform)
            return whole[top : top + size, left : left + size].contiguous()
        left = index.width - left - size if flip_x else left
        top = index.height - top - size if flip_y else top
        if transpose:
            top, left = left, top
        return upright(crop_to_rgb(frame, index.color, top, left, size), transform).contiguous()


def crop_to_rgb(frame: av.VideoFrame, tags: ColorTags, top: int, left: int, size: int) -> Tensor:
    """Return `frame_to_rgb`'s square crop [size,size,3], without converting the rest of a planar frame."""
    form = frame.format
    if len(form.components) != len(frame.planes) or any(plane.line_size < 0 for plane in frame.planes):
        return frame_to_rgb(frame, tags)[top : top + size, left : left + size]
    # Two samples of chroma around the crop are what interpolating it looks at.
    steps = (16 // form.chroma_height(16), 16 // form.chroma_width(16))
    lows = [max(0, (start // step - 2) * step) for start, step in zip((top, left), steps, strict=True)]
    highs = [
        min(edge, (-(-(start + size) // step) + 2) * step)
        for start, step, edge in zip((top, left), steps, (frame.height, frame.width), strict=True)
    ]
    part = av.VideoFrame(highs[1] - lows[1], highs[0] - lows[0], form.name)
    bytes_each = (max(component.bits for component in form.components) + 7) // 8
    for source, target in zip(frame.planes, part.planes, strict=True):
        is_small = (source.height, source.width) != (frame.height, frame.width)
        y, x = (low // step if is_small else low for low, step in zip(lows, steps, strict=True))
        rows = np.frombuffer(source, np.uint8).reshape(-1, source.line_size)[y : y + target.height]
        width = target.width * bytes_each
        np.frombuffer(target, np.uint8).reshape(-1, target.line_size)[: target.height, :width] = rows[
            :, x * bytes_each : x * bytes_each + width
        ]
    top, left = top - lows[0], left - lows[1]
    return frame_to_rgb(part, tags)[top : top + size, left : left + size]


class _OpenVideo:
    """An open file and where its decoder stands."""

    def __init__(self, path: Path, index: VideoIndex):
        if not path.exists() or fingerprint(path) != index.fingerprint:
            raise InputError(f"{path} was changed or removed while it was in use; start again")
        self._path, self._index = path, index
        self._container: av.container.InputContainer | None = None
        self._last: tuple[int, av.VideoFrame] | None = None
        self._rewind()

    def frame(self, wanted: int) -> av.VideoFrame:
        """Return frame number `wanted`."""
        if self._last is not None and self._last[0] == wanted:
            return self._last[1]
        for start in self._starts(wanted):
            if start == 0:
                self._rewind()
            elif start is not None:
                self._seek(start)
            if self._advance(wanted, from_beginning=start == 0):
                return self._last[1]
        raise InputError(f"{self._path}: frame {wanted} no longer decodes; was the file changed? start again")

    def close(self) -> None:
        if self._container is not None:
            self._frames.close()
            self._container.close()
            self._container = None

    def _starts(self, wanted: int) -> list[int | None]:
        """Return where to decode from, the quickest first; None = where the decoder stands, 0 = the beginning."""
        starts: list[int | None] = []
        keyframes = self._index.keyframes if self._index.pts else ()
        nearest = bisect.bisect_right(keyframes, wanted) - 1
        key = keyframes[nearest] if nearest >= 0 else 0
        if self._next is not None and key <= self._next <= wanted:
            starts.append(None)
        starts += [each for each in reversed(keyframes[max(0, nearest - 1) : nearest + 1]) if each > 0]
        return [*starts, 0]

    def _rewind(self) -> None:
        self.close()
        self._container = _open(self._path)
        self._stream = _video_stream(self._container)
        # Frame threads can hang a worker that stops early; processes already share the cores.
        self._stream.thread_type, self._stream.thread_count = "SLICE", 1
        self._frames, self._next = _decode(self._container, self._stream), 0

    def _seek(self, keyframe: int) -> None:
        self._frames.close()
        with suppress(av.error.FFmpegError):  # then the frames are not where they should be, and that is noticed
            self._container.seek(self._index.pts[keyframe], stream=self._stream)
        self._frames, self._next = _decode(self._container, self._stream), None

    def _advance(self, wanted: int, from_beginning: bool) -> bool:
        """Decode up to a frame; False = it was missed."""
        for frame, is_damaged in self._frames:
            number = self._number(frame)
            if number is None:
                continue
            self._next = number + 1
            if number > wanted:
                return False
            if number == wanted:
                self._last = (number, frame)
                return from_beginning or not is_damaged
        self._next = None
        return False

    def _number(self, frame: av.VideoFrame) -> int | None:
        pts = self._index.pts
        if not pts:
            return self._next
        number = bisect.bisect_left(pts, frame.pts) if frame.pts is not None else len(pts)
        return number if number < len(pts) and pts[number] == frame.pts else None


_opened: OrderedDict[tuple[Path, str], _OpenVideo] = OrderedDict()
_owner = os.getpid()


def _borrow(path: Path, index: VideoIndex) -> _OpenVideo:
    """Return an open file, one of the few that this process keeps."""
    global _owner
    if _owner != os.getpid():  # a forked process shares its parent's place in each file
        _opened.clear()
        _owner = os.getpid()
    key = (path, index.fingerprint)
    if key not in _opened:
        _opened[key] = _OpenVideo(path, index)
        if len(_opened) > _MOST_OPEN:
            _opened.popitem(last=False)[1].close()
    _opened.move_to_end(key)
    return _opened[key]


def _open(path: Path) -> av.container.InputContainer:
    return av.open(f"file:{path}", "r", metadata_errors="replace")


def _video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream:
    pictures = av.stream.Disposition.attached_pic
    return next(stream for stream in container.streams.video if not stream.disposition & pictures)


def _decode(container: av.container.InputContainer, stream) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Yield every frame that decodes, and whether something was lost since the last keyframe."""
    is_damaged = False
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            is_damaged, packet = True, None
        try:
            frames = stream.decode(packet)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            is_damaged, frames = is_damaged or not isinstance(error, EOFError), []
        for frame in frames:
            is_damaged = frame.is_corrupt or (is_damaged and not frame.key_frame)
            yield frame, is_damaged
        if packet is None:
            return


def find_cuts(scores: np.ndarray) -> list[int]:
    """Return the frames that begin a new shot, from the score [T-1] in 0..1 of every pair of neighbours."""
    padded = np.pad(scores, _AROUND)
    shifts = [padded[i : i + len(scores)] for i in range(2 * _AROUND + 1) if i != _AROUND]
    stands_out = (scores > _LEAST) & (scores > _RATIO * np.max(shifts, axis=0))
    return [int(i) + 1 for i in np.nonzero((scores > _SURE) | stands_out)[0]]


def _take_scores(waiting: list[np.ndarray]) -> list[float]:
    """Return how much each pair of the waiting thumbnails looks like a cut, and forget all but the last."""
    if len(waiting) < 2:
        return []
    frames = torch.from_numpy(np.stack(waiting)).float() / 255
    del waiting[:-1]
    return cut_scores(*describe(frames)).tolist()


def _shots(cuts: list[int], bad: list[bool]) -> list[tuple[int, int]]:
    """Return [start, stop) of every run of good frames without a cut."""
    num_frames, beginnings = len(bad), {0, *cuts}
    shots, start = [], 0
    for number in range(num_frames + 1):
        if number == num_frames or bad[number] or number in beginnings:
            if number > start:
                shots.append((start, number))
            start = number + (number < num_frames and bad[number])
    least = min(LEAST_FRAMES, num_frames)
    return [(first, stop) for first, stop in shots if stop - first >= least]


def _notes(path: Path, bad: list[bool], has_order: bool) -> Iterator[str]:
    if any(bad):
        yield f"{path}: {sum(bad)} of {len(bad)} frames are damaged or of another size and are left out"
    if not has_order:
        yield f"{path} has no usable timestamps and is read from its beginning each time; convert it to be quicker"


def _from_json(text: str) -> VideoIndex:
    values = json.loads(text)
    if values.pop("version") != _VERSION:
        raise ValueError("another version")
    values["color"] = ColorTags(**values["color"])
    values["shots"] = tuple((start, stop) for start, stop in values["shots"])
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return VideoIndex(**(values | lists))
