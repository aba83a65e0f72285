"""Compression and decompression in memory, on the CPU: JPEG frame by frame, x264 and MPEG-4 part 2 for clips.

One thread everywhere, so that equal clips give equal bits. Knows nothing about what is drawn around it except the two
configurations at its top. Source of the budgets: RealBasicVSR's video compression.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import ConfigError
from .draws import FrameStep, Range, Walk, choose, require_ranges
from .levels import frame_from_levels, frame_to_levels
from .yuv import rgb_to_yuv420, yuv420_to_rgb

DECODERS = {"libx264": "h264", "mpeg4": "mpeg4"}
RATE = 24  # frames a second
SMALLEST_BUDGET = 1000 // RATE + 1  # bits a frame: x264 counts in whole kilobits a second
# mbtree=0: x264's AVX-512 code for it reads memory that nobody wrote, so equal clips gave five different results.
_X264 = "log-level=none:mbtree=0"


@dataclass(frozen=True, kw_only=True)
class JpegConfig:
    """Every frame becomes a JPEG.

    Attributes:
        quality: Pillow's, 1 to 100.
    """

    quality: Walk

    def __post_init__(self) -> None:
        if not 1 <= self.quality.low <= self.quality.high <= 100:
            raise ConfigError(f"JPEG quality {self.quality} leaves 1 to 100")


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """The clip goes through a video codec.

    Attributes:
        bits: budget a frame, not a second.
        area: HR pixels a frame that `bits` are meant for; the budget of other sizes follows their area, so that a patch
            and a whole frame suffer alike.
        shares: of x264 and MPEG-4. RealBasicVSR names libx264, h264 and mpeg4 in equal parts; the first two are one.
    """

    bits: Range = (1e4, 1e5)
    area: int = 256 * 256
    shares: tuple[float, float] = (2 / 3, 1 / 3)

    def __post_init__(self) -> None:
        require_ranges(self, {"bits": (1, 1e12)})
        if self.area < 1:
            raise ConfigError(f"area {self.area} is below 1")


def jpeg_step(config: JpegConfig, num_frames: int, rng: np.random.Generator) -> FrameStep:
    """Draw a clip's JPEG qualities and return the compression of its frames, whatever their sizes."""
    quality = config.quality.path(num_frames, rng).round().astype(int)

    def step(t: int, frame: Tensor) -> Tensor:
        return frame_from_levels(_jpeg_frame(frame_to_levels(frame), int(quality[t])), frame.device)

    return step


def jpeg_round_trip(levels: np.ndarray, quality: int) -> np.ndarray:
    """Encode and decode every frame of [T,H,W,3] uint8 as a JPEG (4:2:0)."""
    return np.stack([_jpeg_frame(frame, quality) for frame in levels])


def _jpeg_frame(frame: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer).convert("RGB"))


def draw_video(config: VideoConfig, hr_area: int, rng: np.random.Generator) -> tuple[str, int]:
    """Draw (codec, bits a frame) for a clip whose HR frames have `hr_area` pixels."""
    codec = tuple(DECODERS)[choose(config.shares, rng)]
    return codec, max(SMALLEST_BUDGET, round(rng.uniform(*config.bits) * hr_area / config.area))


def h264_round_trip(levels: np.ndarray, crf: float, preset: str = "medium") -> np.ndarray:
    """Encode and decode [T,H,W,3] uint8 with x264 at a constant rate factor, 0 to 51, and a speed preset."""
    encoder = _encoder("libx264", levels, RATE)
    encoder.options = {"crf": f"{crf:.2f}", "preset": preset, "x264-params": _X264}
    return _round_trip(levels, encoder)


def bits_round_trip(levels: Sequence[np.ndarray], codec: str, bits: int) -> np.ndarray:
    """Encode and decode T frames [H,W,3] uint8 with one of `DECODERS` at about `bits` a frame, from `SMALLEST_BUDGET`.

    The first frame costs more than the others, and MPEG-4 spends the same on it whatever the budget: rates are met over
    some frames, not by one.
    """
    return _round_trip(levels, budget_encoder(levels, codec, bits))


def budget_encoder(levels: Sequence[np.ndarray], codec: str, bits: int) -> av.VideoCodecContext:
    """Return an encoder for such frames that aims at `bits` a frame and makes up for what it overspends at once."""
    # RealBasicVSR asks for one frame a second and `bits` a second, too coarse for patches: see SMALLEST_BUDGET. So 24
    # times as many of both, and a tolerance that is 24 times as small.
    encoder = _encoder(codec, levels, RATE)
    encoder.bit_rate = bits * RATE
    encoder.options = {"x264-params": f"{_X264}:ratetol={1 / RATE:.4f}"} if codec == "libx264" else {"bt": str(bits)}
    return encoder


def _encoder(codec: str, levels: Sequence[np.ndarray], rate: int) -> av.VideoCodecContext:
    height, width = levels[0].shape[:2]
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height = width + width % 2, height + height % 2
    encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, rate), Fraction(rate)
    encoder.thread_count = 1
    return encoder


def encode(levels: Sequence[np.ndarray], encoder: av.VideoCodecContext) -> list[av.Packet]:
    """Encode T frames [H,W,3] uint8 of one size; odd edges are padded by a repeated row or column."""
    packets = []
    for index, frame in enumerate(levels):
        height, width = frame.shape[:2]
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        planes = av.VideoFrame.from_ndarray(rgb_to_yuv420(frame[None])[0], format="yuv420p")
        planes.pts = index  # and no pict_type: the codec chooses what is predicted from what
        packets += encoder.encode(planes)
    return packets + encoder.encode(None)


def _round_trip(levels: Sequence[np.ndarray], encoder: av.VideoCodecContext) -> np.ndarray:
    height, width = levels[0].shape[:2]
    decoder = av.CodecContext.create(DECODERS[encoder.name], "r")
    decoder.thread_count = 1
    decoded = [frame for packet in encode(levels, encoder) for frame in decoder.decode(packet)] + decoder.decode(None)
    assert len(decoded) == len(levels), f"{encoder.name} returned {len(decoded)} of {len(levels)} frames"
    return np.concatenate([yuv420_to_rgb(frame.to_ndarray()[None])[:, :height, :width] for frame in decoded])
