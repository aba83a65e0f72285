"""Laws of what pipelines are built from: walks, kernels, filters, sizes and noise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adcvsr_core.degradation import DEGRADATIONS, to_levels
from adcvsr_core.degradation.draws import Walk, choose, wander
from adcvsr_core.degradation.filters import (
    UNSHARP_RADIUS,
    UNSHARP_SIGMA,
    apply_kernel,
    blur_step,
    gaussian,
    unsharp_mask,
)
from adcvsr_core.degradation.kernels import SHAPES, BlurConfig, bell_kernels, draw_kernels, sinc_kernels
from adcvsr_core.degradation.noise import NoiseConfig, noise_step, poisson_counts, poisson_noise
from adcvsr_core.degradation.resize import SMALLEST_EDGE, ResizeConfig, resize, resize_step
from adcvsr_core.errors import ConfigError
from tests.degradation_clips import moving_clip

WILD = BlurConfig(
    sigma=Walk(0.2, 3, 0.02), beta_gaussian=Walk(0.5, 4, 0.05), beta_plateau=Walk(1, 2, 0.1), omega_step=0.0628
)


def only(shape: str, config: BlurConfig = WILD) -> BlurConfig:
    return replace(config, shares=tuple(float(each == shape) for each in SHAPES))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def frame_of(clip: torch.Tensor) -> torch.Tensor:
    """The first frame of [T,H,W,3] as [3,H,W]."""
    return clip[0].permute(2, 0, 1).contiguous()


# Draws


@pytest.mark.parametrize("step", [0.0, 0.02, 5.0])
def test_walks_stay_in_range_and_step_little(step: float) -> None:
    paths = np.stack([Walk(0.2, 3.0, step).path(40, rng(seed)) for seed in range(100)])
    assert paths.min() >= 0.2 and paths.max() <= 3.0
    moves = np.abs(np.diff(paths))
    assert moves.max() <= step + 1e-12
    assert (moves.max() > 0.8 * min(step, 2.8)) if step else (moves.max() == 0)
    starts = paths[:, 0]
    assert abs(starts.mean() - 1.6) < 0.25 and starts.std() > 0.6  # anywhere in the range


def test_walks_begin_alike_whatever_their_step() -> None:
    """So `dove` and `realbasicvsr` draw the same clip from a seed, apart from the wandering."""
    still, moving = Walk(0, 1).path(9, rng(4)), Walk(0, 1, 0.1).path(9, rng(4))
    assert still[0] == moving[0] and (moving[1:] != still[1:]).any()
    generators = rng(4), rng(4)
    Walk(0, 1).path(9, generators[0])
    Walk(0, 1, 0.1).path(9, generators[1])
    assert generators[0].random() == generators[1].random()
    assert Walk(0, 1, 0.1).path(1, rng()).shape == (1,) and Walk(0, 9, 0.1).path(5, rng(), 7.0)[0] == 7.0


@pytest.mark.parametrize("memory", [0.0, 0.6, 0.9])
def test_wandering_keeps_its_deviation(memory: float) -> None:
    path = wander(20_000, memory, rng())
    assert abs(path.std() - 1) < 0.06
    assert abs(np.corrcoef(path[1:], path[:-1])[0, 1] - memory) < 0.03


def test_shares_are_drawn() -> None:
    shares = (1.0, 0.0, 3.0)
    counts = np.bincount([choose(shares, rng(seed)) for seed in range(800)], minlength=3) / 800
    assert counts[1] == 0 and abs(counts[2] - 0.75) < 0.05


# Kernels


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_are_normalised_and_symmetric(shape: str) -> None:
    sizes, lowest = set(), 0.0
    for seed in range(30):
        kernels = draw_kernels(only(shape), 5, rng(seed))
        sizes.add(kernels.shape[1])
        assert kernels.shape == (5, kernels.shape[1], kernels.shape[1])
        assert np.abs(kernels.sum((1, 2)) - 1).max() < 1e-9
        assert np.abs(kernels - kernels[:, ::-1, ::-1]).max() < 1e-12
        lowest = min(lowest, kernels.min())
    assert sizes <= set(WILD.sizes) and len(sizes) > 4
    assert (lowest < 0) == (shape == "sinc"), "only the sinc rings"


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if not shape.endswith("aniso")])
def test_round_shapes_are_round(shape: str) -> None:
    for seed in range(10):
        kernels = draw_kernels(only(shape), 2, rng(seed))
        assert np.abs(kernels - kernels.transpose(0, 2, 1)).max() < 1e-12
        assert np.abs(kernels - kernels[:, ::-1]).max() < 1e-12


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.endswith("aniso")])
def test_stretched_shapes_are_not(shape: str) -> None:
    kernels = [draw_kernels(only(shape), 1, rng(seed))[0] for seed in range(10)]
    differences = [np.abs(kernel - kernel[::-1]).max() / kernel.max() for kernel in kernels]
    assert np.median(differences) > 0.02


def test_gaussian_kernels_are_gaussians() -> None:
    ones = np.ones(1)
    kernel = bell_kernels(13, 1.5 * ones, 1.5 * ones, 0 * ones, ones)[0]
    line = gaussian(1.5, 6, torch.float64).numpy()
    assert np.abs(kernel - np.outer(line, line)).max() < 1e-12
    wide = bell_kernels(21, 3 * ones, ones, 0 * ones, ones)[0]  # wider than high
    turned = bell_kernels(21, 3 * ones, ones, np.pi / 2 * ones, ones)[0]
    assert wide.max(0)[10 + 3] > 5 * wide.max(1)[10 + 3] and np.abs(turned - wide.T).max() < 1e-12
    flat = bell_kernels(21, 3 * ones, 3 * ones, 0 * ones, 4 * ones)[0]  # a high beta: flat inside, steep outside
    assert flat[10, 12] > 0.97 * flat[10, 10] and flat[10, 15] < 0.01 * flat[10, 10]
    plateau = bell_kernels(21, 2 * ones, 2 * ones, 0 * ones, ones, plateau=True)[0]
    assert plateau[10, 14] / plateau[10, 10] == pytest.approx(1 / 5)


def test_sinc_kernels_cut_high_frequencies_off() -> None:
    omega = np.array([np.pi / 3])
    response = np.abs(np.fft.rfft2(sinc_kernels(21, omega)[0], s=(96, 96)))[0]  # along x, 0..pi in 48 steps
    assert response[0] == pytest.approx(1) and (response[:11] > 0.75).all() and (response[24:] < 0.12).all()


def test_kernels_wander_a_little() -> None:
    wandering = draw_kernels(only("iso"), 10, rng(1))
    moves = np.abs(np.diff(wandering, axis=0)).max((1, 2))
    assert (moves > 0).all() and moves.max() < 0.1 * wandering.max()
    fixed = draw_kernels(only("iso", replace(WILD, sigma=Walk(0.2, 3))), 10, rng(1))
    assert (fixed == fixed[0]).all()


def test_blur_may_not_happen() -> None:
    happened = [draw_kernels(replace(WILD, probability=0.5), 1, rng(seed)) is not None for seed in range(200)]
    assert 0.4 < np.mean(happened) < 0.6
    assert draw_kernels(replace(WILD, probability=0.0), 1, rng()) is None


# Filters


@pytest.mark.parametrize("size", [7, 21])
def test_filters_mirror_the_picture(size: int) -> None:
    frame = frame_of(moving_clip(1, 40, 33))
    kernel = torch.from_numpy(draw_kernels(replace(only("aniso"), sizes=(size,)), 1, rng(2))[0]).float()
    padded = F.pad(frame[None], (size // 2,) * 4, mode="reflect")
    direct = F.conv2d(padded, kernel.expand(3, 1, -1, -1), groups=3)[0]
    assert (apply_kernel(frame, kernel) - direct).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 30)])
def test_filters_take_frames_smaller_than_kernels(shape: tuple[int, int]) -> None:
    kernel = torch.from_numpy(draw_kernels(replace(WILD, sizes=(21,)), 1, rng())[0]).float()
    flat = torch.full((3, *shape), 0.3)
    assert (apply_kernel(flat, kernel) - 0.3).abs().max() < 1e-5
    assert (unsharp_mask(flat) - 0.3).abs().max() < 1e-5


def test_ringing_does_not_wrap() -> None:
    frame = torch.zeros(3, 48, 48)
    frame[:, :, 24:] = 1
    step = blur_step(only("sinc", replace(WILD, sizes=(21,))), 1, rng(3))
    filtered = step(0, frame)
    assert filtered.max() > 1.02 and filtered.min() < -0.02  # it overshoots
    levels = to_levels(filtered.permute(1, 2, 0)).astype(int)
    assert levels[:, :20].max() < 80 and levels[:, 28:].min() > 175


def test_unsharp_mask_is_the_published_one() -> None:
    frame = frame_of(moving_clip(1, 64, 80))
    line = gaussian(UNSHARP_SIGMA, UNSHARP_RADIUS)

    def blur(picture: torch.Tensor) -> torch.Tensor:
        padded = F.pad(picture[None], (UNSHARP_RADIUS,) * 4, mode="reflect")
        rows = F.conv2d(padded, line.view(1, 1, -1, 1).expand(3, 1, -1, 1), groups=3)
        return F.conv2d(rows, line.view(1, 1, 1, -1).expand(3, 1, 1, -1), groups=3)[0]

    detail = frame - blur(frame)
    mask = blur((detail.abs() * 255 > 10).float())
    expected = mask * (frame + 0.5 * detail).clamp(0, 1) + (1 - mask) * frame
    assert (unsharp_mask(frame) - expected).abs().max() < 1e-5
    assert (unsharp_mask(frame) - frame).abs().max() > 0.02
    weak = 0.5 + (frame - 0.5) * 0.02  # below the threshold everywhere
    assert (unsharp_mask(weak) - weak).abs().max() < 1e-6


# Sizes


@pytest.mark.parametrize("name", ["realbasicvsr", "dove", "realesrgan_adcsr"])
@pytest.mark.parametrize("index", [0, 1])
def test_sizes_stay_in_range(name: str, index: int) -> None:
    config = DEGRADATIONS[name].rounds[index].resize
    frame, lr_size = torch.zeros(3, 200, 120), (50, 30)
    base = lr_size if config.of_lr else (200, 120)
    kinds = set()
    for seed in range(60):
        step = resize_step(config, 6, rng(seed), lr_size)
        sizes = np.array([step(t, frame).shape[1:] for t in range(6)])
        low = np.maximum(np.array(base) * config.factor.low - 2, SMALLEST_EDGE)
        assert (sizes >= low).all() and (sizes <= np.array(base) * config.factor.high).all()
        assert not config.even or not (sizes % 2).any()
        assert (np.abs(np.diff(sizes, axis=0)) <= np.array(base) * config.factor.step + 2).all()
        assert config.factor.step or (sizes == sizes[0]).all()
        kinds.add(int(np.sign(sizes[0, 0] - base[0])))
    assert kinds == {-1, 0, 1}


@pytest.mark.parametrize("size", [(17, 40), (90, 31), (8, 8), (37, 29)])
def test_bilinear_is_torchs(size: tuple[int, int]) -> None:
    frame = frame_of(moving_clip(1, 37, 29))
    expected = F.interpolate(frame[None], size=size, mode="bilinear", align_corners=False)[0]
    assert (resize(frame, size, "bilinear") - expected).abs().max() < 1e-5


def test_small_crops_do_not_vanish() -> None:
    config = ResizeConfig(shares=(0, 1, 0), factor=Walk(0.15, 1.5), even=True)
    for seed in range(10):
        assert min(resize_step(config, 1, rng(seed), (4, 4))(0, torch.zeros(3, 16, 16)).shape[1:]) >= SMALLEST_EDGE


# Noise


def test_gaussian_noise_has_its_deviation_and_is_new_in_every_frame() -> None:
    frame = torch.full((3, 64, 64), 0.5)
    config = NoiseConfig(sigma=Walk(10, 10), poisson=Walk(1, 1), gaussian_share=1.0)
    colors = set()
    for seed in range(12):
        step = noise_step(config, 3, rng(seed))
        noise = torch.stack([step(t, frame) - 0.5 for t in range(3)]) * 255
        assert 9.5 < noise.std() < 10.5
        assert torch.corrcoef(noise.flatten(1))[0, 1].abs() < 0.05
        colors.add(bool((noise[:, 0] == noise[:, 1]).all()))
    assert colors == {True, False}, "gray and coloured noise both occur"


@pytest.mark.parametrize("mean", [1.0, 4.0, 30.0, 200.0])
def test_poisson_counts_have_poisson_moments(mean: float) -> None:
    deviates = torch.from_numpy(rng().standard_normal(400_000))
    counts = poisson_counts(torch.full_like(deviates, mean), deviates)
    assert (counts == counts.round()).all() and counts.min() >= 0
    assert counts.mean().item() == pytest.approx(mean, rel=0.03)
    assert counts.var().item() == pytest.approx(mean, rel=0.1)
    skew = (((counts - counts.mean()) / counts.std()) ** 3).mean().item()
    assert skew == pytest.approx(1 / math.sqrt(mean), abs=0.12)


def test_poisson_noise_grows_with_brightness() -> None:
    ramp = torch.linspace(0, 1, 256).expand(3, 64, 256)
    noise = poisson_noise(ramp, 1.0, False, rng())
    assert (noise[:, :, 0] == 0).all(), "black counts nothing"
    dark, bright = noise[:, :, 32:64].var(), noise[:, :, 192:224].var()
    assert bright / dark == pytest.approx(208 / 48, rel=0.15)
    assert bright == pytest.approx(208 / 255 / 256, rel=0.1)  # all 256 levels occur: white counts 256
    weak = poisson_noise(ramp, 255.0, False, rng())
    assert noise.std() / weak.std() == pytest.approx(255**0.5, rel=0.05)
    assert poisson_noise(ramp, 1.0, True, rng()).shape == (1, 64, 256)


def test_poisson_noise_counts_levels() -> None:
    """White counts as many photons as there are levels in the frame, rounded up to a power of 2."""
    two = torch.tensor([0.2, 0.8]).repeat(64).expand(3, 128, 128)
    noise = poisson_noise(two, 1.0, False, rng())
    counted = (noise + two) * 2
    assert (counted - counted.round()).abs().max() < 1e-5


def test_faults_are_named() -> None:
    with pytest.raises(ConfigError, match="low <= high"):
        Walk(2, 1)
    with pytest.raises(ConfigError, match="not all odd"):
        replace(WILD, sizes=(7, 8))
    with pytest.raises(ConfigError, match="are not 7 shares"):
        replace(WILD, shares=(1.0,))
    with pytest.raises(ConfigError, match="above 0"):
        replace(WILD, sigma=Walk(0, 1))
    with pytest.raises(ConfigError, match="resize factors"):
        ResizeConfig(shares=(1, 1, 1), factor=Walk(1.5, 2))
    with pytest.raises(ConfigError, match="three shares"):
        ResizeConfig(shares=(0, 0, 0), factor=Walk(0.5, 2))
    with pytest.raises(ConfigError, match="poisson_white"):
        NoiseConfig(sigma=Walk(1, 2), poisson=Walk(1, 2), poisson_white=0)
