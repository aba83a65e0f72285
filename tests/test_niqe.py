"""NIQE: its fit finds the distribution that was drawn, and its distance is one (its numbers are fetched, not kept)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from adcvsr_core.errors import CheckpointError, InputError
from training.niqe import _NUM_FEATURES, FILE, Niqe, _describe, _even_out, _fit, load_niqe


def noisy(exponent: float, left: float = 1.0, right: float = 1.0, size: int = 200) -> torch.Tensor:
    """Values [size,size] of density exp(-|x / width|^exponent), with a width of its own on either side."""
    rng = np.random.default_rng(0)
    values = rng.gamma(1 / exponent, size=(size, size)) ** (1 / exponent)
    # The wider side is drawn as much more often as it is wider.
    is_right = rng.random((size, size)) < right / (left + right)
    return torch.from_numpy(np.where(is_right, right * values, -left * values))


@pytest.mark.parametrize("exponent", [0.7, 1.0, 2.0])
@pytest.mark.parametrize(("left", "right"), [(1.0, 1.0), (0.5, 1.5)])
def test_the_fit_finds_what_was_drawn(exponent: float, left: float, right: float) -> None:
    values = noisy(exponent, left, right)
    found, to_left, to_right, mean = (each.item() for each in _fit(values[None]))
    assert found == pytest.approx(exponent, rel=0.06)
    assert to_left == pytest.approx(left, rel=0.1) and to_right == pytest.approx(right, rel=0.1)
    assert mean == pytest.approx(values.mean().item(), rel=0.05, abs=0.03)


def test_evening_out_takes_brightness_and_most_contrast_away() -> None:
    picture = 60 * torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    evened = _even_out(picture)
    inner = (..., slice(4, -4), slice(4, -4))
    assert torch.allclose(_even_out(picture + 100)[inner], evened[inner], atol=1e-6)
    assert _even_out(3 * picture).std() / evened.std() < 1.1


def test_what_is_like_the_photographs_is_near_and_blur_and_noise_take_it_away() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 296, 296, generator=generator), 5, 1)[0]
    frame = (base + 0.2 * torch.rand(3, 292, 292, generator=generator)).permute(1, 2, 0).clamp(0, 1)
    picture = 255 * frame.double().mean(2)[None, None]
    own = torch.cat([_describe(_even_out(x)[0, 0], 48) for x in (picture, picture.flip(3))]).numpy()
    twice = np.concatenate([own.mean(0)] * 2)
    measure = Niqe(twice, np.eye(_NUM_FEATURES))
    blurred = torch.nn.functional.avg_pool2d(frame.permute(2, 0, 1), 5, 1, 2).permute(1, 2, 0)
    assert measure(frame) < measure(blurred)
    assert measure(frame) == measure(frame.clone()) >= 0


def test_frames_of_less_than_two_blocks_are_not_measured() -> None:
    measure = Niqe(np.zeros(_NUM_FEATURES), np.eye(_NUM_FEATURES))
    assert measure(torch.rand(190, 190, 3)) is None
    assert measure(torch.rand(96, 192, 3)) is not None


def test_flat_frames_are_not_measured() -> None:
    assert Niqe(np.zeros(_NUM_FEATURES), np.eye(_NUM_FEATURES))(torch.full((192, 192, 3), 0.5)) is None


def test_missing_and_other_numbers_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prepare_benchmark_data"):
        load_niqe(tmp_path)
    file = tmp_path / "features" / FILE
    file.parent.mkdir()
    np.savez(file, mu_pris_param=np.zeros(4), cov_pris_param=np.eye(4))
    with pytest.raises(CheckpointError, match="36 features"):
        load_niqe(tmp_path)
    file.write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match="does not hold"):
        load_niqe(tmp_path)
    np.savez(file, mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36))
    assert load_niqe(tmp_path)(torch.rand(96, 192, 3)) is not None
