"""Pictures that put two versions of a clip side by side.

All frames are [T,H,W,3] in 0..1 RGB; results too. Knows nothing about files or networks.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .errors import InputError

_GAP = 8
_OVERVIEW_WIDTH = 640
_LABEL_HEIGHT = 28


def fit(frames: Tensor, height: int, width: int) -> Tensor:
    """Bring frames to a size by bicubic interpolation."""
    if frames.shape[1:3] == (height, width):
        return frames
    planes = F.interpolate(frames.permute(0, 3, 1, 2), size=(height, width), mode="bicubic", antialias=True)
    return planes.clamp(0, 1).permute(0, 2, 3, 1)


def side_by_side(a: Tensor, b: Tensor) -> Tensor:
    """Put A left of B, with A brought to B's size: [T,H,2W+8,3]."""
    a = _paired(a, b)
    return torch.cat((a, torch.ones_like(b[:, :, :_GAP]), b), dim=2)


def wipe(a: Tensor, b: Tensor, position: float) -> Tensor:
    """Show A left of a line at `position` (0..1 of the width) and B right of it, A brought to B's size."""
    result = b.clone()
    column = round(position * b.shape[2])
    result[:, :, :column] = _paired(a, b)[:, :, :column]
    result[:, :, max(0, column - 1) : column + 1] = 1
    return result


def difference(a: Tensor, b: Tensor, gain: float = 4.0) -> Tensor:
    """Show |A - B| times a gain, A brought to B's size."""
    return ((_paired(a, b) - b).abs() * gain).clamp(0, 1)


def sheet(pairs: list[tuple[Tensor, Tensor]], labels: tuple[str, str]) -> Tensor:
    """Compose a before/after sheet.

    A row per pair: the whole picture with a wipe in its middle, then the part with most detail from both, at 1:1.

    Args:
        pairs: (A [h,w,3], B [H,W,3]) of the same moments.
        labels: what A and B are.

    Returns:
        [rows,columns,3] in 0..1.
    """
    rows = []
    for a, b in pairs:
        b = b[None]
        a = fit(a[None], *b.shape[1:3])
        width = min(_OVERVIEW_WIDTH, b.shape[2])
        height = max(1, round(b.shape[1] * width / b.shape[2]))
        top, left, edge = _busiest(b, min(height, b.shape[1], b.shape[2]))
        crops = [frames[0, top : top + edge, left : left + edge] for frames in (a, b)]
        row = [fit(wipe(a, b, 0.5), height, width)[0], *(_pad_rows(crop, height) for crop in crops)]
        rows.append(_join(row, dim=1))
    body = _join(rows, dim=0)
    edge = rows[0].shape[0]
    starts = (0, body.shape[1] - 2 * edge - _GAP, body.shape[1] - edge)
    return torch.cat((_label_bar(body.shape[1], starts, (f"{labels[0]}  |  {labels[1]}", *labels)), body))


def _paired(a: Tensor, b: Tensor) -> Tensor:
    if len(a) != len(b):
        raise InputError(f"A has {len(a)} frames and B has {len(b)}; expected as many")
    return fit(a, *b.shape[1:3])


def _busiest(frame: Tensor, edge: int) -> tuple[int, int, int]:
    """Return top, left and edge of the square with the most fine detail in a frame [1,H,W,3]."""
    luma = frame.mean(dim=3)[:, None]
    detail = (luma - F.avg_pool2d(F.pad(luma, (2, 2, 2, 2), mode="replicate"), 5, stride=1)).abs()
    step = max(1, edge // 4)
    energy = F.avg_pool2d(detail, edge, stride=step)[0, 0]
    best = int(energy.argmax())
    return best // energy.shape[1] * step, best % energy.shape[1] * step, edge


def _pad_rows(picture: Tensor, height: int) -> Tensor:
    return F.pad(picture, (0, 0, 0, 0, 0, height - picture.shape[0]), value=1.0)


def _join(pictures: list[Tensor], dim: int) -> Tensor:
    parts = []
    for picture in pictures:
        shape = list(picture.shape)
        shape[dim] = _GAP
        parts += [torch.ones(shape), picture.cpu()]
    return torch.cat(parts[1:], dim=dim)


def _label_bar(width: int, starts: tuple[int, ...], texts: tuple[str, ...]) -> Tensor:
    bar = Image.new("RGB", (width, _LABEL_HEIGHT), "white")
    draw = ImageDraw.Draw(bar)
    for start, text in zip(starts, texts, strict=True):
        draw.text((start + 4, 4), text, fill="black", font=ImageFont.load_default(16))
    return torch.from_numpy(np.asarray(bar).copy()).float() / 255
