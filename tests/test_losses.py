"""Laws of the loss terms, of warping and flow, and of the perceptual distances."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adcvsr_core.errors import CheckpointError, ConfigError, InputError
from tests.training_material import fake_alex_weights
from training import flow, losses, perceptual
from training.config import PERCEPTUALS, PIXEL_ERRORS

EPSILONS = st.sampled_from([0.0, 1e-4, 0.05, 1.0])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def blurred(frames: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(frames.flatten(0, 1), 5, 1, 2).view_as(frames)


def panning(num_frames: int, step: tuple[int, int], size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """A window that moves over noise by whole pixels: clip [1,T,3,H,W], its flow, and where it stays in sight."""
    x, y = step
    field = noise(1, 3, size + num_frames * abs(y), size + num_frames * abs(x), seed=7)
    starts = [(t * y if y > 0 else (t - num_frames) * y, t * x if x > 0 else (t - num_frames) * x) for t in range(9)]
    clip = torch.stack([field[..., a : a + size, b : b + size] for a, b in starts[:num_frames]], 1)
    motion = torch.tensor([-x, -y], dtype=torch.float32)[None, None, :, None, None]
    motion = motion.expand(1, num_frames - 1, 2, size, size).contiguous()
    return clip, motion, flow.inside(motion[0])[None]


# Regression


@given(EPSILONS, st.floats(-1, 1))
def test_charbonnier_lies_between_nothing_and_l1(epsilon: float, shift: float) -> None:
    hr = noise(1, 2, 3, 4, 4)
    loss = losses.charbonnier(hr + shift, hr, epsilon).item()
    assert -1e-6 <= loss <= abs(shift) + 1e-6
    assert loss >= abs(shift) - epsilon - 1e-6


def test_charbonnier_is_a_square_for_small_differences() -> None:
    hr = noise(1, 2, 3, 8, 8)
    assert losses.charbonnier(hr + 1e-3, hr, 0.05).item() == pytest.approx(1e-6 / 0.1, rel=0.1)


@given(st.floats(0.01, 1), st.floats(0.5, 4))
def test_root_mean_squares_are_those_of_each_clip(size: float, factor: float) -> None:
    hr, error = noise(2, 2, 3, 4, 4), size * noise(2, 2, 3, 4, 4, seed=1)
    loss = losses.root_mean_square(hr + error, hr, 0.0).item()
    assert loss == pytest.approx(error.square().mean((1, 2, 3, 4)).sqrt().mean().item(), rel=1e-4)
    assert losses.root_mean_square(hr + factor * error, hr, 0.0).item() == pytest.approx(factor * loss, rel=1e-3)
    assert losses.root_mean_square(hr, hr, 0.005).item() == pytest.approx(0, abs=1e-6)


def test_a_clip_pulls_as_hard_whatever_its_contrast_and_within_it_large_errors_pull_harder() -> None:
    hr = noise(2, 2, 3, 8, 8)
    error = noise(2, 2, 3, 8, 8, seed=1)
    error[1] *= 0.05
    for name, ratio in (("rms", 1.0), ("charbonnier", 0.05)):
        sr = (hr + error).requires_grad_()
        losses.ERRORS[name](sr, hr, 0.001 if name == "rms" else 5.0).backward()
        hard, soft = sr.grad.flatten(1).norm(dim=1)
        assert (soft / hard).item() == pytest.approx(ratio, rel=0.2), name
        pull = (sr.grad[0] / error[0]).abs()
        assert pull.std() / pull.mean() < 0.3, "in proportion to the error"


@pytest.mark.parametrize("error", PIXEL_ERRORS)
def test_a_batch_in_parts_gives_what_it_gives_as_a_whole(error: str) -> None:
    hr, sr = noise(4, 3, 3, 8, 8), noise(4, 3, 3, 8, 8, seed=1)
    for term in (losses.ERRORS[error], lambda *a: losses.frame_difference(*a, error)):
        parts = [term(a, b, 0.01) for a, b in zip(sr.split(2), hr.split(2), strict=True)]
        assert torch.stack(parts).mean().item() == pytest.approx(term(sr, hr, 0.01).item(), rel=1e-5)


def test_epsilon_0_is_exactly_l1_with_a_finite_gradient() -> None:
    hr = noise(1, 2, 3, 8, 8)
    sr = hr.clone()
    sr[..., :4] += 0.25
    sr.requires_grad_()
    loss = losses.charbonnier(sr, hr, 0.0)
    loss.backward()
    assert torch.equal(loss, (sr - hr).abs().mean())
    assert (sr.grad[..., 4:] == 0).all() and (sr.grad[..., :4] * sr.numel() == 1).all()


@given(EPSILONS)
def test_every_term_is_nothing_for_equal_clips_and_has_a_finite_gradient(epsilon: float) -> None:
    hr, motion, visible = panning(3, (2, -1))
    sr = hr.clone().requires_grad_()
    terms = [
        losses.charbonnier(sr, hr, epsilon),
        losses.frame_difference(sr, hr, epsilon),
        losses.flow_temporal(sr, hr, motion, visible),
    ]
    sum(terms).backward()
    assert all(term.abs() < 1e-6 and term.dtype == torch.float32 for term in terms)
    assert sr.grad.isfinite().all()


def test_terms_compute_in_float32() -> None:
    hr = noise(1, 3, 3, 8, 8).bfloat16()
    sr = (hr.float() + 0.01 * noise(1, 3, 3, 8, 8, seed=1)).bfloat16()
    exact = losses.frame_difference(sr.double(), hr.double(), 0.0)
    assert losses.frame_difference(sr, hr, 0.0).item() == pytest.approx(exact.item(), rel=1e-5)


def test_frame_difference_sees_flicker_only() -> None:
    hr = noise(1, 4, 3, 8, 8)
    assert losses.frame_difference(hr + 0.3, hr, 0.05).abs() < 1e-6
    blinking = hr.clone()
    blinking[:, ::2] += 0.3
    assert losses.frame_difference(blinking, hr, 0.05) > 0.1


def test_one_frame_has_no_time() -> None:
    sr = noise(2, 1, 3, 8, 8).requires_grad_()
    motion, visible = torch.zeros(2, 0, 2, 8, 8), torch.zeros(2, 0, 1, 8, 8)
    for term in (losses.frame_difference(sr, -sr, 0.0), losses.flow_temporal(sr, -sr, motion, visible)):
        term.backward()
        assert term == 0
    assert sr.grad.abs().sum() == 0


# Along the motion


@pytest.mark.parametrize("step", [(3, 0), (0, -2), (-4, 1), (0, 0)])
def test_warping_by_whole_pixels_is_exact(step: tuple[int, int]) -> None:
    clip, motion, visible = panning(3, step)
    fetched = flow.warp(clip[0, 1:], motion[0])
    assert torch.equal(fetched * visible[0], clip[0, :-1] * visible[0])
    assert visible.mean() == (1 - abs(step[0]) / 32) * (1 - abs(step[1]) / 32)


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_warping_a_ramp_adds_the_flow(x: float, y: float) -> None:
    row, column = torch.meshgrid(torch.arange(24.0), torch.arange(20.0), indexing="ij")
    motion = torch.tensor([x, y])[None, :, None, None].expand(1, 2, 24, 20)
    fetched = flow.warp(torch.stack([column, row])[None], motion)
    error = (fetched - torch.stack([column, row]) - motion).abs() * flow.inside(motion)
    assert error.max() < 1e-4


def test_flow_term_is_nothing_for_any_picture_that_moves_with_the_flow() -> None:
    hr, motion, visible = panning(4, (2, 1))
    other = panning(4, (2, 1))[0].flip(2) * 0.5 + 0.1  # another picture, the same motion
    assert losses.flow_temporal(other, hr, motion, visible) < 1e-6


def test_flow_term_sees_flicker_and_what_sticks_to_the_screen() -> None:
    hr, motion, visible = panning(4, (2, 1))
    blinking = hr.clone()
    blinking[:, ::2] += 0.3
    stuck = hr + 0.3 * noise(1, 1, 3, 32, 32, seed=3)
    assert losses.flow_temporal(blinking, hr, motion, visible).item() == pytest.approx(0.3, abs=1e-5)
    assert losses.flow_temporal(stuck, hr, motion, visible) > 0.1


def test_flow_term_does_not_pay_for_blur() -> None:
    """Where the flow is a little off, the usual term is lower for a blurred clip than for the truth; this is not."""
    hr, motion, visible = panning(4, (2, 1))
    off = motion + 0.4
    blur = blurred(hr)

    def usual(clip: Tensor) -> Tensor:
        fetched = flow.warp(clip[0, 1:], off[0])
        return (clip[0, :-1] - fetched).abs().mean()

    assert usual(blur) < usual(hr)
    assert losses.flow_temporal(hr, hr, off, visible) == 0 < losses.flow_temporal(blur, hr, off, visible)


def test_hidden_points_do_not_count() -> None:
    hr, motion, visible = panning(3, (2, 0))
    visible = visible.clone()
    visible[..., 10:] = 0
    spoiled = hr.clone()
    # Column x of a frame is fetched from column x - 2 of the next one: 8 and on are fetched by 10 and on only.
    spoiled[:, 1:, ..., 10:] = 5.0
    spoiled[:, 0, ..., 10:] = -5.0
    assert losses.flow_temporal(spoiled, hr, motion, visible) < 1e-6
    assert losses.flow_temporal(spoiled, hr, motion, visible * 0) == 0
    whole = losses.flow_temporal(hr + noise(1, 3, 3, 32, 32, seed=5), hr, motion, torch.ones_like(visible))
    half = losses.flow_temporal(hr + noise(1, 3, 3, 32, 32, seed=5), hr, motion, visible)
    assert half == pytest.approx(whole.item(), rel=0.1), "a mean, not a share of the whole frame"


def test_flow_term_pulls_both_frames_together() -> None:
    hr, motion, visible = panning(2, (2, 0))
    sr = hr.clone()
    sr[:, 0] += 0.2
    sr.requires_grad_()
    losses.flow_temporal(sr, hr, motion, visible).backward()
    assert sr.grad[:, 0].sum() > 0 > sr.grad[:, 1].sum()
    assert sr.grad.sum().abs() < 1e-5


# The clamp


def test_clamp_passes_the_gradient_of_the_identity() -> None:
    x = torch.tensor([-3.0, -1.0, -0.2, 0.7, 1.0, 5.0], requires_grad=True)
    clamped = losses.straight_through_clamp(x)
    assert torch.equal(clamped, x.clamp(-1, 1))
    weight = torch.arange(6.0)
    (clamped * weight).sum().backward()
    assert torch.equal(x.grad, weight)


# Estimated motion


def test_there_and_back_again_is_visible() -> None:
    forward = torch.zeros(1, 2, 32, 32)
    forward[:, 0] = 4
    backward = -forward
    backward[..., 16:20] = 9  # something else stands there in the second frame
    visible = flow.visibility(forward, backward)
    assert (visible[..., 12:16] == 0).all() and (visible[..., 28:] == 0).all()
    assert (visible[..., :11] == 1).all() and (visible[..., 17:28] == 1).all()


def test_dis_finds_a_pan() -> None:
    pytest.importorskip("cv2", reason="opencv is optional")
    field = torch.nn.functional.interpolate(noise(1, 3, 16, 16), size=(128, 128), mode="bicubic").clamp(-1, 1)
    clip = torch.stack([field[..., 20:84, 20 + 3 * t : 84 + 3 * t] for t in range(3)], 1)
    found, visible = flow.estimate(clip.expand(2, -1, -1, -1, -1), "dis")
    assert found.shape == (2, 2, 2, 64, 64) and visible.shape == (2, 2, 1, 64, 64)
    middle = found[..., 16:48, 16:48]
    assert (middle[:, :, 0] + 3).abs().mean() < 0.2 and middle[:, :, 1].abs().mean() < 0.2
    assert visible[..., 16:48, 16:48].mean() > 0.95 and visible[..., :2].mean() < 0.5
    assert torch.equal(found[0], found[1])


def test_motion_of_one_frame_is_empty() -> None:
    found, visible = flow.estimate(noise(2, 1, 3, 16, 24), "dis")
    assert found.shape == (2, 0, 2, 16, 24) and visible.shape == (2, 0, 1, 16, 24)


@pytest.mark.parametrize(("source", "package", "other"), [("dis", "cv2", "raft"), ("raft", "torchvision", "dis")])
def test_missing_flow_package_names_the_alternative(
    source: str, package: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", None)
    with pytest.raises(ConfigError, match=f"pip install .*{other}"):
        flow.estimate(noise(1, 2, 3, 16, 16), source)


def test_only_known_estimators_and_clips() -> None:
    with pytest.raises(ConfigError, match="'known'"):
        flow.estimate(noise(1, 2, 3, 16, 16), "known")
    with pytest.raises(InputError, match=r"\[2, 3, 16, 16\]"):
        flow.estimate(noise(2, 3, 16, 16), "dis")


# Perceptual distances


def test_stlpips_laws() -> None:
    distance = perceptual.STLPIPS("alex", fake_alex_weights())
    a = noise(2, 3, 64, 64)
    near, far = (a + 0.05).requires_grad_(), a.flip(3)
    assert distance(a, a).abs().max() == 0
    assert (distance(a, near) < distance(a, far)).all()
    distance(a, near).sum().backward()
    assert near.grad.isfinite().all() and near.grad.abs().sum() > 0


def test_stlpips_features_are_as_wide_as_it_says() -> None:
    distance = perceptual.STLPIPS("alex", fake_alex_weights())
    features = distance.features(noise(2, 3, 64, 64))
    assert tuple(feature.shape[1] for feature in features) == distance.channels == (64, 192, 384, 256, 256)
    assert all((feature >= 0).all() for feature in features)


def test_stlpips_refuses_other_weights() -> None:
    weights = fake_alex_weights()
    weights["extra"] = weights.pop("net.slice5.13.bias")
    with pytest.raises(CheckpointError, match=r"slice5\.13\.bias.*extra"):
        perceptual.STLPIPS("alex", weights)


def test_distances_by_name(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    torch.save(fake_alex_weights(), tmp_path / "features" / "alex_shift_tolerant.pth")
    distance = perceptual.make_distance("st-lpips-alex", tmp_path)
    a, b = noise(3, 3, 32, 32), noise(3, 3, 32, 32, seed=1)
    assert distance(a, b).shape == (3,) and not any(p.requires_grad for p in distance.parameters())
    assert torch.allclose(losses.perceptual(a[None], b[None], distance, [1]), distance(a[1:2], b[1:2]))
    with pytest.raises(InputError, match="prepare_bundled_data"):
        perceptual.make_distance("st-lpips-vgg", tmp_path)
    with pytest.raises(ConfigError, match="st-lpips-vgg"):
        perceptual.make_distance("vgg", tmp_path)


@pytest.mark.parametrize("name", [name for name in PERCEPTUALS if not name.startswith("st-")])
def test_missing_metrics_package_names_the_alternative(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ConfigError, match="torchmetrics.*is not installed.*st-lpips"):
        perceptual.make_distance(name, tmp_path)


@pytest.mark.parametrize("name", [name for name in PERCEPTUALS if not name.startswith("st-")])
def test_backbones_are_never_downloaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchmetrics", reason="torchmetrics is optional")
    pytest.importorskip("torchvision", reason="torchvision is optional")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConfigError, match="not on this machine: save https://"):
        perceptual.make_distance(name, tmp_path)
