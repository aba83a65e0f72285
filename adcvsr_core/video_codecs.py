"""What a video can be stored as: encoders, containers, pixel formats and settings.

Frames that an encoder holds back to plan with are memory, a gigabyte for every 80 of 4K, so each is kept to a few
dozen. A table and nothing else: knows nothing about frames or files.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Codec:
    """One choice of `codec`.

    Attributes:
        encoder: FFmpeg's encoder.
        suffixes: containers that hold it.
        formats: pixel format for sources of up to so many bits.
        odd_formats: the same for odd sizes, where `formats` halves chroma; None = odd sizes impossible.
        crf: default quality, lower is better; None = the codec has no such setting.
        worst_crf: highest value that it takes.
        options: further encoder options.
    """

    encoder: str
    suffixes: tuple[str, ...]
    formats: dict[int, str]
    odd_formats: dict[int, str] | None
    crf: int | None
    options: dict[str, str]
    worst_crf: int = 63


_420 = {8: "yuv420p", 10: "yuv420p10le"}
_444 = {8: "yuv444p", 10: "yuv444p10le"}
_MP4 = (".mp4", ".m4v", ".mov", ".mkv")
CODECS: dict[str, Codec] = {
    "h264": Codec(
        encoder="libx264",
        suffixes=_MP4,
        formats=_420,
        odd_formats=_444,
        crf=17,
        # By itself it looks 40 frames ahead. Its threads share a frame in slices, and many slices compress worse.
        options={"rc-lookahead": "20", "threads": str(min(16, os.cpu_count() or 1))},
        worst_crf=51,
    ),
    "h265": Codec(
        encoder="libx265",
        suffixes=_MP4,
        formats=_420,
        odd_formats=_444,
        crf=19,
        options={"x265-params": "log-level=error"},
        worst_crf=51,
    ),
    "vp9": Codec(
        encoder="libvpx-vp9",
        suffixes=(".webm", ".mkv", ".mp4"),
        formats=_420,
        odd_formats=_420,
        crf=24,
        options={"b": "0", "row-mt": "1", "cpu-used": "4"},
    ),
    "av1": Codec(
        encoder="libsvtav1",
        suffixes=(".mp4", ".mkv", ".webm"),
        formats=_420,
        odd_formats=None,
        crf=24,
        # By itself it holds 75 frames, and more for every thread: whole groups of pictures are coded side by side.
        options={"preset": "7", "svtav1-params": "lookahead=0:hierarchical-levels=4:lp=3"},
    ),
    "prores": Codec(
        encoder="prores_ks",
        suffixes=(".mov", ".mkv"),
        formats={10: "yuv422p10le"},
        odd_formats={10: "yuv444p10le"},
        crf=None,
        options={"profile": "3", "vendor": "apl0"},
    ),
    "prores_4444": Codec(
        encoder="prores_ks",
        suffixes=(".mov", ".mkv"),
        formats={10: "yuv444p10le"},
        odd_formats={10: "yuv444p10le"},
        crf=None,
        options={"profile": "4", "vendor": "apl0"},
    ),
    "ffv1": Codec(
        encoder="ffv1",
        suffixes=(".mkv",),
        formats={8: "bgr0", 16: "gbrp16le"},
        odd_formats={8: "bgr0", 16: "gbrp16le"},
        crf=None,
        options={"level": "3", "slicecrc": "1"},
    ),
}
