"""The decoder's levels in bands of rows: the memory of two feature maps at any size, and the same frames.

GroupNorm sees the whole frame, so bands cannot run through the decoder one after the other. They run through one
convolution at a time: its norm's statistics come from a first pass over the bands of its input, its result from a
second. Only a block's hidden map and its result are held whole; what norms, activations and upsampling make exists as
bands alone. The price: an upsampled map's rows are made four times, a third more FLOPs for the full-size network.
Sums are merged instead of taken at once, so frames differ from `Decoder.forward`'s by rounding. No gradients.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ResBlock, Upsample
from .norms import Moments, affine, moments

Rows = Callable[[int, int], Tensor]  # (start, stop) -> those rows of a map [N,C,H,W]


def run_levels(levels: nn.Sequential, x: Tensor, band: int) -> Tensor:
    """Map the middle block's features [N,C,h,w] to what the last level gives, [N,C',8h,8w].

    Args:
        levels: the decoder's, each with `resnets` and an `upsample`.
        x: left as it is.
        band: rows at once, 1 or more.
    """
    rows, height = _rows_of(x), x.shape[2]
    for level in levels:
        held = None  # the first block of a level reads bands that nobody holds; the others write over their input
        for block in level.resnets:
            held = _run_block(block, rows, height, band, onto=held)
            rows = _rows_of(held)
        if isinstance(level.upsample, Upsample):
            rows, height = _upsampled(level.upsample, held), 2 * height
    return held


def run_head(norm: nn.Module, conv: nn.Conv2d, x: Tensor, band: int) -> Tensor:
    """Norm, SiLU and the last convolution, over a map [N,C,H,W]."""
    return _fill(_convolved(conv, _activated(norm, _rows_of(x), x.shape[2], band), x.shape[2]), x.shape[2], band)


def _run_block(block: ResBlock, rows: Rows, height: int, band: int, onto: Tensor | None) -> Tensor:
    """Run a residual block; `onto` is its input where that may be overwritten."""
    hidden = _fill(_convolved(block.conv1, _activated(block.norm1, rows, height, band), height), height, band)
    branch = _convolved(block.conv2, _activated(block.norm2, _rows_of(hidden), height, band), height)
    return _fill(lambda start, stop: block.shortcut(rows(start, stop)) + branch(start, stop), height, band, onto)


def _rows_of(x: Tensor) -> Rows:
    return lambda start, stop: x[:, :, start:stop]


def _activated(norm: nn.Module, rows: Rows, height: int, band: int) -> Rows:
    """Return silu(norm(x)), with the statistics of all rows."""
    if not isinstance(norm, nn.GroupNorm):
        return lambda start, stop: F.silu(norm(rows(start, stop)))
    scale, shift = affine(norm, moments(norm, lambda: _merged_moments(norm, rows, height, band)))

    def result(start: int, stop: int) -> Tensor:
        part = rows(start, stop)
        # In float32, as F.group_norm computes inside: half-precision factors would lose digits.
        return F.silu(torch.addcmul(shift, part.to(scale.dtype), scale), inplace=True).to(part.dtype)

    return result


def _merged_moments(norm: nn.GroupNorm, rows: Rows, height: int, band: int) -> Moments:
    """Return mean and variance of every frame and group over all rows, merged band by band."""
    count, mean, spread = 0, 0.0, 0.0  # of the rows so far; spread is the sum of squared distances from the mean
    for start in range(0, height, band):
        part = rows(start, min(start + band, height))
        groups = part.unflatten(1, (norm.num_groups, -1)).to(torch.promote_types(part.dtype, torch.float32))
        variance, part_mean = torch.var_mean(groups, dim=(2, 3, 4), correction=0)
        part_count = groups[0, 0].numel()
        total, step = count + part_count, part_mean - mean
        spread = spread + variance * part_count + step**2 * (count * part_count / total)
        mean, count = mean + step * (part_count / total), total
    return mean, spread / count


def _convolved(conv: nn.Conv2d, rows: Rows, height: int) -> Rows:
    """Return a 3x3 convolution of a map, zeros around it."""

    def result(start: int, stop: int) -> Tensor:
        window = F.pad(rows(max(0, start - 1), min(height, stop + 1)), (0, 0, start == 0, stop == height))
        return F.conv2d(window, conv.weight, conv.bias, padding=(0, 1))

    return result


def _upsampled(upsample: Upsample, x: Tensor) -> Rows:
    def doubled(start: int, stop: int) -> Tensor:
        first = start // 2
        up = F.interpolate(x[:, :, first : -(-stop // 2)], scale_factor=2.0, mode="nearest")
        return up[:, :, start - 2 * first : stop - 2 * first]

    return _convolved(upsample.conv, doubled, 2 * x.shape[2])


def _fill(rows: Rows, height: int, band: int, onto: Tensor | None = None) -> Tensor:
    """Make all rows of a map, over an old map of the same shape where one is given."""
    for start in range(0, height, band):
        stop = min(start + band, height)
        part = rows(start, stop)
        if onto is None:
            shape, kind = (*part.shape[:2], height, part.shape[3]), {"dtype": part.dtype, "device": part.device}
            onto = torch.empty(shape, **kind, memory_format=torch.channels_last)
        onto[:, :, start:stop] = part
    return onto
