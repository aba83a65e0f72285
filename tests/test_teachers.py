"""Teachers that look at frames alone, against peft and diffusers; students as teachers; and the choice among them.

All networks are random and small.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from adcvsr_core.checkpoint import save_student
from adcvsr_core.errors import CheckpointError, ConfigError, InputError, NonFiniteError
from tests.teacher_clips import clip, copy_folder
from training.config import TeacherConfig
from training.teachers import make_teacher
from training.teachers.fingerprint import fingerprint
from training.teachers.osediff import OSEDiffTeacher
from training.teachers.prompt import FILE, write_prompt_embedding
from training.teachers.prompt import main as write_prompt
from training.teachers.student import StudentTeacher

diffusers = pytest.importorskip("diffusers", reason="one-step teachers run on it")

CPU = torch.device("cpu")


# One-step Stable Diffusion


UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": (1, 1, 2, 2),
    "cross_attention_dim": 12,
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": (4, 4, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "norm_num_groups": 2,
    "scaling_factor": 0.18215,
}
SD_SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    diffusers.AutoencoderKL(**VAE).save_pretrained(folder / "vae")
    # As in Stable Diffusion 2.1's folder: another class wrote it.
    diffusers.PNDMScheduler(**{k: v for k, v in SD_SCHEDULER.items() if k != "clip_sample"}).save_pretrained(
        folder / "scheduler"
    )
    write_prompt_embedding(folder / FILE, torch.randn(7, 12))
    return folder


def adapted(model, sets: dict[str, tuple[int, tuple[str, ...]]]):
    """Give a model adapters as the published programs do: name -> (rank, parts of the names of its layers)."""
    peft = pytest.importorskip("peft", reason="its adapters are the reference")
    names = [
        key.removesuffix(".weight")
        for key, p in model.named_parameters()
        if p.ndim in (2, 4) and key.endswith(".weight") and "time" not in key
    ]
    for adapter, (rank, parts) in sets.items():
        targets = [name for name in names if any(part in name for part in parts) and "post_quant" not in name]
        model.add_adapter(peft.LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=targets), adapter)
    model.set_adapter(list(sets))
    for key, parameter in model.named_parameters():
        if "lora" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def kept(model, *parts: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.state_dict().items() if any(part in key for part in parts)}


def make_osediff(folder: Path, path: Path):
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    unet.conv_in.weight.data += 0.1 * torch.randn_like(unet.conv_in.weight)
    sets = {"default_encoder": (2, ("down_blocks", "conv_in")), "default_decoder": (2, ("up_blocks", "conv_out"))}
    adapted(unet, sets | {"default_others": (2, ("mid_block",))})
    adapted(vae, {"default_encoder": (2, ("encoder.", "quant_conv"))})
    torch.save(
        {
            "rank_unet": 2,
            "rank_vae": 2,
            "unet_lora_encoder_modules": ["conv_in"],
            "state_dict_unet": kept(unet, "lora", "conv_in"),
            "state_dict_vae": kept(vae, "lora"),
        },
        path,
    )
    return unet, vae


def make_pisa(folder: Path, path: Path):
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    sets = {f"default_encoder_{kind}": (rank, ("down_blocks", "conv_in")) for kind, rank in (("pix", 2), ("sem", 3))}
    adapted(unet, sets | {"default_decoder_sem": (3, ("up_blocks",))})
    state = {"lora_rank_unet_pix": 2, "lora_rank_unet_sem": 3, "state_dict_unet": kept(unet, "lora")}
    torch.save(state, path)
    return unet, diffusers.AutoencoderKL.from_pretrained(folder / "vae")


def make_adcsr(folder: Path, path: Path):
    torch.manual_seed(5)
    unet, vae = diffusers.UNet2DConditionModel(**UNET), diffusers.AutoencoderKL(**VAE)
    torch.save({"unet": unet.state_dict(), "vae": vae.state_dict()}, path)
    return unet, vae


@pytest.mark.parametrize("make, timestep", [(make_osediff, 999), (make_pisa, 1), (make_adcsr, 999)])
@torch.no_grad()
def test_one_step_teachers_match_their_programs(sd_folder, tmp_path, make, timestep):
    """Frame by frame through peft's adapters and diffusers' scheduler, as the published programs do."""
    unet, vae = make(sd_folder, tmp_path / "weights.pkl")
    teacher = OSEDiffTeacher(sd_folder, tmp_path / "weights.pkl", CPU)
    lr = clip(1, 5, 3, 16, 16)
    large = F.interpolate(lr[0], scale_factor=4, mode="bicubic", align_corners=False)
    latents = vae.encode(large).latent_dist.mean * 0.18215
    prompt = load_file(sd_folder / FILE)["prompt_embedding"].expand(5, -1, -1)
    predicted = unet(latents, timestep, encoder_hidden_states=prompt).sample
    if timestep == 1:
        restored = latents - predicted
    else:
        scheduler = diffusers.DDPMScheduler(**SD_SCHEDULER, timestep_spacing="trailing")
        scheduler.set_timesteps(1)
        restored = scheduler.step(predicted, timestep, latents).prev_sample
    sr = vae.decode(restored / 0.18215).sample.clamp(-1, 1)[None]
    result = teacher(lr, ["a"])
    torch.testing.assert_close(result, sr, rtol=1e-3, atol=1e-3)
    plain = vae.decode(latents / 0.18215).sample.clamp(-1, 1)[None]
    assert (result - plain).abs().mean() > 0.01, "a UNet that did nothing would match anything"


@torch.no_grad()
def test_one_step_teachers_take_odd_sizes(sd_folder, tmp_path):
    make_pisa(sd_folder, tmp_path / "weights.pkl")
    teacher = OSEDiffTeacher(sd_folder, tmp_path / "weights.pkl", CPU)
    lr = clip(2, 1, 3, 9, 20)
    sr = teacher(lr, ["a", "b"])
    assert sr.shape == (2, 1, 3, 36, 80)
    padded = F.pad(lr.flatten(0, 1), (0, 12, 0, 7), mode="replicate").unflatten(0, (2, 1))
    torch.testing.assert_close(sr, teacher(padded, ["a", "b"])[..., :36, :80])


def test_one_step_weights_are_refused_by_name(sd_folder, tmp_path):
    path = tmp_path / "weights.pkl"
    torch.save({"rank_unet": 2, "rank_vae": 2, "state_dict_unet": {"nothing.weight": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match="nothing.weight"):
        OSEDiffTeacher(sd_folder, path, CPU).load()
    lora = {f"conv_in.lora_{side}.default.weight": torch.zeros(3, 3) for side in "AB"}
    torch.save({"rank_unet": 2, "rank_vae": 2, "state_dict_unet": lora}, path)
    with pytest.raises(CheckpointError, match="conv_in, adapter default.*of rank 2 do not fit"):
        OSEDiffTeacher(sd_folder, path, CPU).load()
    torch.save({"something": 1}, path)
    with pytest.raises(CheckpointError, match="expected OSEDiff's, PiSA-SR's or AdcSR's file"):
        OSEDiffTeacher(sd_folder, path, CPU).load()


class Ran:
    """What a hostile pickle would run."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def test_one_step_weights_run_nothing(sd_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"rank_unet": 2, "rank_vae": 2, "state_dict_unet": {}, "state_dict_vae": {}, "more": Ran()}, "evil.pkl")
    OSEDiffTeacher(sd_folder, "evil.pkl", CPU).load()
    assert not Path("ran").exists()


def test_one_step_teachers_say_how_to_make_the_embedding(sd_folder, tmp_path):
    folder = copy_folder(sd_folder, tmp_path / "sd")
    (folder / FILE).unlink()
    with pytest.raises(CheckpointError, match="python -m training.teachers.prompt"):
        OSEDiffTeacher(folder, tmp_path / "weights.pkl", CPU)


def test_prompt_embedding_is_written_once_for_stable_diffusion(tmp_path, capsys):
    transformers = pytest.importorskip("transformers", reason="it encodes the prompt")
    words = {"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 7}))
    assert write_prompt([str(tmp_path)]) == 1 and "text_encoder" in capsys.readouterr().err
    shape = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"vocab_size": 3, "max_position_embeddings": 7, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPTextConfig(**shape)
    encoder = transformers.CLIPTextModel(config).eval()
    encoder.save_pretrained(tmp_path / "text_encoder")
    assert write_prompt([str(tmp_path), "--prompt", "a"]) == 0
    tokens = torch.tensor([[1, 0, 2, 2, 2, 2, 2]])
    expected = encoder(tokens).last_hidden_state[0]
    torch.testing.assert_close(load_file(tmp_path / FILE)["prompt_embedding"], expected.detach(), rtol=1e-4, atol=1e-4)


# Students, and the choice


@torch.no_grad()
def test_student_teacher_is_the_student_on_whole_clips(student, tmp_path):
    save_student(student, tmp_path / "student.safetensors")
    teacher = make_teacher(TeacherConfig(kind="checkpoint", path=str(tmp_path / "student.safetensors")), CPU)
    lr = clip(2, 5, 3, 16, 32)
    torch.testing.assert_close(teacher(lr, ["a", "b"]), student(lr).clamp(-1, 1), rtol=1e-4, atol=1e-4)
    assert teacher(lr[:, :, :, :7, :19], ["a", "b"]).shape == (2, 5, 3, 28, 76)


@torch.no_grad()
def test_teachers_refuse_what_they_cannot_use(student, tmp_path):
    save_student(student, tmp_path / "student.safetensors")
    teacher = StudentTeacher(str(tmp_path / "student.safetensors"), CPU)
    teacher.load()
    for lr in (clip(1, 2, 3, 8, 8)[0], clip(1, 2, 3, 8, 8)[:, :0], torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(InputError, match="B,T,3,h,w"):
            teacher(lr, ["a"])
    with pytest.raises(InputError, match="got 1 for 2 clips"):
        teacher(clip(2, 1, 3, 8, 8), ["a"])
    teacher.student.decoder.conv_out.bias.data[0] = float("nan")
    teacher.student.train()  # which leaves the check to the teacher
    with pytest.raises(NonFiniteError, match="the clip's key"):
        teacher(clip(1, 1, 3, 8, 8), ["the clip's key"])


@pytest.mark.parametrize("kind", ["ground_truth", "folder"])
def test_targets_that_come_with_the_data_have_no_teacher(kind, tmp_path):
    assert make_teacher(TeacherConfig(kind=kind, path=str(tmp_path)), CPU) is None
    with pytest.raises(ConfigError, match="nothing to store"):
        make_teacher(TeacherConfig(kind=kind, cache=str(tmp_path)), CPU)


@pytest.mark.parametrize("kind", ["dove", "osediff", "checkpoint"])
def test_teachers_need_a_path(kind):
    with pytest.raises(ConfigError, match="teacher.path"):
        make_teacher(TeacherConfig(kind=kind), CPU)


def test_settings_without_meaning_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="teacher.extra"):
        make_teacher(TeacherConfig(kind="osediff", path=str(tmp_path)), CPU)
    with pytest.raises(ConfigError, match="no meaning"):
        make_teacher(TeacherConfig(kind="checkpoint", path="default", extra="more"), CPU)


def test_fingerprint_tells_large_files_apart(tmp_path):
    """Beyond 64 MiB only blocks are read: other weights, another size or another end still count."""
    path, size = tmp_path / "weights", (64 << 20) + 1000
    prints = set()
    for fill, length in ((b"\0", size), (b"\1", size), (b"\0", size + 1)):
        with path.open("wb") as file:
            file.truncate(length)
            for place in range(0, length - (64 << 10), 1 << 20):
                file.seek(place)
                file.write(fill * (64 << 10))
        prints.add(fingerprint(path))
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\2")
    prints.add(fingerprint(path))
    assert len(prints) == 4
