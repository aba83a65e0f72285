"""Laws of adcvsr_core.degradation."""

import numpy as np
import pytest
import torch
from PIL import Image

from adcvsr_core.degradation import (
    DEGRADATIONS,
    DegradationConfig,
    degrade,
    h264_round_trip,
    rgb_to_yuv420,
    to_levels,
    yuv420_to_rgb,
)
from adcvsr_core.errors import ConfigError, InputError


def moving_clip(num_frames: int = 6, height: int = 64, width: int = 96, seed: int = 0) -> torch.Tensor:
    """Smooth colour noise that pans by two pixels a frame: [T,H,W,3] in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8 + 2, (width + 2 * num_frames) // 8 + 2, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(0, 1)[0]
    frames = [wide[:, :height, 2 * t : 2 * t + width] for t in range(num_frames)]
    return torch.stack(frames).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_equal_seeds_give_equal_clips(name: str) -> None:
    hr = moving_clip()
    before = hr.clone()
    first, second = degrade(hr, name, 3), degrade(hr, name, 3)
    assert torch.equal(first, second)
    assert torch.equal(hr, before), "the input was changed"
    assert first.shape == (6, 16, 24, 3) and first.dtype == torch.float32


@pytest.mark.parametrize("name", ["light", "h264"])
def test_other_seeds_give_other_clips(name: str) -> None:
    hr = moving_clip()
    assert not all(torch.equal(degrade(hr, name, 0), degrade(hr, name, seed)) for seed in range(1, 5))


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_results_lie_on_8_bit_levels(name: str) -> None:
    levels = degrade(moving_clip(), name, 1) * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert levels.min() >= 0 and levels.max() <= 255


def test_clean_equals_pillow_bicubic() -> None:
    frame = to_levels(moving_clip(1))[0]
    ours = degrade(torch.from_numpy(frame)[None].float() / 255, "clean", 0)[0] * 255
    pillow = np.asarray(Image.fromarray(frame).resize((24, 16), Image.Resampling.BICUBIC)).astype(np.float32)
    assert np.abs(ours.numpy() - pillow).max() <= 2  # Pillow rounds between its two passes


@pytest.mark.parametrize("scale", [1, 2])
def test_other_scales(scale: int) -> None:
    hr = moving_clip(2)
    lr = degrade(hr, DegradationConfig(scale=scale), 0)
    assert lr.shape == (2, 64 // scale, 96 // scale, 3)
    assert (lr.mean() - hr.mean()).abs() < 0.005


def test_overshoot_is_clamped_not_wrapped() -> None:
    hr = torch.zeros(1, 32, 32, 3)
    hr[:, :, 16:] = 1
    lr = degrade(hr, "clean", 0)[0, 4, :, 0]
    assert lr[:3].max() < 0.1 and lr[5:].min() > 0.9


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 16, 16), (2, 17, 24), (9, 24, 31), (40, 16, 16)])
def test_h264_keeps_frames_and_size(num_frames: int, height: int, width: int) -> None:
    levels = to_levels(moving_clip(num_frames, 64, 96))[:, :height, :width]
    assert h264_round_trip(levels, 30.0).shape == levels.shape


@pytest.mark.parametrize("preset", ["medium", "veryfast"])
def test_h264_does_not_depend_on_what_was_in_memory(preset: str) -> None:
    rng = np.random.default_rng(0)
    for seed in range(1, 4):
        levels = to_levels(moving_clip(12, 64, 64, seed))
        first = h264_round_trip(levels, 30.0, preset)
        for _ in range(15):
            leftovers = [rng.integers(0, 255, int(size), np.uint8) for size in rng.choice([5e3, 5e4, 5e5, 2e6], 20)]
            del leftovers
            assert np.array_equal(h264_round_trip(levels, 30.0, preset), first), f"clip {seed}"


def test_h264_keeps_order_and_colour() -> None:
    levels = np.repeat(np.linspace(40, 200, 12).astype(np.uint8)[:, None, None, None], 32, 1).repeat(32, 2).repeat(3, 3)
    levels[..., 1] //= 2
    result = h264_round_trip(levels, 18.0).astype(float)
    assert np.abs(result.mean((1, 2)) - levels.mean((1, 2))).max() < 4


def test_colour_conversion_is_unbiased() -> None:
    levels = to_levels(moving_clip(2))
    result = yuv420_to_rgb(rgb_to_yuv420(levels)).astype(float)
    assert np.abs((result - levels).mean((0, 1, 2))).max() < 0.2
    gray = np.arange(256, dtype=np.uint8)[None, None, :, None].repeat(2, 1).repeat(3, 3)
    assert np.abs(yuv420_to_rgb(rgb_to_yuv420(gray)).astype(int) - gray).max() <= 1


def test_higher_crf_is_worse() -> None:
    levels = to_levels(moving_clip(8, 96, 96))
    errors = [np.abs(h264_round_trip(levels, crf).astype(float) - levels).mean() for crf in (12.0, 28.0, 45.0)]
    assert errors[0] < errors[1] < errors[2]


def test_noise_is_new_in_every_frame() -> None:
    config = DegradationConfig(noise_probability=1.0, noise_sigma=(8.0, 8.0))
    lr = degrade(torch.full((3, 64, 64, 3), 0.5), config, 0)
    assert not torch.equal(lr[0], lr[1])
    assert 6 < (lr[0] * 255).std() < 10


def test_blur_removes_detail() -> None:
    hr = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    config = DegradationConfig(blur_probability=1.0, blur_sigma=(3.0, 3.0))
    assert degrade(hr, config, 0).std() < 0.6 * degrade(hr, "clean", 0).std()


def test_probability_does_not_shift_other_draws() -> None:
    hr = torch.full((1, 64, 64, 3), 0.5)  # flat: blur does nothing, so the noise must be the same
    noise = {"noise_probability": 1.0}
    assert torch.equal(
        degrade(hr, DegradationConfig(**noise), 5), degrade(hr, DegradationConfig(blur_probability=1.0, **noise), 5)
    )


def test_faults_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown degradation 'mud'"):
        degrade(moving_clip(), "mud", 0)
    with pytest.raises(InputError, match="no multiple of 4"):
        degrade(torch.zeros(1, 30, 32, 3), "clean", 0)
    with pytest.raises(InputError, match="expected frames"):
        degrade(torch.zeros(30, 32, 3), "clean", 0)
    with pytest.raises(ConfigError, match="jpeg_quality"):
        DegradationConfig(jpeg_quality=(90.0, 60.0))
    with pytest.raises(ConfigError, match="blur_probability"):
        DegradationConfig(blur_probability=1.5)
