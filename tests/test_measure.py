"""Measures without a reference, and the report that holds everything."""

import math

import pytest
import torch

from adcvsr_core.errors import InputError
from adcvsr_core.metrics import color_drift, count_duplicates, count_non_finite, measure, seam_score, shimmer


def steady(num_frames: int = 24) -> torch.Tensor:
    """A brightness that rises evenly over a fixed texture."""
    return torch.rand(1, 16, 16, 3) * 0.3 + torch.linspace(0.1, 0.5, num_frames)[:, None, None, None]


def test_shimmer_sees_to_and_fro_and_not_steady_change():
    frames = steady()
    flickering = frames.clone()
    flickering[::2] += 0.05
    assert shimmer(frames) < 0.01
    assert shimmer(flickering) == pytest.approx(0.05 * 219, rel=0.05)
    assert math.isnan(shimmer(frames[:2]))


def test_seam_score_sees_a_jump_at_the_joins_only():
    frames = steady()
    jumping = frames + torch.arange(24).div(8, rounding_mode="floor")[:, None, None, None] * 0.05
    assert seam_score(frames, 8) == pytest.approx(1, abs=1e-3)
    assert seam_score(jumping, 8) > 3
    assert seam_score(jumping, 5) < 1
    assert seam_score(torch.ones(24, 4, 4, 3), 8) == 1
    assert math.isnan(seam_score(frames[:8], 8))
    with pytest.raises(InputError, match="period 1"):
        seam_score(frames, 1)


def test_color_drift_is_what_the_source_does_not_do():
    frames = steady()
    assert color_drift(frames) == pytest.approx(0.4 * 255, rel=1e-3)
    assert color_drift(frames + 0.1, frames) == pytest.approx(0, abs=1e-3)
    red = frames + torch.linspace(0, 0.02, 24)[:, None, None, None] * torch.tensor([1.0, 0, 0])
    assert color_drift(red, frames[:, ::2, ::2]) == pytest.approx(0.02 * 255, abs=1.5)
    assert color_drift(frames[:1]) == 0
    with pytest.raises(InputError, match="as many"):
        color_drift(frames, frames[1:])


def test_duplicates_and_broken_frames_are_counted():
    frames = steady()
    frames[5] = frames[4]
    assert count_duplicates(frames) == 1 and count_non_finite(frames) == 0
    frames[7, 0, 0, 0] = float("nan")
    frames[9, 0, 0, 0] = float("inf")
    assert count_non_finite(frames) == 2


def test_measure_reports_what_it_can():
    frames = steady()
    alone = measure(frames)
    assert math.isnan(alone.psnr_db) and math.isnan(alone.seam) and alone.num_frames == 24
    assert "PSNR (luma): not measured" in str(alone)
    full = measure(frames + 0.01, frames, period=8)
    assert 35 < full.psnr_db < 45 and 0.9 < full.ssim <= 1 and full.seam > 0
    broken = frames.clone()
    broken[3] = float("nan")
    assert measure(broken).non_finite == 1 and "non-finite frames: 1" in str(measure(broken))
    with pytest.raises(InputError, match="equal shape"):
        measure(frames, frames[:, :8])
