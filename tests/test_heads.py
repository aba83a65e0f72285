"""The benchmark of the discriminator's heads: its measure, and that a short training teaches order."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.heads import auc, blurred, run

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=8).map(lambda values: torch.tensor(values).float())


@given(scores, scores)
def test_auc_is_a_chance(above: torch.Tensor, below: torch.Tensor) -> None:
    assert auc(above, below) + auc(below, above) == pytest.approx(1)
    assert auc(above, above) == pytest.approx(0.5)
    assert auc(above + 11, below) == 1
    assert auc(2 * above + 3, 2 * below + 3) == auc(above, below)


def test_blurring_keeps_flat_clips_and_takes_detail() -> None:
    flat = torch.full((1, 2, 3, 16, 16), 0.25)
    assert torch.allclose(blurred(flat), flat, atol=1e-5)
    stripes = torch.ones(1, 2, 3, 16, 16)
    stripes[..., ::2] = -1
    assert blurred(stripes)[..., 4:-4].abs().max() < 0.2


@pytest.mark.slow
def test_a_short_training_teaches_the_consistency_head_order(folder: Path) -> None:
    """On drifting noise and a random backbone; the real figures are the benchmark's."""
    measured = run(folder, steps=40, say=lambda line: None)
    assert measured["consistency head, real above the same shuffled"] > 0.9
    assert measured["detail head, real above shuffled"] == pytest.approx(0.5, abs=0.02)
