"""Colour and geometry between FFmpeg frames and float RGB tensors `[H, W, 3]` in 0..1.

YUV is converted here, in float32, from the decoder's own planes: swscale only repacks (nv12 to yuv420p,
bgra to gbrp), which is lossless, so a 10-bit picture stays 10 bits and a solid patch lands where the
standard says. Chroma of 4:2:0 and 4:2:2 is taken as left-sited, the H.264 default. Transfer curves
are carried as tags and never applied. Matrix coefficients: ITU-T H.273, table 4. Knows nothing of
files, containers or networks.
"""

import dataclasses
import re
from dataclasses import dataclass
from functools import cache

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError

UNSPECIFIED = 2
"""FFmpeg's code for an unknown matrix, primaries or transfer."""
LIMITED, FULL = 1, 2
"""FFmpeg's codes for the two ranges (0 is unknown)."""
RGB_MATRIX = 0

_KR_KB = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
_COMPANIONS = {1: (1, 1), 5: (5, 6), 6: (6, 6), 7: (7, 7), 9: (9, 14), 10: (9, 14)}
_PLANAR = re.compile(r"(?:(?:yuva?|yuvj)4\d\dp|gbra?p|gray)(?:(?:9|10|12|14|16)le)?$")
_CHROMA_NAMES = {(0, 0): "444", (1, 0): "422", (1, 1): "420", (2, 0): "411", (0, 1): "440", (2, 2): "410"}


@dataclass(frozen=True, kw_only=True)
class ColorTags:
    """How code values relate to light, as FFmpeg's integer codes (ITU-T H.273).

    Attributes:
        matrix: RGB to YUV matrix: 0 RGB, 1 BT.709, 5 and 6 BT.601, 9 BT.2020, 2 unknown.
        range: 1 limited (16..235), 2 full, 0 unknown.
        primaries: 1 BT.709, 5 and 6 BT.601, 9 BT.2020, 2 unknown.
        transfer: 1 BT.709, 6 BT.601, 13 sRGB, 16 PQ, 18 HLG, 2 unknown.
    """

    matrix: int = UNSPECIFIED
    range: int = 0
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    def resolve(self, height: int) -> "ColorTags":
        """Fill what YUV needs and is unknown, as players do: BT.601 up to 576 rows, BT.709 above, limited range."""
        matrix = self.matrix if self.matrix in _KR_KB else (6 if height <= 576 else 1)
        primaries, transfer = _COMPANIONS.get(matrix, (UNSPECIFIED, UNSPECIFIED))
        return ColorTags(
            matrix=matrix,
            range=self.range or LIMITED,
            primaries=primaries if self.primaries in (0, UNSPECIFIED) else self.primaries,
            transfer=transfer if self.transfer in (0, UNSPECIFIED) else self.transfer,
        )

    def as_rgb(self) -> "ColorTags":
        """Return the tags of the same colours stored as RGB."""
        return dataclasses.replace(self, matrix=RGB_MATRIX, range=FULL)


def bit_depth(pixel_format: str) -> int:
    """Return the bits of a format's deepest component."""
    return max((component.bits for component in av.VideoFormat(pixel_format).components), default=8)


def has_alpha(pixel_format: str) -> bool:
    """Return whether a pixel format carries transparency."""
    return any(component.is_alpha for component in av.VideoFormat(pixel_format).components)


def frame_to_rgb(frame: av.VideoFrame, tags: ColorTags) -> Tensor:
    """Convert one decoded frame.

    Args:
        frame: any pixel format that FFmpeg knows.
        tags: resolved tags (`ColorTags.resolve`); only matrix and range count, and only for YUV.

    Returns:
        `[H, W, 3]` float32 RGB, clamped to 0..1. Alpha is dropped.
    """
    frame = _to_planar(frame)
    depth = frame.format.components[0].bits
    planes = [_plane(frame, index) for index in range(min(3, len(frame.planes)))]
    if frame.format.name.startswith("gbr"):
        green, blue, red = planes
        return torch.stack((red, green, blue), dim=-1).div_((1 << depth) - 1)
    code_range = FULL if frame.format.name.startswith("yuvj") else tags.range
    height, width = planes[0].shape
    luma_scale, luma_offset, chroma_scale, middle = _levels(depth, code_range)
    luma = (planes[0] - luma_offset).div_(luma_scale)
    if len(planes) < 3:
        return luma.clamp_(0, 1)[..., None].expand(-1, -1, 3).contiguous()
    chroma = [_upsample(plane, height, width).sub_(middle).div_(chroma_scale) for plane in planes[1:3]]
    kr, kb = _KR_KB[tags.matrix]
    red = luma + 2 * (1 - kr) * chroma[1]
    blue = luma + 2 * (1 - kb) * chroma[0]
    green = (luma - kr * red - kb * blue).div_(1 - kr - kb)
    return torch.stack((red, green, blue), dim=-1).clamp_(0, 1)


def rgb_to_frame(rgb: Tensor, pixel_format: str, tags: ColorTags) -> av.VideoFrame:
    """Quantise one picture, rounding to nearest.

    Args:
        rgb: `[H, W, 3]` float RGB; values outside 0..1 are clamped.
        pixel_format: yuv4xxp*, gbrp* (little-endian), or another RGB format of 8 or 16 bits.
        tags: resolved tags; written on the frame.

    Returns:
        A frame without timestamps.
    """
    height, width = rgb.shape[:2]
    planar = _planar_name(pixel_format)
    frame = av.VideoFrame(width, height, planar)
    frame.colorspace, frame.color_range = tags.matrix, tags.range
    if hasattr(frame, "color_primaries"):  # PyAV before 15 has these on the encoder only
        frame.color_primaries, frame.color_trc = tags.primaries, tags.transfer
    depth = frame.format.components[0].bits
    flat = rgb.detach().to("cpu", torch.float32).reshape(-1, 3).clamp(0, 1)
    if planar.startswith("gbr"):
        planes = (flat[:, [1, 2, 0]].T * ((1 << depth) - 1)).reshape(3, height, width)
    else:
        matrix, offset = _to_yuv(tags.matrix, tags.range, depth)
        planes = torch.addmm(offset, matrix, flat.T).reshape(3, height, width)
    top = (1 << depth) - 1
    for index, target in enumerate(frame.planes):
        plane = planes[index]
        if plane.shape != (target.height, target.width):
            plane = _downsample(plane, target.height, target.width)
        _fill(target, plane.round().clamp_(0, top), depth)
    return frame if planar == pixel_format else frame.reformat(format=pixel_format)


def display_transform(matrix: tuple[int, ...] | None) -> tuple[bool, bool, bool]:
    """Reduce a 3x3 display matrix to the nearest quarter turn.

    Args:
        matrix: nine integers, row by row, as in the MP4 track header; None = upright.

    Returns:
        (transpose, flip_x, flip_y), to be applied in this order.
    """
    if matrix is None:
        return False, False, False
    a, b, _, c, d = matrix[:5]
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def upright(rgb: Tensor, transform: tuple[bool, bool, bool]) -> Tensor:
    """Turn `[H, W, 3]` as `display_transform` says."""
    transpose, flip_x, flip_y = transform
    if transpose:
        rgb = rgb.transpose(0, 1)
    axes = [axis for axis, flip in ((1, flip_x), (0, flip_y)) if flip]
    return rgb.flip(axes) if axes else rgb


def resize(rgb: Tensor, height: int, width: int) -> Tensor:
    """Resample `[H, W, 3]` to `[height, width, 3]` with antialiased bicubic, clamped to 0..1."""
    if rgb.shape[:2] == (height, width):
        return rgb
    planes = rgb.permute(2, 0, 1)[None]  # [1,3,H,W]
    planes = F.interpolate(planes, (height, width), mode="bicubic", align_corners=False, antialias=True)
    return planes[0].permute(1, 2, 0).clamp(0, 1)


def check_frames(frames: Tensor, height: int, width: int) -> None:
    """Raise InputError unless `frames` is float `[T, height, width, 3]`."""
    expected = f"expected float [T, {height}, {width}, 3] in 0..1"
    if frames.ndim != 4 or tuple(frames.shape[1:]) != (height, width, 3):
        raise InputError(f"frames are {list(frames.shape)}; {expected}")
    if not frames.is_floating_point():
        raise InputError(f"frames are {frames.dtype}; {expected}: divide 8-bit values by 255")


def _to_planar(frame: av.VideoFrame) -> av.VideoFrame:
    target = _planar_name(frame.format.name)
    if target == frame.format.name:
        return frame
    keep = frame.color_range or LIMITED
    return frame.reformat(format=target, src_color_range=keep, dst_color_range=keep)


@cache
def _planar_name(name: str) -> str:
    """Return the planar little-endian format that holds every value of `name` unchanged."""
    if _PLANAR.match(name):
        return name
    form = av.VideoFormat(name, 16, 16)
    depth = bit_depth(name)
    depth = next(step for step in (8, 10, 12, 16, 64) if depth <= step)
    suffix = "" if depth == 8 else f"{min(depth, 16)}le"
    if name.startswith("gray") or name in ("ya8", "ya16be", "ya16le", "monob", "monow"):
        return f"gray{suffix}"
    if form.is_rgb or form.has_palette or form.is_bayer or name.startswith("xyz"):
        return "gbrp" if depth == 8 else ("gbrp10le" if depth == 10 else "gbrp16le")
    shifts = (16 // form.chroma_width(16)).bit_length() - 1, (16 // form.chroma_height(16)).bit_length() - 1
    return f"yuv{_CHROMA_NAMES.get(shifts, '444')}p{suffix}"


def _plane(frame: av.VideoFrame, index: int) -> Tensor:
    """Return one plane as float32 code values `[h, w]`."""
    plane = frame.planes[index]
    dtype = np.uint8 if frame.format.components[0].bits == 8 else np.dtype("<u2")
    stride = abs(plane.line_size) // np.dtype(dtype).itemsize
    values = np.frombuffer(plane, dtype).reshape(plane.height, stride)[:, : plane.width]
    if plane.line_size < 0:  # stored bottom row first
        values = values[::-1]
    return torch.from_numpy(values.astype(np.float32))


def _fill(plane: av.video.plane.VideoPlane, values: Tensor, depth: int) -> None:
    dtype = np.uint8 if depth == 8 else np.dtype("<u2")
    stride = plane.line_size // np.dtype(dtype).itemsize
    np.frombuffer(plane, dtype).reshape(plane.height, stride)[:, : plane.width] = values.numpy()


def _levels(depth: int, code_range: int) -> tuple[float, float, float, float]:
    """Return (luma span, luma black, chroma span, chroma middle) in code values."""
    middle = float(1 << (depth - 1))
    if code_range == FULL:
        span = float((1 << depth) - 1)
        return span, 0.0, span, middle
    unit = float(1 << (depth - 8))
    return 219 * unit, 16 * unit, 224 * unit, middle


@cache
def _to_yuv(matrix: int, code_range: int, depth: int) -> tuple[Tensor, Tensor]:
    """Return the 3x3 matrix and the `[3, 1]` offset from RGB 0..1 to code values."""
    kr, kb = _KR_KB[matrix]
    luma_span, black, chroma_span, middle = _levels(depth, code_range)
    luma = torch.tensor([kr, 1 - kr - kb, kb], dtype=torch.float64)
    blue = (torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) - luma) / (2 * (1 - kb))
    red = (torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) - luma) / (2 * (1 - kr))
    rows = torch.stack((luma * luma_span, blue * chroma_span, red * chroma_span))
    return rows.float(), torch.tensor([[black], [middle], [middle]])


def _upsample(plane: Tensor, height: int, width: int) -> Tensor:
    """Bring chroma to `[height, width]`, linear, left-sited across and centred down."""
    if plane.shape[0] < height:
        factor = -(-height // plane.shape[0])
        plane = F.interpolate(plane.T[None], scale_factor=factor, mode="linear", align_corners=False)[0].T[:height]
    if plane.shape[1] < width:
        factor = -(-width // plane.shape[1])
        after = torch.cat((plane[:, 1:], plane[:, -1:]), dim=1)
        steps = torch.arange(factor, dtype=plane.dtype) / factor
        plane = torch.lerp(plane[..., None], after[..., None], steps).flatten(1)[:, :width]
    return plane


def _downsample(plane: Tensor, height: int, width: int) -> Tensor:
    """Bring chroma from full size to `[height, width]` (half or same per axis), sited as in `_upsample`."""
    if plane.shape[0] != height:
        plane = (plane[0::2] + torch.cat((plane[1::2], plane[-1:]))[:height]).mul_(0.5)
    if plane.shape[1] != width:
        even, odd = plane[:, 0::2], plane[:, 1::2]
        if odd.shape[1] < width:
            odd = torch.cat((odd, plane[:, -1:]), dim=1)
        before = torch.cat((plane[:, :1], odd[:, :-1]), dim=1)
        plane = (even * 2).add_(odd).add_(before).mul_(0.25)
    return plane
