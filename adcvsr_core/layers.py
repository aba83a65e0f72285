"""Spatial building blocks of the UNet and the decoder, each working on frames [N,C,H,W] alone.

Plain modules that reproduce Stable Diffusion's blocks as AdcSR prunes them: no time embedding, no text.
Knows nothing about time. Source of the quirks: AdcSR (arXiv 2411.13383), its public network and weights.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import Attention
from .fused import add_onto, geglu, norm_silu

# GroupNorm uses the first of these that divides the width, because pruning leaves widths that 32 does not divide.
_GROUPS = (32, 24, 16, 12, 8, 6, 4, 2, 1)


def make_norm(config_norm: str, max_groups: int, channels: int, eps: float) -> nn.Module:
    """Return the normalisation of one layer: GroupNorm, or nothing for norm "none"."""
    if config_norm == "none":
        return nn.Identity()
    return nn.GroupNorm(next(g for g in _GROUPS if g <= max_groups and channels % g == 0), channels, eps=eps)


class ResBlock(nn.Module):
    """norm, SiLU, conv3, norm, SiLU, conv3, plus the input (through a 1x1 conv where the width changes)."""

    def __init__(self, channels_in: int, channels_out: int, norm: str, groups: int, eps: float):
        super().__init__()
        self.norm1 = make_norm(norm, groups, channels_in, eps)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = make_norm(norm, groups, channels_out, eps)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map [N,C,H,W]; with a skip [N,C',H,W] the two are concatenated first."""
        x = x if skip is None else torch.cat((x, skip), dim=1)
        h = self.conv1(norm_silu(self.norm1, x))
        h = norm_silu(self.norm2, h, own=True)  # a line of its own, which lets the first convolution's result go
        return add_onto(self.conv2(h), self.shortcut(x))


class Transformer(nn.Module):
    """Self-attention and a gated feed-forward over the pixels of one frame."""

    def __init__(self, channels: int, heads: int, norm: str, groups: int):
        super().__init__()
        self.norm = make_norm(norm, groups, channels, 1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.attention = Attention(channels, heads, qkv_bias=False)
        self.norm2 = nn.LayerNorm(channels)
        self.ff_in = nn.Linear(channels, 8 * channels)
        self.ff_out = nn.Linear(4 * channels, channels)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, window: int = 0) -> Tensor:
        h = self.proj_in(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        h = add_onto(self.attention(self.norm1(h), x.shape[2:], window), h)
        h = add_onto(self.ff_out(geglu(self.ff_in(self.norm2(h)))), h)
        return add_onto(rearrange(self.proj_out(h), "n (h w) c -> n c h w", h=x.shape[2]), x)


class FrameAttention(nn.Module):
    """The decoder's single-head attention over the pixels of one frame."""

    def __init__(self, channels: int, norm: str, groups: int):
        super().__init__()
        self.norm = make_norm(norm, groups, channels, 1e-6)
        self.attention = Attention(channels, 1, qkv_bias=True)

    def forward(self, x: Tensor, window: int = 0) -> Tensor:
        h = self.attention(rearrange(self.norm(x), "n c h w -> n (h w) c"), x.shape[2:], window)
        return add_onto(rearrange(h, "n (h w) c -> n c h w", h=x.shape[2]), x)


class Downsample(nn.Module):
    """Half the height and width by a strided convolution, padded alike on all sides."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def per_frame(module: Callable[..., Tensor], *tensors: Tensor, batch: int = 0, **arguments: int) -> Tensor:
    """Apply a spatial module to every frame of [B,T,C,H,W] tensors, at most `batch` at once (0 = all); T may be 0."""
    shape = tensors[0].shape[:2]
    frames = [tensor.flatten(0, 1) for tensor in tensors]
    if batch == 0 or len(frames[0]) <= batch:
        return module(*frames, **arguments).unflatten(0, shape)
    parts = [module(*part, **arguments) for part in zip(*(each.split(batch) for each in frames), strict=True)]
    return torch.cat(parts).unflatten(0, shape)
