"""IMAGE and VIDEO as the engine and the writer want them: clips that are read piece by piece, files that end whole."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from comfy_api.latest import InputImpl
from torch import Tensor

from ..adcvsr_core.errors import InputError
from ..adcvsr_core.frames import require_clip
from ..adcvsr_core.sound import write_sound
from ..adcvsr_core.video import VideoWriter, read_video
from .comfy import temporary_file

log = logging.getLogger(__name__)
_SLICE = 8


class Clip:
    """Frames of an IMAGE for the engine: iterable, with a length, without alpha."""

    def __init__(self, images: Tensor):
        self.images = require_clip(images, "images", finite=False)
        self.num_frames = len(images)
        self.height, self.width = images.shape[1:3]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.images.split(_SLICE))

    def take_pts(self, num_frames: int) -> None:
        """Return no timestamps: the frames are evenly spaced."""


@contextlib.contextmanager
def open_video(video) -> Iterator[tuple[Iterable[Tensor], dict]]:
    """Open a VIDEO for streaming.

    Yields:
        the clip: iterable, with `num_frames`, `width` and `height`, and `take_pts` for a file.
        how to write its like: arguments of `VideoWriter` that carry timing and sound over.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(video, InputImpl.VideoFromFile):
            (start, end), path = _trim(video), _path(video, stack)
            stack.enter_context(_by_name(path))
            reader = stack.enter_context(read_video(path, start=start, end=end))
            if not _has_edits(video):
                reader.height, reader.width = reader.info.height, reader.info.width
                yield reader, {"source": reader}
                _warn(reader.warnings)
                return
        parts = video.get_components()
        depth = video.get_bit_depth() if hasattr(video, "get_bit_depth") else 8
        sound = _sound_file(parts.audio, stack)
        yield Clip(parts.images), {"fps": parts.frame_rate, "audio_from": sound, "bit_depth": depth}


@contextlib.contextmanager
def whole(writer: VideoWriter) -> Iterator[None]:
    """Finish a writer's file after a good end; leave no file behind after an error or a cancel."""
    try:
        yield
        writer.close()
    finally:
        writer.abort(keep=False)
    _warn(writer.warnings)


def _warn(lines: list[str]) -> None:
    for line in dict.fromkeys(lines):
        log.warning("AdcVSR: %s", line)


@contextlib.contextmanager
def _by_name(path: str | os.PathLike) -> Iterator[None]:
    """Let messages tell a file's name without its folder: they may travel far."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(os.fspath(path), Path(path).name)) from None


def _path(video: InputImpl.VideoFromFile, stack: contextlib.ExitStack) -> str | os.PathLike:
    """Return a VIDEO's file; one that is held in memory is written as a temporary file, gone when the stack closes."""
    source = video.get_stream_source()
    if isinstance(source, (str, os.PathLike)):
        return source
    copy = temporary_file(".bin")
    stack.callback(copy.unlink, missing_ok=True)
    copy.write_bytes(source.getbuffer())
    return copy


def _has_edits(video: InputImpl.VideoFromFile) -> bool:
    """Tell whether a VIDEO has edits that its file does not show and that only ComfyUI can apply."""
    if hasattr(video, "as_trimmed") and not hasattr(video, "get_active_trim_window"):
        # ComfyUI 0.13 to 0.21 trims without telling where.
        return video.get_duration() != InputImpl.VideoFromFile(video.get_stream_source()).get_duration()
    return hasattr(video, "has_pending_frame_edits") and video.has_pending_frame_edits()


def _trim(video) -> tuple[float, float | None]:
    start, duration = video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0, 0)
    return start, start + duration if duration else None


def _sound_file(audio: dict | None, stack: contextlib.ExitStack) -> Path | None:
    """Write an AUDIO as a temporary file, gone when the stack closes."""
    if audio is None or not audio["waveform"].numel():
        return None
    path = temporary_file(".m4a")
    stack.callback(path.unlink, missing_ok=True)
    write_sound(path, audio["waveform"][0], int(audio["sample_rate"]))
    return path
