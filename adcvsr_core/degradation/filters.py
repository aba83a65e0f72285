"""Filters over frames: any kernel, a Gaussian, and the unsharp mask. They run where the frames are.

Knows nothing about how kernels are drawn.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .draws import FrameStep
from .kernels import BlurConfig, draw_kernels

LUMA = (0.299, 0.587, 0.114)  # BT.601
# RealBasicVSR's: OpenCV's sigma for a kernel of 51, the weight, and the threshold in levels of 255.
UNSHARP_SIGMA, UNSHARP_RADIUS, UNSHARP_WEIGHT, UNSHARP_THRESHOLD = 8.0, 25, 0.5, 10.0


def blur_step(config: BlurConfig, num_frames: int, rng: np.random.Generator) -> FrameStep:
    """Draw a clip's kernels and return the blur of its frames."""
    kernels = draw_kernels(config, num_frames, rng)
    if kernels is None:
        return lambda t, frame: frame
    return lambda t, frame: apply_kernel(frame, torch.from_numpy(kernels[t]).to(frame))


def apply_kernel(frame: Tensor, kernel: Tensor) -> Tensor:
    """Filter [3,H,W] by [K,K], K odd; the picture is mirrored beyond its edge. Not clamped."""
    height, width = frame.shape[1:]
    radius = kernel.shape[0] // 2
    rows, columns = (_mirrored(length, radius).to(frame.device) for length in (height, width))
    padded = frame[:, rows][:, :, columns]
    size = padded.shape[1:]
    # By FFT: for 21 pixels several times faster than a sum of products. The kernels are symmetric about their middle,
    # so convolution and correlation agree.
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, s=size)
    return torch.fft.irfft2(spectrum, s=size)[:, 2 * radius :, 2 * radius :]


def gaussian_blur(frames: Tensor, sigma: float) -> Tensor:
    """Blur [N,3,H,W] by a Gaussian of `sigma` pixels; the edge repeats."""
    radius = max(1, int(np.ceil(3 * sigma)))
    kernel = gaussian(sigma, radius, frames.dtype).to(frames.device).repeat(3, 1, 1, 1)  # [3,1,1,K]
    frames = F.pad(frames, (radius, radius, radius, radius), mode="replicate")
    frames = F.conv2d(frames, kernel, groups=3)
    return F.conv2d(frames, kernel.transpose(2, 3), groups=3)


def gaussian(sigma: float, radius: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a Gaussian of `sigma` pixels cut at `radius`, [2 * radius + 1], that sums to 1."""
    positions = torch.arange(-radius, radius + 1, dtype=dtype)
    kernel = torch.exp(-0.5 * (positions / sigma) ** 2)
    return kernel / kernel.sum()


def luma(frames: Tensor) -> Tensor:
    """Return the brightness [N,1,H,W] of [N,3,H,W]."""
    return (frames * frames.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def unsharp_mask(frame: Tensor) -> Tensor:
    """Sharpen [3,H,W] in 0..1 where it differs by more than the threshold from its blurred self, as RealBasicVSR."""
    detail = frame - _wide_blur(frame)
    mask = _wide_blur((detail.abs() * 255 > UNSHARP_THRESHOLD).to(frame.dtype))
    sharp = (frame + UNSHARP_WEIGHT * detail).clamp(0, 1)
    return torch.lerp(frame, sharp, mask)


def _wide_blur(frame: Tensor) -> Tensor:
    # Two products with matrices: several times faster than a convolution with 51 taps, and it mirrors by itself.
    rows, columns = (_blur_matrix(length).to(frame) for length in frame.shape[1:])
    return rows @ frame @ columns.T


@lru_cache(maxsize=8)
def _blur_matrix(length: int) -> Tensor:
    kernel = gaussian(UNSHARP_SIGMA, UNSHARP_RADIUS)
    sources = _mirrored(length, UNSHARP_RADIUS).unfold(0, len(kernel), 1)  # [length, taps]
    return torch.zeros(length, length).scatter_add_(1, sources, kernel.expand(length, -1))


def _mirrored(length: int, radius: int) -> Tensor:
    """Return the indices -radius .. length + radius - 1 mirrored into 0 .. length - 1; the edge is not repeated."""
    period = max(1, 2 * (length - 1))
    positions = torch.arange(-radius, length + radius).remainder(period)
    return torch.minimum(positions, period - positions) if length > 1 else torch.zeros_like(positions)
