"""Feature spaces: Stable Diffusion's against diffusers' own modules, the learned one against the student's decoder."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import awaken
from torch import Tensor

from adcvsr_core.errors import CheckpointError, ConfigError
from adcvsr_core.student import Student
from training.feature_space import LearnedFeatures, StableDiffusionFeatures, base_of, decode, features_loss
from training.generator import Generator
from training.recipes import debug


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def small_student() -> Student:
    """A student of the bundled family: no norms, a residual over bicubic, blocks that do something."""
    torch.manual_seed(0)
    return awaken(Student(debug().student)).eval().requires_grad_(True)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The VAE of a random, tiny Stable Diffusion and the half decoder that fits it."""
    diffusers = pytest.importorskip("diffusers", reason="Stable Diffusion's networks are its")
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )
    vae.decoder.mid_block = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=8).decoder.mid_block
    torch.save({"state_dict": {f"decoder.{k}": v for k, v in vae.decoder.state_dict().items()}}, folder / "half.ckpt")
    vae.save_pretrained(folder / "vae")
    return folder


def test_stable_diffusions_features_are_diffusers_own(sd: Path) -> None:
    from diffusers import AutoencoderKL

    space = StableDiffusionFeatures(str(sd), str(sd / "half.ckpt")).train()
    vae = AutoencoderKL.from_pretrained(sd / "vae", low_cpu_mem_usage=False, ignore_mismatched_sizes=True).eval()
    theirs = torch.load(sd / "half.ckpt", weights_only=True)["state_dict"]
    vae.decoder.mid_block = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8).decoder.mid_block
    vae.decoder.load_state_dict({key.removeprefix("decoder."): value for key, value in theirs.items()})
    clip = noise(1, 2, 3, 32, 32).requires_grad_()
    with torch.no_grad():
        latents = vae.post_quant_conv(vae.encode(clip[0]).latent_dist.mean)
        expected = vae.decoder.mid_block(vae.decoder.conv_in(latents))
    features = space.encode(clip, torch.zeros_like(clip))
    assert features.shape == (1, 2, 8, 4, 4) and torch.allclose(features[0], expected, atol=1e-4)
    assert not features.requires_grad and not any(p.requires_grad for p in space.parameters())


def test_stable_diffusions_features_refuse_other_files(sd: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="half_decoder=FILE"):
        StableDiffusionFeatures(str(sd), "")
    torch.save({"state_dict": {"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}}, tmp_path / "half.ckpt")
    with pytest.raises(CheckpointError, match=r"decoder\.conv_in\.bias is missing"):
        StableDiffusionFeatures(str(sd), str(tmp_path / "half.ckpt"))


@pytest.mark.parametrize("residual", ["bicubic", "none"])
def test_base_and_decoded_features_are_the_students_frames(small_student: Student, residual: str) -> None:
    student = awaken(Student(dataclasses.replace(small_student.config, residual=residual)))
    lr = noise(1, 3, 3, 16, 16) * 0.3
    with torch.no_grad():
        made = Generator(student)(lr, 1.0)
        again = base_of(lr, student) + decode(student, made.features)
    assert torch.allclose(again.clamp(-1, 1), made.sr, atol=1e-5)


def test_the_feature_space_learns_what_the_decoder_reads(small_student: Student) -> None:
    torch.manual_seed(0)
    space = LearnedFeatures(small_student.config)
    lr = noise(2, 1, 3, 16, 16, seed=4)
    hr = (base_of(lr, small_student) + 0.1 * noise(2, 1, 3, 64, 64, seed=5)).clamp(-1, 1)
    features = space.encode(hr, base_of(lr, small_student))
    assert features.shape == Generator(small_student)(lr, 1.0).features.shape
    optimizer = torch.optim.Adam(space.parameters(), lr=3e-3)
    values = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = features_loss(space, small_student, hr, lr)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.95 * values[0]
    assert all(p.grad is None for p in small_student.parameters())
