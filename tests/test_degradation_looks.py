"""What the larger pipelines must show: walks and orders of the real-world one, the marks of film and of generators."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from adcvsr_core.degradation import DEGRADATIONS, FilmConfig, GeneratedConfig, RealWorldConfig, degrade, realworld
from adcvsr_core.degradation.codecs import JpegConfig
from adcvsr_core.degradation.draws import Walk
from adcvsr_core.degradation.film import interlace, shift
from adcvsr_core.degradation.film_dirt import add_dust, draw_scratch
from adcvsr_core.degradation.generated import skin
from adcvsr_core.degradation.latents import CELL, GROUP, draw_latents, draw_pattern
from tests.degradation_clips import NEUTRAL, gray_clip, moving_clip, still_clip


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def film(**marks: object) -> FilmConfig:
    """Film of LR size with these marks only."""
    return replace(NEUTRAL["film"], **marks)


def generated(**marks: object) -> GeneratedConfig:
    """Generated video of LR size with these marks only."""
    return replace(NEUTRAL["generated"], **marks)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


# The real-world pipelines


def without_noise(name: str) -> RealWorldConfig:
    """A pipeline in which only walks can make frames of a still clip differ."""
    config = DEGRADATIONS[name]
    rounds = tuple(
        replace(each, compressions=(), noise=replace(each.noise, gaussian_share=1.0, sigma=Walk(0, 0)))
        for each in config.rounds
    )
    return replace(config, rounds=rounds, last=None)


def test_parameters_wander_in_realbasicvsr_and_stand_still_in_dove() -> None:
    hr = still_clip(8, 64, 64)
    moved = 0
    for seed in range(8):
        still = degrade(hr, without_noise("dove"), seed)
        assert (still == still[0]).all(), seed
        walked = degrade(hr, without_noise("realbasicvsr"), seed)
        moved += not bool((walked == walked[0]).all())
        # A step is small beside what two clips differ by.
        assert (walked[1:] - walked[:-1]).abs().mean() < 0.03
    assert moved >= 6


def test_dove_begins_as_realbasicvsr() -> None:
    """The same seed draws the same first frame; only sharpening and budgets differ."""
    hr = still_clip(3, 64, 64)
    walking = replace(without_noise("realbasicvsr"), sharpen=False)
    for seed in range(5):
        assert torch.equal(degrade(hr, walking, seed)[0], degrade(hr, without_noise("dove"), seed)[0])


def test_the_last_compression_trades_places(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("_reduce", "_compress"):
        step = getattr(realworld, name)
        monkeypatch.setattr(
            realworld,
            name,
            lambda *given, _step=step, _name=name, **named: (order.append(_name), _step(*given, **named)),
        )
    config = RealWorldConfig(last=JpegConfig(quality=Walk(50, 50)))
    found = []
    for seed in range(40):
        order.clear()
        degrade(moving_clip(1, 32, 32), config, seed)
        found.append(tuple(order))
    assert set(found) == {("_reduce", "_compress"), ("_compress", "_reduce")}
    assert 0.25 < np.mean([each[0] == "_reduce" for each in found]) < 0.75


def test_sharpening_is_an_option() -> None:
    hr = moving_clip(1, 64, 64)
    plain, sharp = (degrade(hr, RealWorldConfig(scale=1, sharpen=sharpen), 0) for sharpen in (False, True))
    assert sharp.std() > plain.std()


@pytest.mark.parametrize("name", ["realbasicvsr", "dove", "realesrgan_adcsr"])
def test_real_world_damage_is_real(name: str) -> None:
    hr = moving_clip(5, 128, 128, cell=32)
    clean = degrade(hr, "clean", 0)
    errors = [(degrade(hr, name, seed) - clean).abs().mean().item() * 255 for seed in range(8)]
    assert np.median(errors) > 3 and max(errors) > 1.4 * min(errors), errors


# Film


def test_scratches_are_vertical_and_persist() -> None:
    lr = degrade(gray_clip(6, 96, 96), film(scratches=(6.0, 6.0)), 1)
    marks = (lr - 128 / 255).abs().mean(3)  # [T,h,w]
    columns, rows = marks.mean(1), marks.mean(2)
    assert columns[0].std() > 4 * rows[0].std(), "vertical"
    assert correlation(columns[0], columns[1]) > 0.7, "there in the next frame too"
    assert marks.max() > 0.2


def test_scratches_live_and_die() -> None:
    covers = [draw_scratch(60, 96, 64, rng(seed))[0] for seed in range(40)]
    assert all(cover.min() >= 0 and cover.max() <= 1 for cover in covers)
    seen = np.array([cover.max((1, 2)) > 0.02 for cover in covers])  # [scratch, T]
    changes = np.abs(np.diff(seen.astype(int), axis=1)).sum(1)
    assert (changes <= 2).mean() > 0.9, "one life each"
    assert 0.1 < seen.mean() < 0.9


def test_dust_is_new_in_every_frame() -> None:
    grey = torch.full((3, 3, 120, 120), 0.5)
    dirty = add_dust(grey, 8.0, rng())
    hit = (dirty - 0.5).abs().amax(1) > 0.1  # [T,h,w]
    assert hit.any((1, 2)).all()
    both, either = (hit[0] & hit[1]).sum(), (hit[0] | hit[1]).sum()
    assert both < 0.1 * either
    assert dirty.max() > 0.7 and dirty.min() < 0.3, "bright and dark"
    assert torch.equal(add_dust(grey, 0.0, rng()), grey)


@pytest.mark.parametrize("size", [0.0, 0.9])
def test_grain_is_new_in_every_frame_and_strongest_in_mid_grey(size: float) -> None:
    config = film(grain=(12.0, 12.0), grain_size=(size, size))
    deviations = {}
    for value in (16, 128, 240):
        grain = degrade(gray_clip(3, 96, 96, value / 255), config, 0) - value / 255
        deviations[value] = grain.std().item() * 255
        assert abs(correlation(grain[0], grain[1])) < 0.05
    assert 10.5 < deviations[128] < 13.5
    assert deviations[16] < 0.7 * deviations[128] and deviations[240] < 0.7 * deviations[128]
    neighbours = correlation(grain[0, :, 1:], grain[0, :, :-1])
    assert (neighbours > 0.4) == (size > 0), "grains have a size"


def test_exposure_flickers() -> None:
    means = degrade(gray_clip(200, 16, 16), film(flicker=(0.04, 0.04)), 0).mean((1, 2, 3))
    assert 0.03 < (means.std() / means.mean()).item() < 0.05


def test_dyes_fade() -> None:
    hr = moving_clip(1, 64, 64)
    lr = degrade(hr, film(contrast=(0.7, 0.7), saturation=(0.5, 0.5), black=(0.05, 0.05)), 0)
    assert 0.3 < (lr.std(3).mean() / hr.std(3).mean()).item() < 0.4  # 0.7 * 0.5
    assert lr.min() > hr.min() and lr.max() < hr.max()
    cast = degrade(gray_clip(1, 8, 8), film(cast=(0.12, 0.12)), 1)
    assert cast.std(3).mean() > 0.01


@pytest.mark.parametrize(("x", "y"), [(1.0, 0.0), (0.3, -0.7), (-2.25, 1.5)])
def test_shifts_go_where_they_should(x: float, y: float) -> None:
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(40.0), indexing="ij")
    blob = torch.exp(-((rows - 24) ** 2 + (columns - 20) ** 2) / 18).expand(1, 3, -1, -1)
    moved = shift(blob, x, y)[0, 0]
    assert (moved * columns).sum() / moved.sum() - 20 == pytest.approx(x, abs=0.06)
    assert (moved * rows).sum() / moved.sum() - 24 == pytest.approx(y, abs=0.06)


def test_the_gate_weaves() -> None:
    hr = still_clip(6, 64, 64)
    lr = degrade(hr, replace(film(weave=(0.3, 0.3)), scale=4), 0)
    assert (lr[1:] - lr[:-1]).abs().mean((1, 2, 3)).min() > 1e-3


def test_interlacing_mixes_every_second_line_with_the_next_frame() -> None:
    frames = moving_clip(4).permute(0, 3, 1, 2)
    for first in (0, 1):
        mixed = interlace(frames, 1.0, first)
        assert torch.equal(mixed[:-1, :, first::2], frames[1:, :, first::2])
        assert torch.equal(mixed[:, :, 1 - first :: 2], frames[:, :, 1 - first :: 2])
        assert torch.equal(mixed[-1], frames[-1])
    still = frames[:1].repeat(3, 1, 1, 1)
    assert torch.equal(interlace(still, 0.6, 0), still)


# Generated video


def test_texture_boils_in_steps_of_four_frames() -> None:
    hr = still_clip(25, 64, 64)
    for marks in ({"boil": (0.6, 0.6)}, {"texture": (0.6, 0.6)}, {"grid": (3.0, 3.0)}, {"jump": (0.02, 0.02)}):
        lr = degrade(hr, generated(**marks), 2)
        changes = (lr[1:] - lr[:-1]).abs().mean((1, 2, 3))  # [24]
        groups = draw_latents(25, (64, 64), rng(2).spawn(1)[0]).group
        jumps = torch.from_numpy(np.diff(groups) > 0)
        assert jumps.sum() == 6 and set(np.diff(np.flatnonzero(jumps))) == {GROUP}
        assert changes[jumps].mean() > 2 * changes[~jumps].mean(), marks


def test_a_grid_of_eight_pixels_is_left() -> None:
    lr = degrade(gray_clip(4, 96, 96), generated(grid=(6.0, 6.0)), 0)
    power = torch.fft.rfft2(lr.mean(3) - lr.mean()).abs().square().mean(0)  # [96, 49]
    harmonics = torch.zeros_like(power, dtype=torch.bool)
    harmonics[:: 96 // CELL, :: 96 // CELL] = True
    harmonics[0, 0] = False
    assert power[harmonics].mean() > 50 * power[~harmonics].mean()
    assert 0.3 < lr.std() * 255 < 6


def test_patterns_and_latents() -> None:
    for seed in range(20):
        pattern = draw_pattern(rng(seed))
        assert pattern.shape == (CELL, CELL) and abs(pattern.mean()) < 1e-9 and pattern.std() == pytest.approx(1)
        latents = draw_latents(9, (20, 33), rng(seed))
        tiled = latents.tile(torch.from_numpy(pattern))
        assert (
            tiled.shape == (20, 33) and torch.equal(tiled[:12], tiled[8:]) and torch.equal(tiled[:, 8:], tiled[:, :-8])
        )
        assert latents.block_noise(2, rng(), tiled.device).shape == (9, 2, 20, 33)
    noise = draw_latents(40, (8, 8), rng()).noise((2000,), rng(), tiled.device)
    assert (noise.std(1) - 1).abs().max() < 0.08


def test_weak_texture_turns_to_wax_and_strong_edges_stay() -> None:
    edge = gray_clip(1, 64, 64, 0.3)
    edge[:, :, 32:] = 0.7
    texture = torch.randn(1, 64, 64, 1, generator=torch.Generator().manual_seed(0)) * (2 / 255)
    lr = degrade(edge + texture, generated(wax=(1.0, 1.0), wax_level=(6.0, 6.0)), 0)
    assert lr[:, :, :20].std() < 0.5 * (edge + texture)[:, :, :20].std()
    assert (lr[:, :, 34:36].mean() - lr[:, :, 28:30].mean()) > 0.37  # of 0.4


def test_skin_turns_to_wax_first() -> None:
    tones = {"skin": (0.75, 0.55, 0.45), "sky": (0.45, 0.55, 0.75), "leaf": (0.3, 0.5, 0.2), "grey": (0.5, 0.5, 0.5)}
    texture = torch.randn(1, 48, 48, 1, generator=torch.Generator().manual_seed(0)) * (6 / 255)
    left = {}
    for name, tone in tones.items():
        hr = torch.tensor(tone).expand(1, 48, 48, 3) + texture
        left[name] = degrade(hr, generated(wax=(1.0, 1.0), wax_level=(5.0, 5.0)), 0).mean(3).std().item()
        likeness = skin(torch.tensor(tone).view(1, 3, 1, 1)).item()
        assert likeness > 0.8 if name == "skin" else likeness < 0.3, (name, likeness)
    assert all(left["skin"] < 0.8 * left[name] for name in tones if name != "skin"), left


def test_boiling_moves_detail_only() -> None:
    hr = still_clip(1, 64, 64)
    lr = degrade(hr, generated(boil=(0.8, 0.8)), 0)
    coarse = torch.nn.AvgPool2d(8)
    difference = (lr - hr).permute(0, 3, 1, 2)
    assert difference.std() > 0.01 and coarse(difference).std() < 0.2 * difference.std()


def test_moving_things_smear_within_a_latent_frame() -> None:
    hr = moving_clip(9)
    lr = degrade(hr, generated(smear=(1.0, 1.0)), 3)
    group = draw_latents(9, (64, 96), rng(3).spawn(1)[0]).group
    for t in range(1, 9):
        assert torch.equal(lr[t], lr[t - 1]) == (group[t] == group[t - 1])
