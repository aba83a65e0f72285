"""The bundled models do their job on frames that they never saw, as anyone can check without data."""

import pytest
import torch
import torch.nn.functional as F

from adcvsr_core import UpscaleConfig, load_student, upscale
from adcvsr_core.checkpoint import bundled_models, read_config, read_metadata, rich_partner
from adcvsr_core.config import PRESETS
from adcvsr_core.metrics import flicker, psnr
from adcvsr_core.video import read_video

# Bytes of one file, and bicubic's PSNR that a model must exceed by so many dB.
SIZES = {"default": 10_000_000, "nano": 5_000_000}
GAINS = {"default": 0.5, "nano": 0.4}


@pytest.fixture(scope="module", params=sorted(SIZES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def clips(sample, name) -> dict[str, torch.Tensor]:
    """The bundled clip's first shot as HR, and x4 from a quarter of its size by bicubic and by the model."""
    with read_video(sample) as reader:
        hr = torch.cat(list(reader))[:31, 2:178]
    planes = hr.permute(0, 3, 1, 2)
    lr = F.interpolate(planes, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
    bicubic = F.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1).permute(0, 2, 3, 1)
    config = UpscaleConfig(cuts=0.0)
    sr = torch.cat(list(upscale([lr.permute(0, 2, 3, 1)], load_student(name), config)))
    return {"hr": hr, "bicubic": bicubic, "sr": sr}


def test_it_is_nearer_to_the_truth_than_bicubic(name, clips):
    gain = psnr(clips["sr"], clips["hr"]) - psnr(clips["bicubic"], clips["hr"])
    assert gain.mean() > GAINS[name]


def test_it_flickers_no_more_than_bicubic(clips):
    assert flicker(clips["sr"], clips["hr"]) <= flicker(clips["bicubic"], clips["hr"])


def test_it_keeps_the_colours(clips):
    shift = (clips["sr"].mean(dim=(0, 1, 2)) - clips["bicubic"].mean(dim=(0, 1, 2))).abs()
    assert shift.max() < 2 / 255


@pytest.mark.parametrize("fidelity", [0.0, 0.5, 1.0])
def test_a_frame_of_one_colour_stays_it(name, fidelity):
    """Also the rich end, whose teacher by itself makes white five levels darker."""
    student = load_student(name, fidelity=fidelity)
    for color in ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        frame = torch.tensor(color).expand(1, 32, 32, 3)
        sr = torch.cat(list(upscale([frame], student)))
        assert (sr.mean(dim=(0, 1, 2)) - frame[0, 0, 0]).abs().max() < 2 / 255, color
        inside = sr[:, 16:-16, 16:-16]  # zeros beside a frame are darker than most
        assert (inside - frame[:, :1, :1]).abs().max() < 4.5 / 255, color


def test_both_ends_are_small_and_say_how_they_were_made(root, name):
    assert read_config(name) == PRESETS[name]
    for path in (root / "adcvsr_core" / "weights" / f"{name}.safetensors", rich_partner(name)):
        assert path.stat().st_size <= SIZES[name], path
        assert {"recipe", "steps"} <= read_metadata(path).keys(), path
        assert read_config(path) == PRESETS[name], path


def test_no_bundled_model_goes_untested():
    assert bundled_models() == sorted(SIZES)
