"""The papers' recipes, end to end at toy size, one after the other as training/README.md tells.

Widths, sizes and steps shrink, random networks stand for Stable Diffusion, OSEDiff and DOVE, and the offline networks
for those that download; what each stage minimises, freezes and writes is the recipe's own.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from adcvsr_core.checkpoint import load_student, save_student
from adcvsr_core.config import StudentConfig
from adcvsr_core.convert import convert_adcsr, student_from_sd
from adcvsr_core.errors import ConfigError
from training.config import TrainConfig
from training.export import read_weights
from training.overrides import override
from training.recipes import get_recipe
from training.teachers.random_dove import write_random_dove
from training.trainer import Trainer

diffusers = pytest.importorskip("diffusers", reason="the papers' networks run on it")
pytest.importorskip("peft", reason="AdcSR's discriminator is adapted by it")

TINY = StudentConfig(
    channels=(8, 8, 16, 16),
    layers=1,
    heads=(1, 1, 2, 0),
    mid_heads=2,
    decoder_channels=(4, 4, 8, 8),
    decoder_layers=1,
    norm_groups=4,
    temporal="none",
)
SMALLER = ["stage.steps=2", "stage.batch=1", "stage.lr_size=16", "data.workers=0", "precision=fp32"]
OFFLINE = ["stage.loss.perceptual_name=st-lpips-alex", "stage.adversary.pixel_backbone=st-alex"]


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion of the student's widths, so that nothing has to be pruned away."""
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        block_out_channels=TINY.channels,
        layers_per_block=TINY.layers,
        attention_head_dim=[1, 1, 2, 2],
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        norm_num_groups=4,
        cross_attention_dim=12,
        use_linear_projection=True,
    ).save_pretrained(folder / "unet")
    diffusers.AutoencoderKL(
        block_out_channels=TINY.decoder_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=TINY.decoder_layers,
        norm_num_groups=4,
    ).save_pretrained(folder / "vae")
    return folder


def shrink(recipe: str, student: StudentConfig, settings: list[str]) -> TrainConfig:
    config = dataclasses.replace(get_recipe(recipe), student=student)
    return override(config, [*SMALLER, *OFFLINE, *settings])


def train(config: TrainConfig, output: Path, folder: Path, init: Path | None = None) -> list[dict]:
    weights = read_weights(init, config.student) if init else None
    assert Trainer(config, output, folder, init=weights).run()
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def decoder_run(sd: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    output = tmp_path_factory.mktemp("runs") / "decoder"
    settings = [f"stable_diffusion={sd}", "stage1.adversary.pixel_backbone=patch", "stage.adversary.channels=32"]
    return output, train(shrink("adcsr_decoder", TINY, settings), output, folder)


@pytest.fixture(scope="module")
def stage1_run(
    sd: Path, folder: Path, decoder_run: tuple[Path, list[dict]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict]]:
    root = tmp_path_factory.mktemp("stage1")
    write_random_dove(root / "dove", tiny=True)
    student = dataclasses.replace(TINY, temporal="blocks")
    settings = [*spaces(sd, decoder_run[0]), f"teacher.path={root / 'dove'}", "stage.num_frames=9"]
    lines = train(
        shrink("adcvsr_stage1", student, settings), root / "run", folder, decoder_run[0] / "student.safetensors"
    )
    return root, lines


def spaces(sd: Path, decoder: Path) -> list[str]:
    return [f"stable_diffusion={sd}", f"half_decoder={decoder / 'half_decoder.ckpt'}"]


def test_decoder_learns_behind_a_frozen_encoder(sd: Path, decoder_run: tuple[Path, list[dict]]) -> None:
    output, lines = decoder_run
    assert [line["stage"] for line in lines] == ["reconstruction"] * 2 + ["adversary"] * 2
    assert "adversarial_pixel" not in lines[0] and lines[-1]["adaptive_weight"] > 0
    assert all(line["perceptual"] > 0 for line in lines)
    before, after = student_from_sd(sd, TINY).state_dict(), load_student(output / "student.safetensors").state_dict()
    moved = {key.split(".")[0] for key in after if not torch.equal(before[key], after[key])}
    assert moved == {"decoder"}, "the UNet has no part in this stage"


def test_the_half_decoder_has_adcsrs_layout(decoder_run: tuple[Path, list[dict]], tmp_path: Path) -> None:
    output, _ = decoder_run
    student = load_student(output / "student.safetensors")
    net = {f"module.body.1.{key}": value for key, value in unet_names(student).items()}
    net |= {f"module.body.2.{key}": value for key, value in mid_names(student).items()}
    torch.save(net, tmp_path / "net_params_200.pkl")
    half = tmp_path / "halfDecoder.ckpt"
    shutil.copy(output / "half_decoder.ckpt", half)
    again = convert_adcsr(tmp_path / "net_params_200.pkl", half, TINY).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in student.state_dict().items())


def unet_names(student) -> dict[str, torch.Tensor]:
    return _their_names(student, "unet.")


def mid_names(student) -> dict[str, torch.Tensor]:
    return {key.removeprefix("mid_block."): value for key, value in _their_names(student, "decoder.mid_block.").items()}


def _their_names(student, prefix: str) -> dict[str, torch.Tensor]:
    from adcvsr_core.convert import key_table

    state, found = student.state_dict(), {}
    for ours, names in key_table(student.config).items():
        found |= dict(zip(names, state[ours].chunk(len(names)), strict=True))
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}


def test_distillation_compares_features_with_a_teachers(
    sd: Path, folder: Path, decoder_run: tuple[Path, list[dict]], tmp_path: Path
) -> None:
    init = decoder_run[0] / "student.safetensors"
    teacher = ["teacher.kind=checkpoint", f"teacher.path={init}"]
    config = shrink("adcsr_distill", TINY, [*spaces(sd, decoder_run[0]), *teacher])
    lines = train(config, tmp_path / "run", folder, init)
    assert all(line["feature"] > 0 and line["adversarial_feature"] > 0 for line in lines)
    assert lines[0]["loss"] == pytest.approx(lines[0]["feature"] + lines[0]["adversarial_feature"], rel=1e-4)
    before, after = load_student(init).state_dict(), load_student(tmp_path / "run" / "student.safetensors").state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in after if key.startswith("unet."))


def test_first_stage_follows_dove(stage1_run: tuple[Path, list[dict]]) -> None:
    root, lines = stage1_run
    assert all(line["feature"] > 0 and line["perceptual"] > 0 for line in lines)
    expected = 0.1 * lines[0]["pixel"] + 0.1 * lines[0]["perceptual"] + lines[0]["feature"]
    assert lines[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert load_student(root / "run" / "student.safetensors").config.temporal == "blocks"


def test_second_stage_adds_both_discriminators(
    sd: Path, folder: Path, decoder_run: tuple[Path, list[dict]], stage1_run: tuple[Path, list[dict]], tmp_path: Path
) -> None:
    root, _ = stage1_run
    student = dataclasses.replace(TINY, temporal="blocks")
    settings = [*spaces(sd, decoder_run[0]), f"teacher.path={root / 'dove'}", "stage.num_frames=9"]
    settings += ["stage.adversary.detail_channels=12", "stage.adversary.channels=16"]
    config = shrink("adcvsr_stage2", student, settings)
    lines = train(config, tmp_path / "run", folder, root / "run" / "student.safetensors")
    for line in lines:
        adversarial = 0.1 * line["adversarial_pixel"] + line["adversarial_feature"]
        regression = 0.1 * line["pixel"] + 0.1 * line["perceptual"] + line["feature"]
        assert line["loss"] == pytest.approx(regression + adversarial, rel=1e-4)


def test_instavsr_trains_a_recurrent_student(
    sd: Path, folder: Path, decoder_run: tuple[Path, list[dict]], tmp_path: Path
) -> None:
    student = dataclasses.replace(TINY, recurrent=True)
    settings = [*spaces(sd, decoder_run[0]), "stage.loss.flow_source=known", "stage.num_frames=3"]
    settings += ["data.video_share=0", "stage.adversary.detail_channels=12", "stage.adversary.channels=16"]
    config = shrink("instavsr", student, settings)
    lines = train(config, tmp_path / "run", folder, decoder_run[0] / "student.safetensors")
    assert all({"flow", "adversarial_pixel", "adversarial_feature"} <= line.keys() for line in lines)
    result = load_student(tmp_path / "run" / "student.safetensors")
    assert result.config.recurrent and result.lookahead == 0


def test_video_from_adcsr_trains_the_blocks_alone(
    folder: Path, decoder_run: tuple[Path, list[dict]], tmp_path: Path
) -> None:
    init = decoder_run[0] / "student.safetensors"
    config = shrink("video_from_adcsr", dataclasses.replace(TINY, temporal="blocks"), ["stage.num_frames=3"])
    train(config, tmp_path / "run", folder, init)
    before, after = load_student(init).state_dict(), load_student(tmp_path / "run" / "student.safetensors").state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    moved = [key for key in after if key not in before and "conv2" in key and after[key].abs().max() > 0]
    assert moved, "the blocks still do nothing"


def test_features_without_a_space_are_refused(folder: Path, tmp_path: Path, student) -> None:
    save_student(student, tmp_path / "s.safetensors")
    config = shrink("adcvsr_stage2", student.config, ["teacher.kind=ground_truth", "stage.num_frames=3"])
    with pytest.raises(ConfigError, match='task "features"'):
        Trainer(config, tmp_path / "run", folder).run()
