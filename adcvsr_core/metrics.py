"""Full-reference and motion metrics as pure functions of frames [T,H,W,3] in 0..1.

Everything is measured on luma: BT.601 studio range, 16 to 235 levels, the convention of published super-resolution
tables. Nothing here needs weights; perceptual distances live with the training code. No colour, no borders cut.
"""

from dataclasses import dataclass

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


def changes(frames: Tensor) -> Tensor:
    """Mean luma change from each frame to the next, [T-1] float64 in levels; one pair in memory at a time."""
    return torch.tensor(
        [float((luma(frames[t + 1]) - luma(frames[t])).abs().mean()) for t in range(len(frames) - 1)],
        dtype=torch.float64,
    )


def shimmer(frames: Tensor) -> float:
    """Flicker without a reference: mean |y_t - (y_t-1 + y_t+1) / 2| in luma levels; nan below 3 frames.

    Steady change scores 0, to and fro scores high; fast motion of sharp edges scores too, so compare only clips of
    the same content.

    Args:
        frames: [T,H,W,3] in 0..1.
    """
    scores = [
        (luma(frames[t]) - (luma(frames[t - 1]) + luma(frames[t + 1])) / 2).abs().mean()
        for t in range(1, len(frames) - 1)
    ]
    return float(torch.stack(scores).mean()) if scores else float("nan")


def seam_score(frames: Tensor, period: int) -> float:
    """How much more a clip changes where two windows meet than just beside: 1 = the joins do not show.

    Args:
        frames: [T,H,W,3] in 0..1.
        period: frames between joins; the joins lie before frames period, 2 * period, ...

    Returns:
        change at the joins over change beside them; nan without a join that has neighbours.
    """
    if period < 2:
        raise InputError(f"period {period} is too short to tell a join from its neighbours; expected 2 or more")
    steps = changes(frames)
    joins = [t - 1 for t in range(period, len(frames) - 1, period) if t >= 2]
    if not joins:
        return float("nan")
    at = sum(float(steps[j]) for j in joins)
    beside = sum(float(steps[j - 1] + steps[j + 1]) / 2 for j in joins)
    return 1.0 if at == beside else at / beside if beside else float("inf")


def color_drift(frames: Tensor, source: Tensor | None = None) -> float:
    """How far the mean colour wanders along the clip, in levels of 255: a straight line's rise from end to end.

    A constant tint is no drift. With a source, of any size, only what the source does not do counts.

    Args:
        frames: [T,H,W,3] in 0..1.
        source: [T,h,w,3] in 0..1, or None.

    Returns:
        the largest rise or fall among the three channels, 0 for one frame.
    """
    if source is not None and len(source) != len(frames):
        raise InputError(f"the clip has {len(frames)} frames and its source {len(source)}; expected as many")
    means = torch.stack([frame.double().mean((0, 1)) for frame in frames])
    if source is not None:
        means = means - torch.stack([frame.double().mean((0, 1)) for frame in source])
    time = torch.linspace(-0.5, 0.5, len(frames), dtype=torch.float64)
    spread = time.square().sum()
    if len(frames) < 2 or not spread:
        return 0.0
    return float(((time[:, None] * means.cpu()).sum(0) / spread).abs().max() * 255)


def count_duplicates(frames: Tensor) -> int:
    """Count frames that show what the frame before showed: no value differs by half an 8-bit level or more."""
    return sum(bool((frames[t] - frames[t - 1]).abs().max() < 0.5 / 255) for t in range(1, len(frames)))


def count_non_finite(frames: Tensor) -> int:
    """Count frames that hold NaN or infinity."""
    return sum(not bool(torch.stack(frame.aminmax()).isfinite().all()) for frame in frames)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What `measure` found; nan = not measurable from what was given.

    Attributes:
        num_frames: frames looked at.
        psnr_db, ssim: means over the frames, against the reference.
        shimmer, seam, drift, duplicates, non_finite: see the functions.
    """

    num_frames: int
    psnr_db: float
    ssim: float
    shimmer: float
    seam: float
    drift: float
    duplicates: int
    non_finite: int

    def __str__(self) -> str:
        lines = [
            ("frames", f"{self.num_frames}"),
            ("PSNR (luma)", f"{self.psnr_db:.2f} dB, higher is closer to the reference"),
            ("SSIM (luma)", f"{self.ssim:.4f}, 1 = equal to the reference"),
            ("flicker", f"{self.shimmer:.3f} levels, lower is steadier"),
            ("seam score", f"{self.seam:.3f}, 1 = joins do not show"),
            ("colour drift", f"{self.drift:.2f} levels of 255"),
            ("duplicate frames", f"{self.duplicates}"),
            ("non-finite frames", f"{self.non_finite}"),
        ]
        return "\n".join(f"{name}: {'not measured' if value.startswith('nan') else value}" for name, value in lines)


def measure(frames: Tensor, reference: Tensor | None = None, period: int = 0) -> Measurement:
    """Measure a clip in one go, a few frames in memory at a time.

    Args:
        frames: [T,H,W,3] in 0..1; frames with NaN are counted, and then nothing else is measured.
        reference: the same clip as it should be, [T,H,W,3], or None.
        period: frames between joins for the seam score, 0 = not measured.
    """
    nan = float("nan")
    bad = count_non_finite(frames)
    known = {"num_frames": len(frames), "non_finite": bad}
    if bad:
        return Measurement(**known, psnr_db=nan, ssim=nan, shimmer=nan, seam=nan, drift=nan, duplicates=0)
    if reference is not None:
        _check(frames, reference)
    pairs = [] if reference is None else [(frames[t : t + 1], reference[t : t + 1]) for t in range(len(frames))]
    small = min(frames.shape[1:3]) < 11
    return Measurement(
        **known,
        psnr_db=float(torch.cat([psnr(a, b) for a, b in pairs]).mean()) if pairs else nan,
        ssim=float(torch.cat([ssim(a, b) for a, b in pairs]).mean()) if pairs and not small else nan,
        shimmer=shimmer(frames),
        seam=seam_score(frames, period) if period else nan,
        drift=color_drift(frames, reference),
        duplicates=count_duplicates(frames),
    )
