"""The bundled model does its job on frames that it never saw, as anyone can check without data."""

import pytest
import torch
import torch.nn.functional as F

from adcvsr_core import UpscaleConfig, load_student, upscale
from adcvsr_core.checkpoint import bundled_models, read_config, read_metadata
from adcvsr_core.metrics import flicker, psnr
from adcvsr_core.video import read_video


@pytest.fixture(scope="module")
def clips(sample) -> dict[str, torch.Tensor]:
    """The bundled clip's first shot as HR, and x4 from a quarter of its size by bicubic and by the model."""
    with read_video(sample) as reader:
        hr = torch.cat(list(reader))[:31, 2:178]
    planes = hr.permute(0, 3, 1, 2)
    lr = F.interpolate(planes, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
    bicubic = F.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1).permute(0, 2, 3, 1)
    config = UpscaleConfig(cuts=0.0)
    sr = torch.cat(list(upscale([lr.permute(0, 2, 3, 1)], load_student("default"), config)))
    return {"hr": hr, "bicubic": bicubic, "sr": sr}


def test_it_is_nearer_to_the_truth_than_bicubic(clips):
    gain = psnr(clips["sr"], clips["hr"]) - psnr(clips["bicubic"], clips["hr"])
    assert gain.mean() > 0.5


def test_it_flickers_no_more_than_bicubic(clips):
    assert flicker(clips["sr"], clips["hr"]) <= flicker(clips["bicubic"], clips["hr"])


def test_it_keeps_the_colours(clips):
    shift = (clips["sr"].mean(dim=(0, 1, 2)) - clips["bicubic"].mean(dim=(0, 1, 2))).abs()
    assert shift.max() < 2 / 255


def test_every_bundled_file_is_small_and_says_how_it_was_made(root):
    assert bundled_models()[0] == "default"
    for name in bundled_models():
        path = root / "adcvsr_core" / "weights" / f"{name}.safetensors"
        assert path.stat().st_size <= 10_000_000, name
        assert {"recipe", "steps"} <= read_metadata(name).keys(), name
        assert read_config(name).temporal == "blocks", name
