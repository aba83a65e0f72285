"""Filters over frames: any kernel, a Gaussian, and the unsharp mask. They run where the frames are.

All are convolutions, whose sums do not depend on the number of threads; those of Fourier transforms and of products
of large matrices do. Knows nothing about how kernels are drawn.
"""

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
    padded = _mirror(frame, kernel.shape[0] // 2)
    return F.conv2d(padded[None], kernel.expand(3, 1, -1, -1), groups=3)[0]


def gaussian_blur(frames: Tensor, sigma: float) -> Tensor:
    """Blur [N,3,H,W] by a Gaussian of `sigma` pixels; the edge repeats."""
    radius = max(1, int(np.ceil(3 * sigma)))
    padded = F.pad(frames, (radius, radius, radius, radius), mode="replicate")
    return _along_both(padded, gaussian(sigma, radius, frames.dtype))


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
    return _along_both(_mirror(frame, UNSHARP_RADIUS)[None], gaussian(UNSHARP_SIGMA, UNSHARP_RADIUS, frame.dtype))[0]


def _along_both(padded: Tensor, line: Tensor) -> Tensor:
    """Filter [N,3,H,W] by a line [K] along x and along y; K - 1 rows and columns are lost."""
    kernel = line.to(padded.device).repeat(3, 1, 1, 1)  # [3,1,1,K]
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def _mirror(frame: Tensor, radius: int) -> Tensor:
    """Pad [3,H,W] by its mirror image, any number of times; the edge is not repeated."""
    rows, columns = (_mirrored(length, radius).to(frame.device) for length in frame.shape[1:])
    return frame[:, rows][:, :, columns]


def _mirrored(length: int, radius: int) -> Tensor:
    """Return the indices -radius .. length + radius - 1 mirrored into 0 .. length - 1."""
    period = max(1, 2 * (length - 1))
    positions = torch.arange(-radius, length + radius).remainder(period)
    return torch.minimum(positions, period - positions) if length > 1 else torch.zeros_like(positions)
