"""DOVE as a teacher, step by step against diffusers' own pipeline.

The network is random and small. The same comparison at DOVE's true size, on a GPU: `-m gpu`.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from adcvsr_core.errors import CheckpointError, OutputError
from tests.teacher_clips import clip, copy_folder
from training.config import TeacherConfig
from training.teachers import make_teacher
from training.teachers import random_dove as dove_shapes
from training.teachers.dove import TIMESTEP, DoveTeacher
from training.teachers.parts import on_device
from training.teachers.prompt import FILE, write_prompt_embedding

diffusers = pytest.importorskip("diffusers", reason="DOVE runs on it")

CPU = torch.device("cpu")
# What diffusers' pipeline expects and a teacher's own steps do must agree to the last digits of float32.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def dove_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dove") / "model"
    dove_shapes.write_random_dove(folder, tiny=True)
    return folder


@pytest.fixture(scope="module")
def dove(dove_folder) -> DoveTeacher:
    teacher = DoveTeacher(dove_folder, CPU)
    teacher.load()
    return teacher


@pytest.fixture(scope="module")
def pipeline(dove_folder):
    """Diffusers' own pipeline, read from the same folder by its own means."""
    pytest.importorskip("transformers", reason="diffusers' pipeline imports it")
    pipe = diffusers.CogVideoXPipeline.from_pretrained(
        dove_folder, text_encoder=None, tokenizer=None, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    return pipe


def compare_steps(teacher: DoveTeacher, pipe, lr: torch.Tensor, tolerance: dict[str, float]) -> torch.Tensor:
    """Assert that each of the teacher's steps does what diffusers' pipeline does; returns the last one's frames."""
    # DOVE's script: frames of 0..255, the last one repeated, black below and at the right, then enlarged.
    frames = (lr[0] + 1) * 127.5
    frames = torch.cat([frames, frames[-1:].repeat(-(len(frames) - 1) % 8, 1, 1, 1)])
    frames = F.pad(frames, (0, -lr.shape[4] % 16, 0, -lr.shape[3] % 16))
    frames = F.interpolate(frames, scale_factor=4, mode="bilinear", align_corners=False) / 255 * 2 - 1
    video = teacher.prepare(lr)
    assert video.shape[2] % 8 == 1 and all(edge % 64 == 0 for edge in video.shape[3:])
    torch.testing.assert_close(video[0].transpose(0, 1).float(), frames.to(teacher.dtype).float(), **tolerance)

    posterior = pipe.vae.encode(video).latent_dist
    latents = teacher.encode(video, ["a"])
    noise = (latents / pipe.vae_scaling_factor_image - posterior.mean) / posterior.std
    assert latents.shape[2] == (video.shape[2] - 1) // 4 + 1
    assert noise.std().item() == pytest.approx(1, abs=0.2), "drawn from the posterior, and scaled"

    first = latents[:, :, :1]
    even = torch.cat([first, latents], dim=2).transpose(1, 2)  # 2k + 1 latents, in patches of two
    height, width = video.shape[3:]
    expected = pipe._prepare_rotary_positional_embeddings(height, width, even.shape[1], latents.device)
    for ours, theirs in zip(teacher.positions(even), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    timestep = torch.full((1,), TIMESTEP, device=latents.device)
    predicted = pipe.transformer(even, teacher.prompt, timestep, image_rotary_emb=expected, return_dict=False)[0]
    restored = teacher.restore(latents)
    torch.testing.assert_close(restored, pipe.scheduler.get_velocity(predicted, even, timestep)[:, 1:], **tolerance)

    sr = teacher.decode(restored)
    torch.testing.assert_close(sr, pipe.decode_latents(restored).transpose(1, 2), **tolerance)
    return sr


@pytest.mark.parametrize("frames, height, width", [(1, 16, 16), (8, 5, 7), (9, 9, 18), (25, 16, 3)])
@torch.no_grad()
def test_dove_matches_diffusers_step_by_step(dove, pipeline, frames, height, width):
    lr = clip(1, frames, 3, height, width)
    sr = compare_steps(dove, pipeline, lr, CLOSE)
    result = dove(lr, ["a"])
    assert result.shape == (1, frames, 3, 4 * height, 4 * width) and result.dtype == torch.float32
    torch.testing.assert_close(result, sr[:, :frames, :, : 4 * height, : 4 * width].clamp(-1, 1), **CLOSE)
    assert result.std() > 0.05, "a constant would match anything"


@torch.no_grad()
def test_dove_is_one_step_of_the_pipeline_itself(dove, pipeline, monkeypatch):
    """The pipeline's own loop, told to start at the teacher's timestep, ends in one step at the same frames."""
    scheduler = pipeline.scheduler

    def one_step(num_inference_steps, device=None):
        scheduler.timesteps, scheduler.num_inference_steps = torch.tensor([TIMESTEP]), num_inference_steps

    monkeypatch.setattr(scheduler, "set_timesteps", one_step)
    lr = clip(1, 9, 3, 16, 16)
    latents = dove.encode(dove.prepare(lr), ["a"])
    sr = pipeline(
        latents=torch.cat([latents[:, :, :1], latents], dim=2).transpose(1, 2),
        prompt_embeds=dove.prompt,
        guidance_scale=1.0,
        num_inference_steps=1,
        height=64,
        width=64,
        num_frames=9,
        output_type="pt",
    ).frames
    torch.testing.assert_close(dove(lr, ["a"]), sr * 2 - 1, **CLOSE)


@torch.no_grad()
def test_dove_predicts_velocity_by_the_schedule_of_the_folder(dove):
    """x0 = sqrt(a) z - sqrt(1 - a) v with the published a at timestep 399."""
    scheduler = diffusers.CogVideoXDPMScheduler(**dove_shapes.SCHEDULER)
    assert float(scheduler.alphas_cumprod[TIMESTEP]) == pytest.approx(0.393544, abs=1e-6)
    torch.testing.assert_close(dove.scheduler.alphas_cumprod, scheduler.alphas_cumprod)


@torch.no_grad()
def test_dove_padding_laws(dove):
    """A clip is what is left of the clip that its padding makes of it."""
    lr = clip(1, 3, 3, 10, 13)
    longer = torch.cat([lr, lr[:, -1:].expand(-1, 6, -1, -1, -1)], dim=1)
    larger = F.pad(lr, (0, 3, 0, 6), value=-1.0)
    sr = dove(lr, ["a"])
    torch.testing.assert_close(sr, dove(longer, ["a"])[:, :3])
    torch.testing.assert_close(sr, dove(larger, ["a"])[..., :40, :52])


@torch.no_grad()
def test_dove_treats_every_clip_alone(dove):
    """A target depends on its clip, its key and the seed; on no neighbour in the batch and on no call before."""
    lr = clip(2, 1, 3, 8, 8)
    both = dove(lr, ["a", "b"])
    torch.testing.assert_close(both[1:], dove(lr[1:], ["b"]), **CLOSE)
    assert not torch.allclose(both[1:], dove(lr[1:], ["c"]), atol=1e-4), "another key, another draw"
    other = DoveTeacher(dove.folder, CPU, seed=1)
    assert not torch.allclose(both[:1], other(lr[:1], ["a"]), atol=1e-4), "another seed, another draw"
    assert other.identity != dove.identity


@torch.no_grad()
def test_dove_ignores_the_autocast_of_a_training_step(dove):
    lr = clip(1, 1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = dove(lr, ["a"])
    torch.testing.assert_close(inside, dove(lr, ["a"]), rtol=0, atol=0)


def test_dove_identity_follows_contents_not_places(dove, dove_folder, tmp_path):
    moved = copy_folder(dove_folder, tmp_path / "moved")
    assert DoveTeacher(moved, CPU).identity == dove.identity
    weights = moved / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, weights, {"format": "pt"})
    assert DoveTeacher(moved, CPU).identity != dove.identity


def test_dove_finds_the_embedding_where_doves_repository_has_it(dove, dove_folder, tmp_path):
    moved = copy_folder(dove_folder, tmp_path / "pretrained_models" / "DOVE")
    name = f"{hashlib.sha256(b'').hexdigest()}.safetensors"
    (tmp_path / "pretrained_models" / "prompt_embeddings").mkdir()
    (moved / FILE).rename(tmp_path / "pretrained_models" / "prompt_embeddings" / name)
    assert DoveTeacher(moved, CPU).identity == dove.identity
    (tmp_path / "pretrained_models" / "prompt_embeddings" / name).rename(tmp_path / "elsewhere.safetensors")
    assert DoveTeacher(moved, CPU, prompt_embedding=tmp_path / "elsewhere.safetensors").identity == dove.identity
    with pytest.raises(CheckpointError, match="teacher.extra"):
        DoveTeacher(moved, CPU)


def drop_weight(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({key: tensors[key] for key in sorted(tensors)[1:]}, weights, {"format": "pt"})


def truncate(folder: Path) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def change_scheduler(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("v_prediction", "epsilon"))


def change_transformer(folder: Path) -> None:
    """CogVideoX 1.0 has no temporal patches."""
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text()) | {"patch_size_t": None}
    transformer = dove_shapes.build_transformer({k: v for k, v in config.items() if not k.startswith("_")})
    transformer.save_pretrained(file.parent)


def shorten_prompt(folder: Path) -> None:
    write_prompt_embedding(folder / FILE, torch.zeros(5, 12))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (drop_weight, "missing"),
        (truncate, "cannot be read"),
        (change_scheduler, "'epsilon'; expected 'v_prediction'"),
        (change_transformer, "expected CogVideoX 1.5"),
        (shorten_prompt, "this network takes [6, 12]"),
    ],
)
def test_dove_refuses_what_is_not_dove(dove_folder, tmp_path, spoil, message):
    spoiled = copy_folder(dove_folder, tmp_path)
    spoil(spoiled)
    with pytest.raises(CheckpointError) as caught:
        DoveTeacher(spoiled, CPU).load()
    assert message in str(caught.value)


def test_dove_needs_its_parts(dove_folder, tmp_path):
    folder = copy_folder(dove_folder, tmp_path)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks vae/diffusion_pytorch_model.safetensors"):
        DoveTeacher(folder, CPU)


def test_true_shape_has_the_published_number_of_parameters():
    with torch.device("meta"):
        transformer = dove_shapes.build_transformer(dove_shapes.TRANSFORMER)
        vae = dove_shapes.build_vae(dove_shapes.VAE)
    assert sum(p.numel() for p in transformer.parameters()) == 5_570_676_352
    assert sum(p.numel() for p in vae.parameters()) == 215_583_907


def test_weights_take_turns_on_a_device_without_being_copied_back():
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 2, 1, bias=False))
    before = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    with pytest.raises(ZeroDivisionError), on_device(module, torch.device("meta")):
        assert all(tensor.is_meta for tensor in module.state_dict().values())
        assert module(torch.empty(1, 3, 2, 2, device="meta")).is_meta
        raise ZeroDivisionError
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == before


def test_random_dove_overwrites_nothing(dove_folder):
    with pytest.raises(OutputError, match="not empty"):
        dove_shapes.write_random_dove(dove_folder, tiny=True)


@pytest.mark.gpu
@torch.no_grad()
def test_dove_at_true_size(tmp_path):
    """Needs 24 GB of device memory, 12 GB of disk, and as much main memory."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    dove_shapes.write_random_dove(tmp_path / "dove")
    teacher = DoveTeacher(tmp_path / "dove", torch.device("cuda"))
    teacher.load()
    teacher.vae.to(teacher.device)
    teacher.transformer.to(teacher.device)
    pipe = diffusers.CogVideoXPipeline(None, None, teacher.vae, teacher.transformer, teacher.scheduler)
    for frames, height, width in [(1, 64, 64), (8, 45, 61), (9, 80, 33), (25, 128, 128)]:
        lr = clip(1, frames, 3, height, width).cuda()
        sr = compare_steps(teacher, pipe, lr, {"rtol": 2e-2, "atol": 2e-2})
        result = teacher(lr, ["a"])
        assert result.shape == (1, frames, 3, 4 * height, 4 * width) and result.isfinite().all()
        cut = sr[:, :frames, :, : 4 * height, : 4 * width].float().clamp(-1, 1)
        torch.testing.assert_close(result, cut, rtol=2e-2, atol=2e-2)


def test_make_teacher_reads_dove(dove_folder, dove, tmp_path):
    config = TeacherConfig(kind="dove", path=str(dove_folder), extra=str(dove_folder / FILE))
    teacher = make_teacher(config, "cpu")
    assert teacher.identity == dove.identity and teacher.transformer is not None
    cached = make_teacher(TeacherConfig(kind="dove", path=str(dove_folder), cache=str(tmp_path)), "cpu")
    assert cached.identity == dove.identity and cached.teacher.transformer is None, "loaded when it is needed"
