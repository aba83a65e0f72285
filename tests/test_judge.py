"""The judge: a distance, on a network of the published shape (random weights; the true ones are fetched, not kept)."""

import pytest
import torch

from adcvsr_core.errors import CheckpointError, InputError
from training.judge import FILE, Judge, load_judge

# (input, output, kernel, expansion) of the sixteen blocks of EfficientNet-Lite0.
BLOCKS = [
    (32, 16, 3, 1), (16, 24, 3, 6), (24, 24, 3, 6), (24, 40, 5, 6), (40, 40, 5, 6), (40, 80, 3, 6), (80, 80, 3, 6),
    (80, 80, 3, 6), (80, 112, 5, 6), (112, 112, 5, 6), (112, 112, 5, 6), (112, 192, 5, 6), (192, 192, 5, 6),
    (192, 192, 5, 6), (192, 192, 5, 6), (192, 320, 3, 6),
]  # fmt: skip


def published_layout() -> dict[str, torch.Tensor]:
    """Random weights under the names and shapes of the package's file."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}

    def conv(name: str, *shape: int) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        weights[f"{name}.weight"] = torch.randn(*shape, generator=generator) * (2 / fan_in) ** 0.5

    def norm(name: str, width: int) -> None:
        for part, value in (("weight", 1.0), ("bias", 0.1), ("running_mean", 0.0), ("running_var", 1.0)):
            weights[f"{name}.{part}"] = torch.full((width,), value)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(0)

    conv("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for index, (width, out, kernel, expansion) in enumerate(BLOCKS):
        hidden = width * expansion
        if expansion > 1:
            conv(f"_blocks.{index}._expand_conv", hidden, width, 1, 1)
            norm(f"_blocks.{index}._bn0", hidden)
        conv(f"_blocks.{index}._depthwise_conv", hidden, 1, kernel, kernel)
        norm(f"_blocks.{index}._bn1", hidden)
        conv(f"_blocks.{index}._project_conv", out, hidden, 1, 1)
        norm(f"_blocks.{index}._bn2", out)
    conv("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    weights["_fc.weight"], weights["_fc.bias"] = torch.randn(1000, 1280, generator=generator), torch.zeros(1000)
    return weights


def test_it_is_a_distance_that_grows_with_blur():
    judge = Judge(published_layout())
    sharp = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    soft, softer = (torch.nn.functional.avg_pool2d(sharp, n, 1, n // 2) for n in (3, 5))
    assert judge(sharp, sharp).abs().max() < 1e-6
    assert torch.allclose(judge(sharp, soft), judge(soft, sharp), atol=1e-6)
    assert (judge(sharp, softer) > judge(sharp, soft)).all() and (judge(sharp, soft) > 0).all()
    assert judge.classify(sharp).shape == (2, 1000)
    assert [feature.shape[2:] for feature in judge.features(sharp)] == [(24, 32), (12, 16), (6, 8), (3, 4)]


def test_other_weights_are_refused_and_missing_ones_explained(tmp_path):
    weights = published_layout()
    weights.pop("_blocks.3._bn1.bias")
    with pytest.raises(CheckpointError, match="EfficientNet-Lite0"):
        Judge(weights)
    with pytest.raises(InputError, match="prepare_benchmark_data"):
        load_judge(tmp_path)
    (tmp_path / "features").mkdir()
    torch.save(published_layout(), tmp_path / "features" / FILE)
    assert isinstance(load_judge(tmp_path), Judge)
