"""Laws of adcvsr_core.metrics."""

import math

import pytest
import torch

from adcvsr_core import metrics
from adcvsr_core.errors import InputError


def clip(num_frames: int = 3, size: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(num_frames, size, size, 3, generator=torch.Generator().manual_seed(seed))


def test_luma_range() -> None:
    black, white = torch.zeros(1, 1, 3), torch.ones(1, 1, 3)
    assert metrics.luma(black).item() == pytest.approx(16)
    assert metrics.luma(white).item() == pytest.approx(235)


def test_psnr_of_identical_is_infinite() -> None:
    assert metrics.psnr(clip(), clip()).isinf().all()


def test_psnr_of_a_known_error() -> None:
    hr = torch.full((2, 8, 8, 3), 0.5)
    error = 219 * 0.1  # luma levels
    assert metrics.psnr(hr + 0.1, hr)[1].item() == pytest.approx(20 * math.log10(255 / error), abs=1e-4)


def test_psnr_is_per_frame() -> None:
    hr = clip()
    sr = hr.clone()
    sr[1] = (sr[1] + 0.1).clamp(0, 1)
    result = metrics.psnr(sr, hr)
    assert result[[0, 2]].isinf().all() and result[1].isfinite()


def test_ssim_laws() -> None:
    hr = clip()
    assert metrics.ssim(hr, hr) == pytest.approx(torch.ones(3).double())
    noisy = (hr + 0.1 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert torch.allclose(metrics.ssim(noisy, hr), metrics.ssim(hr, noisy))
    assert (metrics.ssim(noisy, hr) < 0.99).all()
    with pytest.raises(InputError, match="at least 11x11"):
        metrics.ssim(hr[:, :10], hr[:, :10])


def test_flicker_of_still_is_zero() -> None:
    still = clip(1).expand(4, -1, -1, -1)
    assert metrics.flicker(still, still) == 0


def test_flicker_ignores_a_steady_error_and_sees_a_changing_one() -> None:
    hr = clip(4) * 0.5
    assert metrics.flicker(hr + 0.2, hr).item() == pytest.approx(0, abs=1e-5)
    blinking = hr.clone()
    blinking[::2] += 0.1
    assert metrics.flicker(blinking, hr).item() == pytest.approx(21.9, abs=1e-3)


def test_motion_energy() -> None:
    hr = clip(4)
    still = hr[:1].expand(4, -1, -1, -1)
    assert metrics.motion_energy_ratio(hr, hr).item() == pytest.approx(1)
    assert metrics.motion_energy_ratio(still, hr).item() == 0
    assert metrics.motion_energy_ratio(hr, still).isnan()


def test_warping_error_follows_the_motion() -> None:
    wide = clip(1, 40)[0]
    frames = torch.stack([wide[8:32, 8 - 2 * t : 32 - 2 * t] for t in range(3)])  # content moves right by 2
    flow = torch.zeros(2, 24, 24, 2)
    still_error = metrics.warping_error(frames, flow)
    flow[..., 0] = 2
    assert metrics.warping_error(frames, flow).item() == pytest.approx(0, abs=1e-3)
    assert still_error > 10


def test_faults_are_named() -> None:
    with pytest.raises(InputError, match="equal shape"):
        metrics.psnr(clip(3), clip(2))
    with pytest.raises(InputError, match="at least 2 frames"):
        metrics.flicker(clip(1), clip(1))
    with pytest.raises(InputError, match="does not fit"):
        metrics.warping_error(clip(3), torch.zeros(1, 24, 24, 2))
