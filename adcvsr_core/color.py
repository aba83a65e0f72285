"""Per-frame colour match and detail gain between an SR frame and its LR frame.

Statistics come from one whole, unpadded frame, so the result never depends on where a chunk or a tile ends.
All frames are [T,3,H,W] in [-1, 1]; arithmetic is float32. Knows nothing about networks or streams.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-4
_MAX_GAIN = 4.0
_WAVELET_LEVELS = 5


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize frames [T,C,H,W] by antialiased bicubic; the same size returns them untouched."""
    if frames.shape[-2:] == (height, width):
        return frames
    return F.interpolate(frames, size=(height, width), mode="bicubic", align_corners=False, antialias=True)


def match_color(sr: Tensor, lr: Tensor, method: str) -> Tensor:
    """Give SR frames the colours of their LR frames.

    Args:
        sr: [T,3,H,W] in [-1, 1].
        lr: [T,3,h,w] in [-1, 1], the same frames.
        method: "adain" moves each channel's mean and deviation, "wavelet" replaces the low frequencies, "none".

    Returns:
        [T,3,H,W], not clamped.
    """
    if method == "adain":
        return _adain(sr, lr)
    if method == "wavelet":
        base = resize(lr, *sr.shape[-2:])
        return sr + blur(base - sr, _WAVELET_LEVELS)
    return sr


def scale_detail(sr: Tensor, lr: Tensor, gain: float) -> Tensor:
    """Scale the detail that the network added to the LR base.

    The difference to the upscaled LR is split by wavelets; bands finer than an LR pixel get the gain, coarser
    differences (colour, brightness) stay. gain 1 is the identity.

    Args:
        sr, lr: as in `match_color`.
        gain: 0 = the base's detail only, 1 = the network's own.
    """
    if gain == 1:
        return sr
    added = sr - resize(lr, *sr.shape[-2:])
    levels = max(1, math.ceil(math.log2(max(2.0, sr.shape[-1] / lr.shape[-1]))) + 1)
    return sr + (gain - 1) * (added - blur(added, levels))


def blur(frames: Tensor, levels: int) -> Tensor:
    """Low-pass frames [T,C,H,W] by `levels` steps of the a-trous wavelet, edges repeated."""
    kernel = torch.tensor([0.25, 0.5, 0.25], device=frames.device, dtype=frames.dtype)
    channels = frames.shape[1]
    rows = kernel.view(1, 1, 3, 1).expand(channels, 1, 3, 1)
    columns = kernel.view(1, 1, 1, 3).expand(channels, 1, 1, 3)
    for level in range(levels):
        step = 2**level
        padded = F.pad(frames, (step, step, step, step), mode="replicate")
        frames = F.conv2d(
            F.conv2d(padded, rows, groups=channels, dilation=step), columns, groups=channels, dilation=step
        )
    return frames


def _adain(sr: Tensor, lr: Tensor) -> Tensor:
    # AdcSR divides by the plain deviation, which is 0/0 for a constant channel and turns rounding noise into
    # contrast; the floor and the largest gain keep flat frames flat and change normal content by 1e-5.
    sr_variance, sr_mean = torch.var_mean(sr.float(), dim=(-2, -1), correction=0, keepdim=True)
    lr_variance, lr_mean = torch.var_mean(lr.float(), dim=(-2, -1), correction=0, keepdim=True)
    gain = ((lr_variance + _EPS**2) / (sr_variance + _EPS**2)).sqrt().clamp(max=_MAX_GAIN)
    return (sr - sr_mean) * gain + lr_mean
