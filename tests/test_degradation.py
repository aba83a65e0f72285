"""Laws of adcvsr_core.degradation that every preset obeys, the published numbers, and the mild pipeline."""

import dataclasses
from collections.abc import Iterator
from math import pi

import numpy as np
import pytest
import torch
from PIL import Image

from adcvsr_core.degradation import (
    DEGRADATIONS,
    DegradationConfig,
    FilmConfig,
    GeneratedConfig,
    RealWorldConfig,
    degrade,
    to_levels,
)
from adcvsr_core.degradation.draws import Walk
from adcvsr_core.degradation.mild import MildDraw, draw_mild
from adcvsr_core.errors import ConfigError, InputError
from tests.degradation_clips import NEUTRAL, moving_clip


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_equal_seeds_give_equal_clips(name: str) -> None:
    hr = moving_clip()
    before = hr.clone()
    first = degrade(hr, name, 3)
    torch.manual_seed(17)  # nothing of the process but the seed counts
    np.random.seed(17)
    assert torch.equal(first, degrade(hr, name, 3))
    assert torch.equal(hr, before), "the input was changed"
    assert first.shape == (6, 16, 24, 3) and first.dtype == torch.float32


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_the_number_of_threads_does_not_matter(name: str) -> None:
    """A worker has one thread, the process that trains has many: both must draw the same."""
    hr, threads = moving_clip(3, 96, 112), torch.get_num_threads()
    results = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(torch.stack([degrade(hr, name, seed) for seed in range(6)]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", [name for name in DEGRADATIONS if name != "clean"])
def test_other_seeds_give_other_clips(name: str) -> None:
    hr = moving_clip()
    assert name == "h264_crf30" or not all(
        torch.equal(degrade(hr, name, 0), degrade(hr, name, seed)) for seed in range(1, 5)
    )


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_global_random_numbers_are_left_alone(name: str) -> None:
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    degrade(moving_clip(2), name, 0)
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_results_lie_on_8_bit_levels(name: str) -> None:
    levels = degrade(moving_clip(), name, 1) * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert levels.min() >= 0 and levels.max() <= 255


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "scale"),
    [(1, 64, 64, 4), (1, 16, 16, 4), (2, 68, 92, 4), (3, 30, 42, 2), (1, 15, 21, 1), (1, 1, 1, 1), (5, 24, 40, 8)],
)
@pytest.mark.parametrize("name", DEGRADATIONS)
def test_every_size_works(name: str, num_frames: int, height: int, width: int, scale: int) -> None:
    """Single frames and patches of training, odd LR sizes, and sizes smaller than every kernel."""
    hr = moving_clip(num_frames, 80, 96)[:, :height, :width]
    config = dataclasses.replace(DEGRADATIONS[name], scale=scale)
    for seed in range(3):
        lr = degrade(hr, config, seed)
        assert lr.shape == (num_frames, height // scale, width // scale, 3) and lr.isfinite().all()


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_clips_stay_recognisable(name: str) -> None:
    hr = moving_clip(4, 128, 128, cell=32)
    clean = degrade(hr, "clean", 0)
    for seed in range(6):
        both = torch.stack([clean.flatten(), degrade(hr, name, seed).flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.85, seed


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_configurations_change_nothing(name: str) -> None:
    hr = torch.from_numpy(to_levels(moving_clip(5))).float() / 255
    for seed in range(3):
        assert torch.equal(degrade(hr, NEUTRAL[name], seed), hr)


def fields_of(config: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield (path, value) of everything in a configuration, through its parts; walks stay whole."""
    if dataclasses.is_dataclass(config) and not isinstance(config, Walk):
        for field in dataclasses.fields(config):
            yield from fields_of(getattr(config, field.name), f"{path}.{field.name}".strip("."))
    elif isinstance(config, tuple) and any(dataclasses.is_dataclass(each) for each in config):
        for index, each in enumerate(config):
            yield from fields_of(each, f"{path}.{index}")
    else:
        yield path, config


def test_realbasicvsr_has_the_published_numbers() -> None:
    """Source: the training configuration of RealBasicVSR."""
    found = dict(fields_of(DEGRADATIONS["realbasicvsr"]))
    kernels = (0.405, 0.225, 0.108, 0.027, 0.108, 0.027, 0.1)
    for index, (probability, sigma) in enumerate([(1.0, 3), (0.8, 1.5)]):
        blur = {key.split(".")[-1]: value for key, value in found.items() if key.startswith(f"rounds.{index}.blur.")}
        assert blur == {
            "probability": probability,
            "sizes": (7, 9, 11, 13, 15, 17, 19, 21),
            "shares": kernels,
            "sigma": Walk(0.2, sigma, 0.02),
            "angle": Walk(-pi, pi, 0.31416),
            "beta_gaussian": Walk(0.5, 4, 0.05),
            "beta_plateau": Walk(1, 2, 0.1),
            "omega_lows": (pi / 3, pi / 5),
            "omega_step": 0.0628,
        }
    rounds = [
        ((0.2, 0.7, 0.1), Walk(0.15, 1.5, 0.015), Walk(1, 30, 0.1), Walk(0.05, 3, 0.005)),
        ((0.3, 0.4, 0.3), Walk(0.3, 1.2, 0.03), Walk(1, 25, 0.1), Walk(0.05, 2.5, 0.005)),
    ]
    for index, (shares, factor, sigma, poisson) in enumerate(rounds):
        start = f"rounds.{index}"
        assert (found[f"{start}.resize.shares"], found[f"{start}.resize.factor"]) == (shares, factor)
        assert found[f"{start}.resize.even"] and not found[f"{start}.resize.of_lr"]
        assert (found[f"{start}.noise.sigma"], found[f"{start}.noise.poisson"]) == (sigma, poisson)
        assert (found[f"{start}.noise.gaussian_share"], found[f"{start}.noise.gray_probability"]) == (0.5, 0.4)
        assert found[f"{start}.compressions.0.quality"] == Walk(30, 95, 3)
    for video in ("rounds.0.compressions.1", "last"):
        assert (found[f"{video}.bits"], found[f"{video}.area"]) == ((1e4, 1e5), 256 * 256)
        assert found[f"{video}.shares"] == (2 / 3, 1 / 3)
    assert found["ringing.probability"] == 0.8 and found["ringing.shares"] == (0.0,) * 6 + (1.0,)
    assert found["ringing.omega_lows"] == (pi / 3, pi / 3) and found["ringing.omega_step"] == 0.0628
    assert found["sharpen"] is True


def test_dove_is_realbasicvsr_without_walks_and_sharpening() -> None:
    """Source: DOVE's degradation settings; only JPEG's quality wanders there."""
    ours, theirs = (dict(fields_of(DEGRADATIONS[name])) for name in ("dove", "realbasicvsr"))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, Walk):
            steps = 3 if key.endswith("quality") else 0
            assert ours[key] == dataclasses.replace(value, step=steps), key
        elif key.endswith("omega_step"):
            assert ours[key] == 0
        elif key == "sharpen" or key.endswith("area"):
            assert ours[key] != value
        else:
            assert ours[key] == value, key


def test_realesrgan_adcsr_has_the_published_numbers() -> None:
    """Source: AdcSR's config.yml."""
    found = dict(fields_of(DEGRADATIONS["realesrgan_adcsr"]))
    expected = {
        "rounds.0.blur.probability": 1.0,
        "rounds.0.blur.sigma": Walk(0.2, 1.5),
        "rounds.0.blur.beta_gaussian": Walk(0.5, 2),
        "rounds.0.blur.beta_plateau": Walk(1, 1.5),
        "rounds.0.resize.shares": (0.2, 0.7, 0.1),
        "rounds.0.resize.factor": Walk(0.3, 1.5),
        "rounds.0.noise.sigma": Walk(1, 15),
        "rounds.0.noise.poisson": Walk(0.05, 2),
        "rounds.0.compressions.0.quality": Walk(60, 95),
        "rounds.1.blur.probability": 0.5,
        "rounds.1.blur.sigma": Walk(0.2, 1),
        "rounds.1.resize.shares": (0.3, 0.4, 0.3),
        "rounds.1.resize.factor": Walk(0.6, 1.2),
        "rounds.1.resize.of_lr": True,
        "rounds.1.noise.sigma": Walk(1, 12),
        "rounds.1.noise.poisson": Walk(0.05, 1),
        "last.quality": Walk(60, 100),
        "ringing.probability": 0.8,
        "sharpen": False,
    }
    assert {key: found[key] for key in expected} == expected
    assert not [key for key, value in found.items() if isinstance(value, Walk) and value.step]


def test_what_a_seed_of_light_means_stays() -> None:
    """The bundled model was trained on these draws."""
    assert draw_mild(DEGRADATIONS["light"], np.random.default_rng(3)) == MildDraw(
        blur_sigma=pytest.approx(1.2662538804729477),
        noise_sigma=pytest.approx(4.353359086985838),
        noise_gray=False,
        jpeg_quality=66,
        h264_crf=pytest.approx(30.487811573956648),
        h264_preset="",
    )


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
    with pytest.raises(ConfigError, match="contrast"):
        FilmConfig(contrast=(0.5, 1.5))
    with pytest.raises(ConfigError, match="wax"):
        GeneratedConfig(wax=(0.5, 0.2))
    for config in (DegradationConfig, RealWorldConfig, FilmConfig, GeneratedConfig):
        with pytest.raises(ConfigError, match="scale 0"):
            config(scale=0)
