"""Clips for the tests of video, made by PyAV alone and not by the code under test, and ways to look at them."""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from adcvsr_core.video import VideoWriter, read_video

posix = pytest.mark.skipif(sys.platform == "win32", reason="asks the system in a POSIX way")
linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")

TICK = Fraction(1, 90_000)


def moving_picture(index: int, width: int, height: int) -> np.ndarray:
    """Return RGB bytes: a smooth ramp that drifts, red above, so that turns and orders show."""
    across, down = np.meshgrid(np.linspace(0, 150, width), np.linspace(0, 50, height))
    picture = np.stack((across + down + index % 40, across[:, ::-1] + 20, down * 3 + 30), -1)
    picture[: height // 4, :, 0] = 230
    return picture.round().astype(np.uint8)


def make_clip(
    path,
    num_frames=12,
    *,
    size=(64, 48),
    fps=30,
    codec="libx264",
    pixel_format="yuv420p",
    pts=None,
    audio=None,
    options=None,
    before_header=lambda container, video: None,
):
    """Write a clip by PyAV alone, independent of the code under test. `audio` is a codec name."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=fps, options=options or ({"bf": "3"} if codec == "libx264" else {}))
        video.width, video.height, video.pix_fmt = *size, pixel_format
        video.time_base = video.codec_context.time_base = TICK
        sound = container.add_stream(audio, rate=48_000) if audio else None
        before_header(container, video)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(moving_picture(index, *size), "rgb24").reformat(format=pixel_format)
            frame.pts = pts[index] if pts else round(index / fps / TICK)
            frame.time_base = TICK
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound:
            write_tone(container, sound, num_frames / fps)
    return path


def write_tone(container, stream, seconds):
    kind = stream.codec_context.format.name
    for first in range(0, int(48_000 * seconds), 1024):
        wave = np.sin(np.arange(first, first + 1024) / 20).astype(np.float32)
        samples = np.stack((wave, wave)) if kind.endswith("p") else np.stack((wave, wave), -1).reshape(1, -1)
        samples = samples if kind.startswith("flt") else (samples * 20_000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, kind, "stereo")
        frame.rate, frame.pts, frame.time_base = 48_000, first, Fraction(1, 48_000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def packets(path, kind="audio"):
    """Return (seconds, payload) of each packet of the first stream of a kind."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [(each.pts * each.time_base, bytes(each)) for each in container.demux(stream) if each.size]


def pts_of(path):
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def copy(source, target, *, scale=1, read=None, **write):
    """Send a clip through reader and writer, each pixel repeated `scale` times; return both."""
    with read_video(source, **(read or {})) as reader:
        info = reader.info
        with VideoWriter(
            target, width=info.width * scale, height=info.height * scale, source=reader, **write
        ) as writer:
            for frames in reader:
                frames = frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
                writer.write(frames, reader.take_pts(len(frames)))
    return reader, writer


def whole(path, **settings):
    return torch.cat(list(read_video(path, **settings)))


def start_writer(path, **settings):
    return VideoWriter(path, width=64, height=48, fps=25, **settings)


def everything_in(folder):
    return sorted(entry.name for entry in folder.rglob("*"))
