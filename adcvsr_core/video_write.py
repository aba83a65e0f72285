"""Write float RGB frames as a video or as numbered pictures, with exact timestamps.

Work happens under a `.part` name in the target's folder; the finished name appears in one step, on
success only. Colours are tagged with the matrix and range that were used. Sound and subtitles come
over by `remux`. Knows nothing of networks.
"""

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
from torch import Tensor

from .errors import Cancelled, InputError, OutputError
from .images import IMAGE_SUFFIXES, PictureSink, matching_pictures
from .pixels import LIMITED, RGB_MATRIX, ColorTags, check_frames, rgb_to_frame
from .remux import Passengers
from .video_codecs import CODECS, Codec
from .video_read import VideoReader

_SRGB = 13
_MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
_FINE_EDITS = {"movie_timescale": "720000"}  # else a stream's start is rounded to a millisecond


class VideoWriter:
    """Write one clip; use as a context manager.

    A clean exit finishes the file under `path`. An exception removes everything, except that on
    `Cancelled` and on anything that is no `Exception` (KeyboardInterrupt) what was written so far is
    finished, playable, and kept under `part_path`.

    Args:
        path: a video file, one picture, a pattern such as `frames_%05d.png`, or a folder, given with a
            slash at its end, for `frame_000001.png` and so on.
        width: pixels per row.
        height: rows.
        fps: frames per second; None = the source's.
        source: the reader whose colours, timestamps, bit depth, sound, subtitles and tags carry over.
        codec: "auto" (h264, or vp9 in .webm) | a key of `CODECS`. Pictures ignore it.
        crf: quality where the codec has it, lower is better; None = the codec's default.
        bit_depth: bits per component to keep at least; None = the source's, else 8.
        audio_from: "source" | a media file, whose beginning is that of `source` as trimmed | None = silent.
        overwrite: whether an existing file may be replaced.

    Attributes:
        part_path: where the unfinished or, after an interrupt, the kept part is; None once finished.
        num_frames: frames written so far.
        pixel_format: what is stored.
        warnings: one line for each thing the user should know.

    Raises:
        OutputError: name taken, no such folder, no permission, codec and container that do not fit.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        width: int,
        height: int,
        fps: Fraction | float | None = None,
        source: VideoReader | None = None,
        codec: str = "auto",
        crf: int | None = None,
        bit_depth: int | None = None,
        audio_from: str | os.PathLike | None = "source",
        overwrite: bool = False,
    ):
        self.path, self.width, self.height = Path(path), width, height
        self.num_frames = 0
        self.warnings: list[str] = []
        self._last_tick = -1
        if fps is None and source is None:
            raise OutputError("no frame rate: give fps, or the source clip")
        self.fps = source.info.fps if fps is None else Fraction(fps).limit_denominator(1_000_000)
        if self.fps <= 0 or width < 1 or height < 1:
            raise OutputError(f"cannot write {width}x{height} at {self.fps} fps; expected all above 0")
        depth = bit_depth or (source.info.bit_depth if source else 8)
        pictures = _picture_pattern(os.fspath(path))
        inputs = [source.path] if source else []
        if audio_from not in ("source", None):
            inputs.append(Path(audio_from))
        _check_target(self.path, inputs, overwrite, pictures)
        with _translated(self.path):
            if pictures:
                self._sink = PictureSink(pictures, depth, self.warnings)
            else:
                self._sink = _FileSink(self, _choose_codec(self.path, codec), depth, crf, source, audio_from)
        self.pixel_format = self._sink.pixel_format
        self.part_path: Path | None = self._sink.part_path

    def write(self, frames: Tensor, pts_seconds: Sequence[Fraction | float] | None = None) -> None:
        """Append frames.

        Args:
            frames: `[t, height, width, 3]` float RGB in 0..1, t >= 0.
            pts_seconds: t moments of display, increasing; None = evenly at `fps`.

        Raises:
            InputError: wrong shape or type.
            OutputError: the file cannot take them.
        """
        check_frames(frames, self.height, self.width)
        if pts_seconds is None:
            pts_seconds = [(self.num_frames + index) / self.fps for index in range(len(frames))]
        if len(pts_seconds) != len(frames):
            raise InputError(f"{len(frames)} frames came with {len(pts_seconds)} timestamps; expected one each")
        with _translated(self.path):
            for frame, seconds in zip(frames, pts_seconds):
                self._sink.put(frame, self._tick(seconds))
                self.num_frames += 1

    def close(self) -> None:
        """Finish the file under its name.

        Raises:
            OutputError: nothing was written, or the disk refused.
        """
        if self.part_path is None:
            return
        try:
            if self.num_frames == 0:
                raise OutputError(f"no frame was written, so {self.path} was not made")
            with _translated(self.path):
                self._sink.finish(with_rest=True)
                self._sink.publish(self.path)
        except BaseException:
            self._discard()
            raise
        self.part_path = None

    def abort(self, *, keep: bool) -> None:
        """Give up the finished name; `keep` leaves a playable part under `part_path`."""
        if self.part_path is None:
            return
        if not keep or self.num_frames == 0:
            self._discard()
            return
        try:
            with _translated(self.path):
                self._sink.finish(with_rest=False)
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, error, _) -> None:
        if kind is None:
            self.close()
        else:
            self.abort(keep=isinstance(error, Cancelled) or not isinstance(error, Exception))

    def _tick(self, seconds: Fraction | float) -> int:
        tick = round(Fraction(seconds) / self._sink.time_base)
        if tick <= self._last_tick:
            tick = self._last_tick + 1
            message = "some timestamps do not increase; those frames follow one tick after the frame before"
            if message not in self.warnings:
                self.warnings.append(message)
        self._last_tick = tick
        return tick

    def _discard(self) -> None:
        self._sink.discard()
        self.part_path = None


class _FileSink:
    """One container with its encoder and its passengers."""

    def __init__(self, writer: VideoWriter, codec: Codec, depth: int, crf, source: VideoReader | None, audio_from):
        path = writer.path
        self.part_path = path.with_name(f"{path.stem}.part{path.suffix}")
        self.time_base = source.info.time_base if source else _fine_time_base(writer.fps)
        self.pixel_format = _choose_format(codec, depth, writer.width, writer.height, writer.warnings)
        self._tags = _choose_tags(source, writer.height, self.pixel_format, codec)
        self._passengers: list[Passengers] = []
        self._reached: Fraction | None = None
        self._num_put = 0
        muxer = _MUXERS[path.suffix.lower()]
        options = {} if muxer in ("matroska", "webm") else _FINE_EDITS
        self._container = av.open(f"file:{self.part_path}", "w", format=muxer, container_options=options)
        try:
            self._stream = self._add_video(writer, codec, crf)
            self._add_passengers(source, audio_from, writer.warnings)
            self._container.start_encoding()
        except BaseException:
            self.discard()
            raise

    def put(self, frame: Tensor, tick: int) -> None:
        picture = rgb_to_frame(frame, self.pixel_format, self._tags)
        picture.pts, picture.time_base = tick, self.time_base
        self._mux(self._stream.encode(picture))
        self._num_put += 1

    def finish(self, *, with_rest: bool) -> None:
        """Write what is in flight and the trailer; `with_rest` adds sound beyond the last frame."""
        packets = self._stream.encode(None)
        if self._num_put <= 2:  # too short to reorder, and x265 leaves dts unset in clips shorter than its delay
            for packet in packets:
                packet.dts = packet.pts
        self._mux(packets)
        for passengers in self._passengers:
            passengers.copy_until(None if with_rest else self._reached)
            passengers.finish()
            passengers.close()
        self._container.close()
        with open(self.part_path, "r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())

    def publish(self, path: Path) -> None:
        os.replace(self.part_path, path)

    def discard(self) -> None:
        """Remove every trace, whatever state the container is in."""
        for passengers in self._passengers:
            passengers.close()
        with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):  # removed below, so no trailer needed
            self._container.close()
        self.part_path.unlink(missing_ok=True)

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            stamp = packet.pts * packet.time_base
            self._reached = stamp if self._reached is None else max(self._reached, stamp)
            self._container.mux(packet)
        for passengers in self._passengers if packets else ():
            passengers.copy_until(self._reached)

    def _add_passengers(self, source: VideoReader | None, audio_from, warnings: list[str]) -> None:
        if source is not None and source.is_container:
            passengers = Passengers(
                source.path,
                self._container,
                kinds=("audio", "subtitle") if audio_from == "source" else ("subtitle",),
                origin=source.origin,
                limit=source.limit,
                skips_start=source.skips_start,
                warnings=warnings,
            )
            self._passengers.append(passengers)
            passengers.copy_tags(self._stream)
        if audio_from not in ("source", None):
            limit = source.limit if source else None
            self._passengers.append(
                Passengers(Path(audio_from), self._container, kinds=("audio",), limit=limit, warnings=warnings)
            )

    def _add_video(self, writer: VideoWriter, codec: Codec, crf: int | None) -> av.video.stream.VideoStream:
        options = dict(codec.options)
        if codec.crf is not None:
            if crf is not None and not 0 <= crf <= codec.worst_crf:
                raise OutputError(f"crf {crf} is outside 0 (best) .. {codec.worst_crf} of {codec.encoder}")
            options["crf"] = str(codec.crf if crf is None else crf)
        elif crf is not None:
            writer.warnings.append(f"crf {crf} is not used: {codec.encoder} has no such setting")
        stream = self._container.add_stream(codec.encoder, rate=writer.fps, options=options)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = writer.width, writer.height, self.pixel_format
        stream.time_base = context.time_base = self.time_base
        context.colorspace, context.color_range = self._tags.matrix, self._tags.range
        context.color_primaries, context.color_trc = self._tags.primaries, self._tags.transfer
        if codec.encoder == "libx265" and writer.path.suffix.lower() != ".mkv":
            context.codec_tag = "hvc1"
        return stream


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn what the disk, the muxer or the encoder refuses into one clear OutputError."""
    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        advice = {
            errno.ENOSPC: "the disk is full; free space or write elsewhere",
            errno.EDQUOT: "your disk quota is used up; free space or write elsewhere",
            errno.EFBIG: "the file grew beyond what this disk or account allows; write elsewhere",
            errno.EACCES: "no permission; write elsewhere",
            errno.EPERM: "no permission; write elsewhere",
            errno.EROFS: "the disk is read-only; write elsewhere",
        }
        raise OutputError(f"cannot write {path}: {advice.get(error.errno) or error.strerror or error}") from error


def _picture_pattern(path: str) -> str | None:
    """Return the file name pattern if pictures are meant, None for a video."""
    if path.endswith(("/", os.sep)) or (Path(path).is_dir() and Path(path).suffix.lower() not in _MUXERS):
        return os.path.join(path, "frame_%06d.png")
    return path if Path(path).suffix.lower() in IMAGE_SUFFIXES else None


def _check_target(path: Path, inputs: list[Path], overwrite: bool, pattern: str | None) -> None:
    target = Path(pattern) if pattern else path
    folder = path.parent if pattern and target.parent == path else target.parent
    if not folder.is_dir():
        raise OutputError(f"{folder} is no folder; make it first, or write elsewhere")
    part = target.with_name(f"{target.stem}.part{target.suffix}")
    for other in inputs:
        taken = (target, part, target.parent) if pattern else (target, part)
        same = [name for name in taken if name.exists() and other.exists() and os.path.samefile(name, other)]
        if same:
            raise OutputError(f"{same[0]} is the input itself; choose another name")
    if target.is_dir():
        raise OutputError(f"{target} is a folder; choose another name, or put a slash at its end for pictures in it")
    existing = matching_pictures(target.parent, target.name) if pattern else [path] * path.exists()
    if existing and not overwrite:
        raise OutputError(f"{existing[0]} exists; allow overwriting (--overwrite), or choose another name")


def _choose_codec(path: Path, name: str) -> Codec:
    suffix = path.suffix.lower()
    if suffix not in _MUXERS:
        known = ", ".join((*_MUXERS, *IMAGE_SUFFIXES))
        raise OutputError(f"{path.name}: unknown file type; expected {known}, or a folder with a slash at its end")
    if name == "auto":
        name = "vp9" if suffix == ".webm" else "h264"
    if name not in CODECS:
        raise OutputError(f"unknown codec {name!r}; expected auto, {', '.join(CODECS)}")
    codec = CODECS[name]
    if suffix not in codec.suffixes:
        fitting = ", ".join(key for key, other in CODECS.items() if suffix in other.suffixes)
        raise OutputError(
            f"{name} does not fit {suffix}; use {' or '.join(codec.suffixes)}, or in {suffix} one of {fitting}"
        )
    if codec.encoder not in av.codecs_available:
        present = ", ".join(key for key, other in CODECS.items() if other.encoder in av.codecs_available)
        raise OutputError(f"this PyAV has no {codec.encoder} for {name}; choose one of {present}")
    return codec


def _choose_format(codec: Codec, depth: int, width: int, height: int, warnings: list[str]) -> str:
    formats = codec.formats
    if width % 2 or height % 2:
        if codec.odd_formats is None:
            raise OutputError(f"{width}x{height}: {codec.encoder} needs even sizes; use h264, or an even size")
        if codec.odd_formats != formats:
            formats = codec.odd_formats
            warnings.append(
                f"{width}x{height} is odd, so colour is kept at full size (4:4:4); few hardware players show it"
            )
    fitting = [bits for bits in formats if bits >= depth]
    if not fitting:
        warnings.append(f"the source has {depth} bits, {codec.encoder} keeps {max(formats)}")
    return formats[min(fitting) if fitting else max(formats)]


def _choose_tags(source: VideoReader | None, height: int, pixel_format: str, codec: Codec) -> ColorTags:
    """Keep the source's colours; what it does not say is what players would guess for the new size."""
    color = source.info.color if source else ColorTags()
    if color.matrix == RGB_MATRIX:  # computer pictures: their range and sRGB curve are not video's
        color = ColorTags(primaries=color.primaries, transfer=2 if color.transfer == _SRGB else color.transfer)
    tags = color.resolve(height)
    if codec.encoder == "prores_ks":
        tags = dataclasses.replace(tags, range=LIMITED)
    return tags.as_rgb() if av.VideoFormat(pixel_format).is_rgb else tags


def _fine_time_base(fps: Fraction) -> Fraction:
    return Fraction(1, fps.numerator * max(1, 90_000 // fps.numerator))
