"""Number formats on trained weights, and clips on which networks divide by nothing."""

import pytest
import torch

from adcvsr_core import UpscaleConfig, load_student, upscale
from adcvsr_core.checkpoint import bundled_models
from adcvsr_core.video import read_video

WHOLE = UpscaleConfig(cuts=0.0, color="adain")
FLAT = {"black": (0, 0, 0), "white": (1, 1, 1), "grey": (0.5, 0.5, 0.5), "red": (1, 0, 0), "blue": (0, 0, 1)}


def run(clip: torch.Tensor, student) -> torch.Tensor:
    return torch.cat(list(upscale([clip], student, WHOLE)))


@pytest.mark.parametrize("fidelity", [1.0, 0.0])
@pytest.mark.parametrize("name", sorted(bundled_models()))
def test_bf16_stays_within_a_level_and_a_half_of_fp32(sample, name, fidelity):
    with read_video(sample) as reader:
        clip = next(iter(reader))[:3, 40:88, 100:164]
    frames = [
        run(clip, load_student(name, dtype=dtype, fidelity=fidelity)) for dtype in (torch.float32, torch.bfloat16)
    ]
    difference = 255 * (frames[0] - frames[1]).abs()
    assert difference.max() < 1.5 and difference.mean() < 0.1, (difference.max(), difference.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_flat_and_saturated_clips_stay_what_they_are(dtype):
    student = load_student("default", dtype=dtype)
    for name, color in FLAT.items():
        clip = torch.tensor(color, dtype=torch.float32).expand(2, 16, 24, 3).clone()
        frames = run(clip, student)
        assert frames.isfinite().all(), name
        assert (frames - clip[:, :1, :1]).abs().max() < 0.03, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_network_with_norms_and_attention_survives_flat_clips(student, dtype):
    """GroupNorm of a constant divides by its epsilon alone."""
    own = type(student)(student.config)
    own.load_state_dict(student.state_dict())
    own = own.to(dtype).eval().requires_grad_(False)
    for color in FLAT.values():
        clip = torch.tensor(color, dtype=torch.float32).expand(2, 16, 16, 3).clone()
        for steps in (WHOLE, UpscaleConfig(cuts=0.0, memory=0.001)):
            assert torch.cat(list(upscale([clip], own, steps))).isfinite().all()
