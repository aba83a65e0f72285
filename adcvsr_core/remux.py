"""Carry sound, subtitles, chapters and tags from one container to another without re-encoding.

Packets are pulled from a second, lazily read handle of the source up to the moment the picture has
reached, so memory does not grow with the clip. Sound that the target container cannot hold is
re-encoded and said so; subtitles that it cannot hold are left out and said so. Knows nothing of pixels.
"""

import errno
import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from .errors import InputError

_FALLBACK = {"webm": "libopus"}
_SKIPPED_TAGS = {
    "major_brand",
    "minor_version",
    "compatible_brands",
    "encoder",
    "duration",
    "timecode",
    "creation_time",
}
_STREAM_TAGS = ("language", "title", "handler_name")


class Passengers:
    """Everything of `path` but the picture, on its way into `target`.

    Args:
        path: file to take from.
        target: opened output container whose header is not written yet.
        kinds: what to take: "audio", "subtitle".
        origin: moment of the source's timeline that is 0 in the target, in seconds.
        limit: moment of the target's timeline to stop before, None = the end.
        skips_start: whether packets before 0 are dropped, and chapters and timecode with them. When the clip is
            whole at its start they stay: the first holds what the sound's decoder needs to begin.
        warnings: gets one line for each thing that does not fit.
    """

    def __init__(
        self,
        path: Path,
        target: av.container.OutputContainer,
        *,
        kinds: tuple[str, ...],
        warnings: list[str],
        origin: Fraction = Fraction(0),
        limit: Fraction | None = None,
        skips_start: bool = False,
    ):
        self._target, self._origin, self._limit, self._skips_start = target, origin, limit, skips_start
        self._warnings = warnings
        self._outlets: dict[int, _Copy | _Encode] = {}
        self._pending: tuple[Fraction, av.Packet] | None = None
        try:
            self._source = av.open(f"file:{path}", "r", metadata_errors="replace")
        except av.error.FFmpegError as error:
            raise InputError(f"cannot take sound from {path}: {error.strerror}; expected a media file") from error
        try:
            for stream in self._source.streams:
                if stream.type in kinds:
                    self._board(stream)
            self._packets = self._read()
        except BaseException:
            self._source.close()
            raise

    def copy_tags(self, video: av.video.stream.VideoStream) -> None:
        """Copy the container's tags, chapters and timecode; call before the header is written."""
        tags = {key: value for key, value in self._source.metadata.items() if key.lower() not in _SKIPPED_TAGS}
        self._target.metadata.update(tags)
        source = next(iter(self._source.streams.video), None)
        if source is not None:
            _copy_stream_tags(source, video)
        if self._skips_start:
            return
        timecode = self._source.metadata.get("timecode") or (source and source.metadata.get("timecode"))
        if timecode:
            video.metadata["timecode"] = timecode
        if self._limit is None and hasattr(self._target, "set_chapters") and self._source.chapters():
            self._target.set_chapters([self._shifted(chapter) for chapter in self._source.chapters()])

    def copy_until(self, seconds: Fraction | None) -> None:
        """Move every packet that starts at or before `seconds` of the target's time; None = all."""
        while True:
            if self._pending is None:
                self._pending = next(self._packets, None)
            if self._pending is None or (seconds is not None and self._pending[0] > seconds):
                return
            _, packet = self._pending
            self._pending = None
            outlet = self._outlets.get(packet.stream_index)
            if outlet is not None:
                self._deliver(outlet, packet)

    def finish(self) -> None:
        """Flush the encoders of re-encoded sound."""
        for outlet in self._outlets.values():
            self._deliver(outlet, None)

    def close(self) -> None:
        """Release the source."""
        self._packets.close()
        self._source.close()

    def _board(self, stream) -> None:
        kind = stream.type
        name = stream.codec_context.name if stream.codec_context is not None else "unknown"
        container = self._target.format.name
        try:
            if _fits(stream, container):
                self._outlets[stream.index] = _Copy(stream, self._target, self._origin)
            elif kind == "audio" and name != "unknown":
                self._outlets[stream.index] = outlet = _Encode(stream, self._target, self._origin)
                self._warnings.append(
                    f"audio {name} does not fit {container}: re-encoded to {outlet.name}; .mkv keeps it as is"
                )
            else:
                self._warnings.append(f"{kind} {name} does not fit {container} and is left out; .mkv may keep it")
        except (av.error.FFmpegError, ValueError) as error:
            self._warnings.append(f"{kind} {name} is left out: {error}")

    def _read(self) -> Iterator[tuple[Fraction, av.Packet]]:
        """Yield (seconds of the target's time, packet) in file order."""
        if not self._outlets:
            return
        if self._skips_start:
            self._source.seek(max(0, int((self._origin - 1) * av.time_base)))
        streams = [self._source.streams[index] for index in self._outlets]
        open_ends = set(self._outlets)
        try:
            for packet in self._source.demux(streams):
                stamp = packet.dts if packet.pts is None else packet.pts
                if packet.size == 0 or stamp is None:
                    continue
                seconds = stamp * packet.time_base - self._origin
                if self._limit is not None and seconds >= self._limit:
                    open_ends.discard(packet.stream_index)
                    if not open_ends:
                        return
                    continue
                if not (self._skips_start and seconds < 0):
                    yield seconds, packet
        except av.error.FFmpegError as error:
            self._warnings.append(f"sound and subtitles stop early: the file is damaged ({error.strerror})")

    def _deliver(self, outlet: "_Copy | _Encode", packet: av.Packet | None) -> None:
        try:
            outlet.send(packet)
        except av.error.FFmpegError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EDQUOT):
                raise
            self._outlets = {index: other for index, other in self._outlets.items() if other is not outlet}
            self._warnings.append(f"{outlet.name} stops early: {error.strerror}")

    def _shifted(self, chapter: dict) -> dict:
        shift = round(self._origin / chapter["time_base"])
        return {**chapter, "start": chapter["start"] - shift, "end": chapter["end"] - shift}


class _Copy:
    """One stream whose packets go over untouched."""

    def __init__(self, source, target: av.container.OutputContainer, origin: Fraction):
        self.name = source.codec_context.name
        self._target, self._origin = target, origin
        self._stream = target.add_stream_from_template(source)
        _copy_stream_tags(source, self._stream)

    def send(self, packet: av.Packet | None) -> None:
        if packet is None:
            return
        shift = round(self._origin / packet.time_base)
        packet.dts = packet.pts if packet.dts is None else packet.dts
        packet.pts = packet.dts if packet.pts is None else packet.pts
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        packet.stream = self._stream
        self._target.mux(packet)


class _Encode:
    """One sound stream that is decoded and encoded again."""

    def __init__(self, source, target: av.container.OutputContainer, origin: Fraction):
        self.name = _FALLBACK.get(target.format.name, "aac")
        self._target, self._source, self._origin = target, source, origin
        rate = 48000 if self.name == "libopus" else source.codec_context.sample_rate
        self._stream = target.add_stream(self.name, rate=rate)
        self._stream.codec_context.layout = layout = source.codec_context.layout.name
        self._stream.codec_context.bit_rate = 96_000 * source.codec_context.layout.nb_channels
        self._stream.codec_context.time_base = Fraction(1, rate)
        _copy_stream_tags(source, self._stream)
        self._resampler = av.AudioResampler(format=self._stream.codec_context.format, layout=layout, rate=rate)
        self._fifo = av.AudioFifo()
        self._rate = rate
        self._next: int | None = None

    def send(self, packet: av.Packet | None) -> None:
        for frame in (None,) if packet is None else self._source.decode(packet):
            if self._next is None and frame is not None and frame.pts is not None:
                self._next = round((frame.pts * frame.time_base - self._origin) * self._rate)
            for part in self._resampler.resample(frame):
                part.pts = None  # the resampler's rounding would trip the fifo; samples are counted instead
                self._fifo.write(part)
        size = self._stream.codec_context.frame_size or 1024
        while self._fifo.samples >= size or (packet is None and self._fifo.samples):
            part = self._fifo.read(size, partial=True)
            part.pts, part.time_base = self._next or 0, Fraction(1, self._rate)
            self._next = part.pts + part.samples
            self._target.mux(self._stream.encode(part))
        if packet is None:
            self._target.mux(self._stream.encode(None))


def _fits(stream, container: str) -> bool:
    """Ask the muxer itself, with a header written to memory, whether it takes this stream."""
    if container == "mp4" and stream.type == "audio" and stream.codec_context.name.startswith("pcm"):
        return False  # allowed on paper, but the muxer fails at the end for stereo, and players stay silent
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
        return True
    except (av.error.FFmpegError, ValueError):
        return False


def _copy_stream_tags(source, stream) -> None:
    for key in _STREAM_TAGS:
        if key in source.metadata:
            stream.metadata[key] = source.metadata[key]
    stream.disposition = source.disposition.value  # PyAV 14 takes the integer only
