"""Full-reference and motion metrics as pure functions of frames [T,H,W,3] in 0..1.

Everything is measured on luma: BT.601 studio range, 16 to 235 levels, the convention of published super-resolution
tables. Nothing here needs weights; perceptual distances live with the training code. No colour, no borders cut.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError


def luma(frames: Tensor) -> Tensor:
    """Map RGB [...,3] in 0..1 to luma [...] in 16..235 levels."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=frames.device)
    return (frames.double() * weights).sum(-1) + 16


def psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """Y-PSNR of every frame, in dB, peak 255.

    Args:
        sr, hr: [T,H,W,3] in 0..1.

    Returns:
        [T] float64; inf where the luma is equal.
    """
    _check(sr, hr)
    error = (luma(sr) - luma(hr)).square().mean((1, 2))
    return 10 * torch.log10(255.0**2 / error)


def ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """SSIM of the luma of every frame: 11x11 Gaussian window, sigma 1.5, only whole windows.

    Args:
        sr, hr: [T,H,W,3] in 0..1, H and W at least 11.

    Returns:
        [T] float64 in [-1, 1]; 1 for equal frames.
    """
    _check(sr, hr)
    if min(sr.shape[1:3]) < 11:
        raise InputError(f"SSIM needs frames of at least 11x11, got {sr.shape[2]}x{sr.shape[1]}")
    a, b = luma(sr)[:, None], luma(hr)[:, None]
    mean_a, mean_b = _window(a), _window(b)
    var_a = _window(a * a) - mean_a * mean_a
    var_b = _window(b * b) - mean_b * mean_b
    covariance = _window(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    score = score / ((mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2))
    return score.mean((1, 2, 3))


def flicker(sr: Tensor, hr: Tensor) -> Tensor:
    """Change between frames that the reference does not have: mean |(sr_t - sr_t-1) - (hr_t - hr_t-1)|.

    A blurred clip in motion scores well as long as its error is steady, so read it beside a detail metric.

    Args:
        sr, hr: [T,H,W,3] in 0..1, T >= 2.

    Returns:
        scalar in luma levels, 0 = moves exactly like the reference.
    """
    _check(sr, hr, least_frames=2)
    return (luma(sr).diff(dim=0) - luma(hr).diff(dim=0)).abs().mean()


def motion_energy_ratio(sr: Tensor, hr: Tensor) -> Tensor:
    """mean|sr_t - sr_t-1| over mean|hr_t - hr_t-1|: below 1 is too still, above 1 restless; nan for still references.

    Args:
        sr, hr: [T,H,W,3] in 0..1, T >= 2.
    """
    _check(sr, hr, least_frames=2)
    reference = luma(hr).diff(dim=0).abs().mean()
    return torch.where(reference > 0, luma(sr).diff(dim=0).abs().mean() / reference, torch.nan)


def warping_error(frames: Tensor, flow: Tensor) -> Tensor:
    """How much each frame differs from its successor fetched along a known motion.

    Blur is rewarded (a flat clip scores 0): report it beside detail and motion energy, never alone.

    Args:
        frames: [T,H,W,3] in 0..1, T >= 2.
        flow: [T-1,H,W,2], where each pixel of frame t is in frame t + 1, as x and y in pixels.

    Returns:
        scalar: mean |frame_t(p) - frame_t+1(p + flow)| in luma levels over the pixels that stay inside.
    """
    _check(frames, frames, least_frames=2)
    num_pairs, height, width, _ = flow.shape
    if (num_pairs, height, width) != (frames.shape[0] - 1, *frames.shape[1:3]):
        raise InputError(f"flow {list(flow.shape)} does not fit frames {list(frames.shape)}")
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    target = flow.double() + torch.stack([x, y], -1)
    size = torch.tensor([width, height], dtype=torch.float64)
    inside = ((target >= 0) & (target <= size - 1)).all(-1)
    values = luma(frames)[:, None]
    fetched = F.grid_sample(values[1:], (2 * target + 1) / size - 1, mode="bicubic", align_corners=False)
    return (values[:-1] - fetched)[:, 0].abs()[inside].mean()


def _window(x: Tensor) -> Tensor:
    positions = torch.arange(11, dtype=x.dtype, device=x.device) - 5
    kernel = torch.exp(-0.5 * (positions / 1.5) ** 2)
    kernel = (kernel / kernel.sum())[None, None, None]
    return F.conv2d(F.conv2d(x, kernel), kernel.transpose(2, 3))


def _check(sr: Tensor, hr: Tensor, least_frames: int = 1) -> None:
    if sr.ndim != 4 or sr.shape[3] != 3 or sr.shape != hr.shape:
        raise InputError(f"expected two clips [T,H,W,3] of equal shape, got {list(sr.shape)} and {list(hr.shape)}")
    if sr.shape[0] < least_frames:
        raise InputError(f"expected at least {least_frames} frames, got {sr.shape[0]}")
