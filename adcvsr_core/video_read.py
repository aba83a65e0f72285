"""Read a clip as chunks of upright, square-pixel float RGB, with exact timestamps.

A clip is a video file, one picture, or a folder of pictures. Every displayed frame comes out once, in
order; damaged parts are counted in `warnings`, never fatal while anything decodes. Memory holds one
chunk. Knows nothing of networks, of output files or of sound beyond noting that it exists.
"""

import os
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import torch
from torch import Tensor

from .errors import InputError
from .images import image_layout, is_image, list_images, read_image
from .pixels import FULL, ColorTags, bit_depth, display_transform, frame_to_rgb, has_alpha, resize, upright

Seconds = float | Fraction
_WIDEST_PIXEL = 16


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a clip is.

    Attributes:
        path: the file or folder.
        width: pixels per row of the delivered frames (upright, square pixels).
        height: rows of the delivered frames.
        fps: average frames per second.
        num_frames: frames in the whole clip; an estimate for video files, None = unknown.
        duration_seconds: length of the whole clip, None = unknown.
        time_base: seconds per tick of the timestamps.
        codec: FFmpeg's name of the codec ("png" and so on for pictures).
        pixel_format: FFmpeg's name of the stored pixel format.
        bit_depth: bits per component as stored.
        rotation: degrees clockwise that were applied to make the picture upright.
        sample_aspect: stored pixel aspect, 1 = square.
        has_alpha: whether the file carries transparency, which is not read.
        has_audio: whether the file has sound.
        num_subtitles: subtitle streams in the file.
        color: the file's own tags, unresolved.
        is_variable_rate: whether the container declares a varying rate, None = unknown.
    """

    path: Path
    width: int
    height: int
    fps: Fraction
    num_frames: int | None
    duration_seconds: Fraction | None
    time_base: Fraction
    codec: str
    pixel_format: str
    bit_depth: int
    rotation: int = 0
    sample_aspect: Fraction = Fraction(1)
    has_alpha: bool = False
    has_audio: bool = False
    num_subtitles: int = 0
    color: ColorTags = ColorTags()
    is_variable_rate: bool | None = None


def read_video(
    path: str | os.PathLike,
    *,
    start: Seconds = 0,
    end: Seconds | None = None,
    chunk: int = 8,
    image_fps: Seconds = 24,
) -> "VideoReader":
    """Open a clip for reading.

    Args:
        path: any file FFmpeg can read, one picture, or a folder of pictures.
        start: first moment to deliver, in seconds from the clip's beginning.
        end: moment to stop before, in seconds; None = the end.
        chunk: most frames per delivered tensor.
        image_fps: frames per second that pictures are given.

    Returns:
        A reader: a context manager that yields `[t, H, W, 3]` float32 CPU tensors, t <= chunk.

    Raises:
        InputError: missing, not a video, no frames, or a range that makes no sense.
    """
    return VideoReader(path, start=start, end=end, chunk=chunk, image_fps=image_fps)


class VideoReader:
    """See `read_video`. Iterating again starts again.

    Attributes:
        info: what the clip is.
        pts: seconds of each delivered frame, oldest first, counted from `start`. The consumer takes
            them off (`take_pts`), so the queue stays short.
        origin: the moment of the file's own timeline that is 0 in `pts`.
        limit: the moment of `pts` before which the clip ends, None = the end of the file.
        is_container: whether the clip is a video file, which may hold sound, and not pictures.
        skips_start: whether `start` cut anything.
        warnings: one line for each thing the user should know.
    """

    def __init__(
        self, path, *, start: Seconds = 0, end: Seconds | None = None, chunk: int = 8, image_fps: Seconds = 24
    ):
        self.path = Path(path)
        self.pts: deque[Fraction] = deque()
        self.warnings: list[str] = []
        self._chunk = chunk
        self._start, self._end = _seconds(start), None if end is None else _seconds(end)
        self.skips_start = self._start > 0
        self._active: Iterator[Tensor] | None = None
        if chunk < 1:
            raise InputError(f"chunk is {chunk}; expected at least 1 frame")
        if self._start < 0 or (self._end is not None and self._end <= self._start):
            raise InputError(f"start {start} s and end {end} s hold no frame; expected 0 <= start < end")
        if not self.path.exists():
            raise InputError(f"{self.path} does not exist; check the path")
        self._source = self._choose_source(image_fps)
        self.info: VideoInfo = self._source.info
        self.is_container = isinstance(self._source, _File)
        tick = self.info.time_base
        shift = -(-self._start // tick) * tick
        self.origin = self._source.origin + shift
        self.limit = None if self._end is None else self._end - shift
        self._shift = shift

    @property
    def num_frames(self) -> int | None:
        """Frames that will be delivered, an estimate for video files; None = unknown."""
        total = self.info.num_frames
        if total is None:
            return None if self._end is None else max(1, round((self._end - self._start) * self.info.fps))
        first = round(self._start * self.info.fps)
        last = total if self._end is None else min(total, -(-self._end * self.info.fps // 1))
        return max(0, int(last) - first)

    @property
    def has_alpha(self) -> bool:
        """Whether the clip carries transparency, which is not read."""
        return self.info.has_alpha

    def take_pts(self, num_frames: int) -> list[Fraction]:
        """Remove and return the oldest timestamps, in seconds."""
        return [self.pts.popleft() for _ in range(num_frames)]

    def close(self) -> None:
        """Stop reading and release the file."""
        if self._active is not None:
            self._active.close()
            self._active = None

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __iter__(self) -> Iterator[Tensor]:
        self.close()
        self.pts.clear()
        self._active = self._chunks()
        return self._active

    def _chunks(self) -> Iterator[Tensor]:
        waiting: list[Tensor] = []
        times: list[Fraction] = []
        num_frames = 0
        frames = self._source.frames(self._start, self._end, self.warnings)
        try:
            for seconds, frame in frames:
                waiting.append(frame)
                times.append(seconds - self._shift)
                num_frames += 1
                if len(waiting) == self._chunk:
                    self.pts.extend(times)
                    yield torch.stack(waiting)
                    waiting, times = [], []
            if waiting:
                self.pts.extend(times)
                yield torch.stack(waiting)
        finally:
            frames.close()
        if num_frames == 0:
            length = self.info.duration_seconds
            known = "" if length is None else f", which is {float(length):.3f} s long"
            raise InputError(
                f"no frame from {float(self._start):g} s on in {self.path}{known}; choose an earlier start"
            )

    def _choose_source(self, image_fps: Seconds) -> "_File | _Images":
        if self.path.is_dir():
            return _Images(self.path, list_images(self.path), _seconds(image_fps))
        if is_image(self.path):
            return _Images(self.path, [self.path], _seconds(image_fps))
        return _File(self.path, self.warnings)


class _Images:
    """Pictures as a clip of constant rate."""

    origin = Fraction(0)

    def __init__(self, path: Path, files: list[Path], fps: Fraction):
        if fps <= 0:
            raise InputError(f"image_fps is {fps}; expected more than 0")
        self._files = files
        height, width, bits, alpha = image_layout(files[0])
        self.info = VideoInfo(
            path=path,
            width=width,
            height=height,
            fps=fps,
            num_frames=len(files),
            duration_seconds=len(files) / fps,
            time_base=1 / fps,
            codec=files[0].suffix[1:].lower(),
            pixel_format="rgb24" if bits == 8 else "rgb48le",
            bit_depth=bits,
            has_alpha=alpha,
            color=ColorTags(matrix=0, range=FULL, primaries=1, transfer=13),
            is_variable_rate=False,
        )

    def frames(self, start: Fraction, end: Fraction | None, warnings: list[str]) -> Iterator[tuple[Fraction, Tensor]]:
        size = self.info.height, self.info.width
        for index, file in enumerate(self._files):
            seconds = index / self.info.fps
            if seconds < start or (end is not None and seconds >= end):
                continue
            frame = read_image(file)
            if frame.shape[:2] != size:
                found = f"{file} is {frame.shape[1]}x{frame.shape[0]}"
                raise InputError(
                    f"{found}, but {self._files[0].name} is {size[1]}x{size[0]}; "
                    "one folder is one clip: resize it or move it away"
                )
            yield seconds, frame


class _File:
    """A video file; opened anew for every pass."""

    def __init__(self, path: Path, warnings: list[str]):
        self._path = path
        with _open(path) as container:
            stream = _video_stream(container, path)
            frame = next(_decode(container, stream, []), None)
            if frame is None:
                raise InputError(
                    f"{path} has a video stream ({_codec(stream)}) but no frame decodes; the file is empty or damaged"
                )
            self._transform = display_transform(_display_matrix(frame))
            self._size = frame.height, frame.width
            aspect = self._aspect(stream, warnings)
            square_width = max(1, round(frame.width * aspect))
            upright_size = (square_width, frame.height) if self._transform[0] else (frame.height, square_width)
            self._square_width = square_width
            self._time_base = stream.time_base
            start_time = Fraction(container.start_time or 0, av.time_base)
            self.origin = round(start_time / stream.time_base) * stream.time_base
            color = _color_tags(stream, frame)
            self._tags = color.resolve(frame.height)
            self.info = _describe(path, container, stream, frame, upright_size, aspect, color, self._transform)

    def frames(self, start: Fraction, end: Fraction | None, warnings: list[str]) -> Iterator[tuple[Fraction, Tensor]]:
        """Yield (seconds from the clip's beginning, upright frame) for start <= seconds < end."""
        resized = False
        for seconds, frame in self._timed(start, warnings):
            if seconds < start:
                continue
            if end is not None and seconds >= end:
                return
            rgb = frame_to_rgb(frame, self._tags)
            if rgb.shape[:2] != self._size and not resized:
                resized = True
                warnings.append(
                    f"the picture changes from {self._size[1]}x{self._size[0]} to {rgb.shape[1]}x{rgb.shape[0]} "
                    f"at {float(seconds):.2f} s; such frames are resized to the first size"
                )
            yield seconds, upright(resize(rgb, self._size[0], self._square_width), self._transform).contiguous()

    def _timed(self, start: Fraction, warnings: list[str]) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Yield frames with their seconds, from a keyframe at or before `start` on."""
        if start > 0:
            frames = self._pass(start, warnings)
            try:
                first = next(frames, None)
                if first is not None and first[0] <= start:
                    yield first
                    yield from frames
                    return
            finally:
                frames.close()
        yield from self._pass(Fraction(0), warnings)

    def _pass(self, start: Fraction, warnings: list[str]) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        with _open(self._path) as container:
            stream = _video_stream(container, self._path)
            stream.thread_type = "AUTO"
            if start > 0:
                try:
                    container.seek(int((self.origin + start) / self._time_base), stream=stream)
                except av.error.FFmpegError:
                    return
            following = None
            num_missing = 0
            for frame in _decode(container, stream, warnings):
                if frame.pts is None:
                    seconds = following or Fraction(0)
                else:
                    seconds = frame.pts * (frame.time_base or self._time_base) - self.origin
                    num_missing += 0 if following is None else max(0, round((seconds - following) * self.info.fps))
                following = seconds + 1 / self.info.fps
                yield seconds, frame
            if num_missing and self.info.is_variable_rate is False:
                warnings.append(f"about {num_missing} frames are missing from {self._path.name}; it may be damaged")

    def _aspect(self, stream: av.video.stream.VideoStream, warnings: list[str]) -> Fraction:
        aspect = stream.sample_aspect_ratio or Fraction(1)
        if not Fraction(1, _WIDEST_PIXEL) <= aspect <= _WIDEST_PIXEL:
            warnings.append(f"{self._path.name} claims pixels {aspect} times as wide as high; taken as square")
            return Fraction(1)
        return aspect


def _seconds(value: Seconds) -> Fraction:
    """Return the plain fraction that a decimal like 0.1 or 0.0333333 stands for."""
    try:
        return Fraction(value).limit_denominator(1_000_000)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{value} is not a time; expected seconds") from error


def _open(path: Path) -> av.container.InputContainer:
    try:
        return av.open(f"file:{path}", "r", metadata_errors="replace")
    except av.error.FFmpegError as error:
        reason = "not a video that FFmpeg can read" if isinstance(error, ValueError) else error.strerror
        raise InputError(f"cannot open {path}: {reason}; expected a video, an image or a folder of images") from error


def _video_stream(container: av.container.InputContainer, path: Path) -> av.video.stream.VideoStream:
    pictures = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise InputError(f"{path} has no video stream, only {kinds}; choose a file with a picture")
    if streams[0].codec_context is None:
        raise InputError(f"{path}: this FFmpeg build cannot decode its video codec; convert it to H.264 first")
    return streams[0]


def _codec(stream: av.video.stream.VideoStream) -> str:
    return stream.codec_context.name


def _decode(container, stream, warnings: list[str]) -> Iterator[av.VideoFrame]:
    """Yield every frame that decodes; sum up what did not in one warning."""
    num_errors = num_damaged = 0
    for packet in _demux(container, stream, warnings):
        try:
            frames = stream.decode(packet)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            num_errors += not isinstance(error, EOFError)
            continue
        for frame in frames:
            num_damaged += frame.is_corrupt
            yield frame
    if num_errors or num_damaged:
        warnings.append(
            f"the file is damaged: {num_errors} packets could not be decoded and were left out, "
            f"{num_damaged} frames were decoded with errors"
        )


def _demux(container, stream, warnings: list[str]) -> Iterator[av.Packet | None]:
    """Yield the stream's packets, then one that flushes the decoder, whatever happens on the way."""
    try:
        yield from container.demux(stream)
    except av.error.FFmpegError as error:
        warnings.append(f"the file is damaged: reading stopped early ({error.strerror})")
        yield None


def _display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    side = frame.side_data.get("DISPLAYMATRIX")
    return None if side is None else struct.unpack("=9i", bytes(side)[:36])


def _color_tags(stream: av.video.stream.VideoStream, frame: av.VideoFrame) -> ColorTags:
    """Merge the frame's tags, which the bitstream gave, with the container's."""
    context = stream.codec_context
    unknown = (0, 2)
    matrix = frame.colorspace if frame.colorspace != 2 else context.colorspace
    code_range = frame.color_range or context.color_range
    if not code_range and frame.format.name.startswith(("gray", "yuvj")):
        code_range = FULL
    primaries = getattr(frame, "color_primaries", 2)  # PyAV before 15 has these on the context only
    transfer = getattr(frame, "color_trc", 2)
    primaries = context.color_primaries if primaries in unknown else primaries
    transfer = context.color_trc if transfer in unknown else transfer
    return ColorTags(
        matrix=matrix,
        range=code_range,
        primaries=2 if primaries in unknown else primaries,
        transfer=2 if transfer in unknown else transfer,
    )


def _describe(path, container, stream, frame, size, aspect, color, transform) -> VideoInfo:
    fps = stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25)
    duration = None
    if stream.duration:
        duration = stream.duration * stream.time_base
    elif container.duration:
        duration = Fraction(container.duration, av.time_base)
    num_frames = stream.frames or (None if duration is None else max(1, round(duration * fps)))
    base_rate = stream.base_rate
    transpose, flip_x, flip_y = transform
    return VideoInfo(
        path=path,
        width=size[1],
        height=size[0],
        fps=fps,
        num_frames=num_frames,
        duration_seconds=duration,
        time_base=stream.time_base,
        codec=_codec(stream),
        pixel_format=frame.format.name,
        bit_depth=bit_depth(frame.format.name),
        rotation=(90 if flip_x else 270) if transpose else (180 if flip_x and flip_y else 0),
        sample_aspect=aspect,
        has_alpha=has_alpha(frame.format.name),
        has_audio=bool(container.streams.audio),
        num_subtitles=len(container.streams.subtitles),
        color=color,
        is_variable_rate=None if base_rate is None else abs(base_rate - fps) > fps / 1000,
    )
