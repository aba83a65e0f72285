"""Triton kernels: GroupNorm with SiLU, and the gated GELU of a feed-forward; statistics and arithmetic in float32.

Needs the package triton, so only `fused.py` imports it, and only where it is about to be used. GroupNorm takes frames
[N,C,H,W] that lie in memory pixel by pixel (channels_last) or channel by channel, and gives its result the same way.
A small map is normalised by one kernel, each of whose programs owns a group; a large one by three: moments of pieces,
which are merged into a factor and a summand for each channel, which are applied. What is merged are means and squared
distances from them (Chan, Golub, LeVeque 1979), never differences of large sums. Knows nothing about networks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Few tile shapes, and not the size of frames, make the variants that have to be compiled, seconds each.
_SMALL_GROUP = 2**15  # numbers; above it three launches with many programs should beat one with few: a guess
_TILE = 2048  # numbers that a program holds at once
_MOST_MOMENTS = 1024  # that a program merges: pieces of a frame times channels of a group
_ROW = 1024  # columns of a GEGLU's program


@triton.jit
def _merged(count, mean, spread, other_count, other_mean, other_spread):
    """Return count, mean and squared distances of two sets of numbers together."""
    total = count + other_count
    step = other_mean - mean
    return (
        total,
        mean + step * (other_count / total),
        spread + other_spread + step * step * (count * (other_count / total)),
    )


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _group_kernel(
    x,
    y,
    weight,
    bias,
    width,  # channels of a group
    num_pixels,
    stride_n,
    stride_c,
    stride_p,
    eps,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Normalise one group of one frame."""
    group, frame = tl.program_id(0), tl.program_id(1)
    within = tl.arange(0, BLOCK_C)
    channels, inside = group * width + within, within < width
    base = frame.to(tl.int64) * stride_n
    columns = base + channels.to(tl.int64)[None, :] * stride_c
    count, mean, spread = 0.0, 0.0, 0.0
    for start in range(0, num_pixels, BLOCK_P):
        pixels = start + tl.arange(0, BLOCK_P)
        mask = (pixels < num_pixels)[:, None] & inside[None, :]
        part = tl.load(x + columns + pixels.to(tl.int64)[:, None] * stride_p, mask, 0.0).to(tl.float32)
        part_count = (tl.minimum(num_pixels - start, BLOCK_P) * width).to(tl.float32)
        part_mean = tl.sum(tl.sum(part, 0), 0) / part_count
        away = tl.where(mask, part - part_mean, 0.0)
        count, mean, spread = _merged(count, mean, spread, part_count, part_mean, tl.sum(tl.sum(away * away, 0), 0))
    factor = 1.0 / tl.sqrt(spread / count + eps)
    scale = tl.load(weight + channels, inside, 0.0).to(tl.float32) * factor
    shift = tl.load(bias + channels, inside, 0.0).to(tl.float32) - mean * scale
    for start in range(0, num_pixels, BLOCK_P):
        pixels = start + tl.arange(0, BLOCK_P)
        mask = (pixels < num_pixels)[:, None] & inside[None, :]
        places = columns + pixels.to(tl.int64)[:, None] * stride_p
        part = tl.load(x + places, mask, 0.0).to(tl.float32)
        tl.store(y + places, _silu(part * scale[None, :] + shift[None, :]).to(y.dtype.element_ty), mask)


@triton.jit
def _moments_kernel(
    x,
    means,  # [N,pieces,C]
    spreads,
    num_channels,
    num_pixels,
    piece,  # pixels
    stride_n,
    stride_c,
    stride_p,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Take the moments of some channels over one piece of one frame."""
    index, frame = tl.program_id(0), tl.program_id(2)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channels < num_channels
    columns = frame.to(tl.int64) * stride_n + channels.to(tl.int64)[None, :] * stride_c
    first, stop = index * piece, tl.minimum((index + 1) * piece, num_pixels)
    count, mean, spread = 0.0, tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    for start in range(first, stop, BLOCK_P):
        pixels = start + tl.arange(0, BLOCK_P)
        mask = (pixels < stop)[:, None] & inside[None, :]
        part = tl.load(x + columns + pixels.to(tl.int64)[:, None] * stride_p, mask, 0.0).to(tl.float32)
        part_count = tl.minimum(stop - start, BLOCK_P).to(tl.float32)
        part_mean = tl.sum(part, 0) / part_count
        away = tl.where(mask, part - part_mean[None, :], 0.0)
        count, mean, spread = _merged(count, mean, spread, part_count, part_mean, tl.sum(away * away, 0))
    places = (frame.to(tl.int64) * tl.num_programs(0) + index) * num_channels + channels
    tl.store(means + places, mean, inside)
    tl.store(spreads + places, spread, inside)


@triton.jit
def _factors_kernel(
    means,
    spreads,
    weight,
    bias,
    scales,  # [N,C]
    shifts,
    num_channels,
    width,  # channels of a group
    num_pixels,
    piece,  # pixels
    num_pieces,
    eps,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merge the moments of one group of one frame, and make its norm a factor and a summand for each channel."""
    group, frame = tl.program_id(0), tl.program_id(1)
    pieces, within = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_C)
    channels, inside = group * width + within, within < width
    mask = (pieces < num_pieces)[:, None] & inside[None, :]
    places = (frame.to(tl.int64) * num_pieces + pieces)[:, None] * num_channels + channels[None, :]
    part_means = tl.load(means + places, mask, 0.0)
    counts = tl.where(mask, tl.minimum(num_pixels - pieces * piece, piece).to(tl.float32)[:, None], 0.0)
    count = num_pixels * 1.0 * width
    mean = tl.sum(tl.sum(part_means * (counts / count), 0), 0)
    away = part_means - mean
    apart = counts * (away * away)
    spread = tl.sum(tl.sum(tl.load(spreads + places, mask, 0.0) + apart, 0), 0)
    factor = 1.0 / tl.sqrt(spread / count + eps)
    scale = tl.load(weight + channels, inside, 0.0).to(tl.float32) * factor
    shift = tl.load(bias + channels, inside, 0.0).to(tl.float32) - mean * scale
    tl.store(scales + frame * num_channels + channels, scale, inside)
    tl.store(shifts + frame * num_channels + channels, shift, inside)


@triton.jit
def _apply_kernel(
    x,
    y,
    scales,
    shifts,
    num_channels,
    num_pixels,
    stride_n,
    stride_c,
    stride_p,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write silu(x * scale + shift) for some channels and pixels of one frame."""
    frame = tl.program_id(2)
    pixels = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channels < num_channels
    mask = (pixels < num_pixels)[:, None] & inside[None, :]
    places = frame.to(tl.int64) * stride_n + pixels[:, None] * stride_p + channels.to(tl.int64)[None, :] * stride_c
    scale = tl.load(scales + frame * num_channels + channels, inside, 0.0)
    shift = tl.load(shifts + frame * num_channels + channels, inside, 0.0)
    part = tl.load(x + places, mask, 0.0).to(tl.float32)
    tl.store(y + places, _silu(part * scale[None, :] + shift[None, :]).to(y.dtype.element_ty), mask)


@triton.jit
def _geglu_kernel(x, y, width, BLOCK: tl.constexpr):
    """Write value * gelu(gate) for some columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    value = tl.load(x + row * 2 * width + columns, mask, 0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * width + width + columns, mask, 0.0).to(tl.float32)
    half = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + row * width + columns, (value * half).to(y.dtype.element_ty), mask)


def takes(x: Tensor) -> bool:
    """Tell whether frames [N,C,H,W] lie in memory as the kernels can read them."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def has_small_groups(x: Tensor, num_groups: int) -> bool:
    """Tell whether frames [N,C,H,W] are for `norm_silu_by_group`, or better for `norm_silu_in_pieces`."""
    return x.shape[1:].numel() // num_groups <= _SMALL_GROUP


def norm_silu_by_group(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return silu(group_norm(x)) in the dtype and layout of x; one launch, a program for each group of a frame.

    Args:
        x: [N,C,H,W] that `takes` accepts; fp16, bf16 or fp32.
        num_groups: divides C.
        weight, bias: [C].
        eps: added to the variance.
    """
    y, strides = _like(x)
    width, num_pixels = x.shape[1] // num_groups, x.shape[2:].numel()
    block = triton.next_power_of_2(width)
    if x.numel():
        _group_kernel[num_groups, len(x)](
            *(x, y, weight, bias, width, num_pixels, *strides, eps), BLOCK_P=max(1, _TILE // block), BLOCK_C=block
        )
    return y


def norm_silu_in_pieces(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `norm_silu_by_group`, by three launches with as many programs as the map has tiles."""
    y, strides = _like(x)
    if not x.numel():
        return y
    num_frames, num_channels, num_pixels = *x.shape[:2], x.shape[2:].numel()
    width = num_channels // num_groups
    # The side that lies together in memory is the wide side of a tile.
    block_c, group_block = 64 if strides[1] == 1 else 4, triton.next_power_of_2(width)
    block_p, most_pieces = _TILE // block_c, max(1, _MOST_MOMENTS // group_block)
    num_tiles, across = triton.cdiv(num_pixels, block_p), triton.cdiv(num_channels, block_c)
    piece = triton.cdiv(num_tiles, most_pieces) * block_p
    num_pieces = triton.cdiv(num_pixels, piece)
    means, spreads = x.new_empty((2, num_frames, num_pieces, num_channels), dtype=torch.float32)
    scales, shifts = x.new_empty((2, num_frames, num_channels), dtype=torch.float32)
    sizes, blocks = (num_channels, num_pixels), {"BLOCK_P": block_p, "BLOCK_C": block_c}
    _moments_kernel[num_pieces, across, num_frames](x, means, spreads, *sizes, piece, *strides, **blocks)
    _factors_kernel[num_groups, num_frames](
        *(means, spreads, weight, bias, scales, shifts, num_channels, width, num_pixels, piece, num_pieces, eps),
        BLOCK_K=most_pieces,
        BLOCK_C=group_block,
    )
    _apply_kernel[num_tiles, across, num_frames](x, y, scales, shifts, *sizes, *strides, **blocks)
    return y


def geglu(x: Tensor) -> Tensor:
    """Return value * gelu(gate), with the exact GELU, of contiguous [...,2C]; [...,C] in the dtype of x."""
    width = x.shape[-1] // 2
    y = x.new_empty((*x.shape[:-1], width))
    if y.numel():
        _geglu_kernel[y.numel() // width, triton.cdiv(width, _ROW)](x, y, width, BLOCK=_ROW)
    return y


def _like(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return an empty tensor that lies as x does, and the strides of both over frames, channels and pixels."""
    # Told by shapes, because strides along edges of 1 may be anything.
    num_channels, num_pixels = x.shape[1], x.shape[2:].numel()
    if x.is_contiguous():
        return torch.empty_like(x, memory_format=torch.contiguous_format), (num_channels * num_pixels, num_pixels, 1)
    return torch.empty_like(x, memory_format=torch.channels_last), (num_channels * num_pixels, 1, num_channels)
