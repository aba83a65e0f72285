"""Spatial building blocks of the UNet and the decoder, each working on frames [N,C,H,W] alone.

Plain modules that reproduce Stable Diffusion's blocks as AdcSR prunes them: no time embedding, no text.
Knows nothing about time. Source of the quirks: AdcSR (arXiv 2411.13383), its public network and weights.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

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

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """Self-attention over tokens [N,L,C] with scale 1 / sqrt(C / heads).

    AdcSR keeps Stable Diffusion's number of heads while it prunes the width, so its heads are 48 wide, not 64,
    and the scale follows the width.
    """

    def __init__(self, channels: int, heads: int, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "n l (three heads c) -> three n heads l c", three=3, heads=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "n heads l c -> n l (heads c)"))


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

    def forward(self, x: Tensor) -> Tensor:
        h = self.proj_in(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        h = h + self.attention(self.norm1(h))
        value, gate = self.ff_in(self.norm2(h)).chunk(2, dim=-1)
        h = h + self.ff_out(value * F.gelu(gate))
        return x + rearrange(self.proj_out(h), "n (h w) c -> n c h w", h=x.shape[2])


class FrameAttention(nn.Module):
    """The decoder's single-head attention over the pixels of one frame."""

    def __init__(self, channels: int, norm: str, groups: int):
        super().__init__()
        self.norm = make_norm(norm, groups, channels, 1e-6)
        self.attention = Attention(channels, 1, qkv_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        return x + rearrange(h, "n (h w) c -> n c h w", h=x.shape[2])


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


def per_frame(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a spatial module to every frame of [B,T,C,H,W]; T may be 0."""
    return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
