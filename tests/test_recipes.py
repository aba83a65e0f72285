"""Recipes hold what was published, and settings change what they name."""

import dataclasses
import json

import pytest

from adcvsr_core.config import PRESETS
from adcvsr_core.errors import ConfigError
from training import train
from training.config import StageConfig, TrainConfig, identity
from training.overrides import override
from training.recipes import (
    MEMORY_PRESETS,
    RECIPES,
    bundled_2d,
    bundled_blocks,
    bundled_finish,
    bundled_rich,
    bundled_stage1,
    bundled_steady,
    bundled_text,
    debug,
    fit_memory,
    get_recipe,
)

# recipe, key, value, where it was published
PUBLISHED = [
    # AdcSR, section 3.1 and its pointer to latent diffusion's autoencoder training
    ("adcsr_decoder", "stage0.steps", 250_000, "AdcSR: 250 K + 250 K steps"),
    ("adcsr_decoder", "stage1.steps", 250_000, "AdcSR: 250 K + 250 K steps"),
    ("adcsr_decoder", "stage0.loss.perceptual_name", "lpips-vgg", "latent diffusion: LPIPS with VGG"),
    ("adcsr_decoder", "stage0.loss.epsilon", 0.0, "L1"),
    ("adcsr_decoder", "stage0.lr_size", 64, "latent diffusion: 256 pixels"),
    ("adcsr_decoder", "stage1.adversary.pixel_backbone", "patch", "latent diffusion: PatchGAN"),
    ("adcsr_decoder", "stage1.adversary.pixel_weight", 0.5, "latent diffusion: disc_weight 0.5"),
    ("adcsr_decoder", "stage1.adversary.adaptive", True, "latent diffusion: adaptive weight"),
    ("adcsr_decoder", "stage1.adversary.betas", (0.5, 0.9), "latent diffusion: Adam"),
    ("adcsr_decoder", "stage0.betas", (0.5, 0.9), "latent diffusion: Adam"),
    # AdcSR's public training code
    ("adcsr_distill", "stage0.steps", 200_000, "200 epochs of 1,000 steps"),
    ("adcsr_distill", "stage0.batch", 96, "12 on each of 8 GPUs"),
    ("adcsr_distill", "stage0.lr_size", 128, "gt size 512"),
    ("adcsr_distill", "stage0.num_frames", 1, "images"),
    ("adcsr_distill", "stage0.mixture", (("realesrgan_adcsr", 1.0),), "Real-ESRGAN as AdcSR sets it"),
    ("adcsr_distill", "stage0.optimizer", "adam", "Adam"),
    ("adcsr_distill", "stage0.learning_rate", 1e-4, "1e-4"),
    ("adcsr_distill", "stage0.halve_after", 100_000, "x 0.5 at epoch 100"),
    ("adcsr_distill", "stage0.loss.feature", 1.0, "feature L1 and adversary 1 : 1"),
    ("adcsr_distill", "stage0.loss.pixel", 0.0, "no pixel term"),
    ("adcsr_distill", "stage0.adversary.feature_weight", 1.0, "feature L1 and adversary 1 : 1"),
    ("adcsr_distill", "stage0.adversary.learning_rate", 1e-6, "1e-6"),
    ("adcsr_distill", "stage0.adversary.lora_rank", 4, "LoRA rank 4"),
    ("adcsr_distill", "stage0.adversary.timestep", 999, "AdcSR's code: timesteps 999"),
    ("adcsr_distill", "stage0.adversary.noise", 0.0, "AdcSR's code: features as they are"),
    ("adcsr_distill", "stage0.adversary.feature_backbone", "sd-unet", "SD 2.1's UNet"),
    ("adcsr_distill", "teacher.kind", "osediff", "OSEDiff"),
    # AdcVSR, arXiv 2603.00458
    *((name, key, value, where) for name in ("adcvsr_stage1", "adcvsr_stage2") for key, value, where in (
        ("stage0.steps", 200_000, "200 K iterations a stage"),
        ("stage0.batch", 8, "batch 8"),
        ("stage0.num_frames", 25, "25 frames"),
        ("stage0.lr_size", 128, "512 x 512"),
        ("stage0.mixture", (("realbasicvsr", 1.0),), "RealBasicVSR's degradation"),
        ("stage0.optimizer", "adam", "Adam"),
        ("stage0.halve_after", 100_000, "halved after 100 K"),
        ("stage0.loss.pixel", 0.1, "lambda_pixel 0.1"),
        ("stage0.loss.perceptual", 0.1, "lambda_pixel 0.1"),
        ("stage0.loss.perceptual_name", "dists", "DISTS"),
        ("stage0.loss.feature", 1.0, "lambda_feature 1"),
        ("stage0.loss.epsilon", 0.0, "L1"),
        ("stage0.trainable", "all", "end to end"),
        ("teacher.kind", "dove", "DOVE"),
    )),
    ("adcvsr_stage1", "stage0.learning_rate", 1e-4, "1e-4"),
    ("adcvsr_stage1", "stage0.adversary", None, "regression alone"),
    ("adcvsr_stage2", "stage0.learning_rate", 1e-5, "1e-5"),
    ("adcvsr_stage2", "stage0.adversary.learning_rate", 1e-7, "discriminators 1e-7"),
    ("adcvsr_stage2", "stage0.adversary.pixel_weight", 0.1, "lambda_pixel x lambda_adv"),
    ("adcvsr_stage2", "stage0.adversary.feature_weight", 1.0, "lambda_feature x lambda_adv"),
    ("adcvsr_stage2", "stage0.adversary.domains", ("pixel", "feature"), "dual domain"),
    ("adcvsr_stage2", "stage0.adversary.heads", "dual", "dual head"),
    ("adcvsr_stage2", "stage0.adversary.channels", 256, "256 channels"),
    ("adcvsr_stage2", "stage0.adversary.detail_channels", 192, "192 + 64"),
    ("adcvsr_stage2", "stage0.adversary.pixel_backbone", "convnext", "OpenCLIP's ConvNeXt"),
    ("adcvsr_stage2", "stage0.adversary.feature_backbone", "student", "the UNet after stage 1"),
    ("adcvsr_stage2", "stage0.adversary.stacked_detail", 1, "the paper's table of labels"),
]  # fmt: skip


def value_of(config: TrainConfig, key: str) -> object:
    target: object = config
    for name in key.split("."):
        target = (
            config.stages[int(name[5:])] if name.startswith("stage") and name[5:].isdigit() else getattr(target, name)
        )
    return target


@pytest.mark.parametrize(("recipe", "key", "value", "source"), PUBLISHED)
def test_published_values(recipe: str, key: str, value: object, source: str) -> None:
    assert value_of(get_recipe(recipe), key) == value, source


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    assert json.loads(RECIPES[name]().to_json())["recipe"] == name


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "debug"])
def test_stages_of_a_recipe_do_not_share_samples(name: str) -> None:
    recipe = get_recipe(name)
    offsets = [stage.seed_offset for stage in recipe.stages]
    # A teacher of clean clips teaches one pool of them under many kinds of damage.
    assert len(set(offsets)) == (1 if recipe.data.pool else len(offsets))


def test_bundled_recipes_are_what_the_model_card_says() -> None:
    recipes = bundled_2d(), bundled_stage1(), bundled_steady(), bundled_text(), bundled_blocks(), bundled_rich()
    frames, clips, steady, text, blocks, rich = recipes
    assert {recipe.student for recipe in recipes} == {PRESETS["default"]}
    assert all(s.temporal_strength == 0 and s.num_frames == 1 and s.loss.epsilon == 0.05 for s in frames.stages)
    assert [stage.steps for stage in frames.stages] == [500, 2500, 4500]
    assert set(dict(frames.stages[-1].mixture)) == {"clean", "h264", "light", "realbasicvsr", "film", "aigen"}
    assert [stage.trainable for stage in clips.stages] == ["temporal", "all"] and clips.stages[0].num_frames == 7
    assert [stage.trainable for stage in steady.stages] == ["temporal", "all"] and steady.data.fixed_camera == 0.4
    assert [stage.num_frames for stage in text.stages] == [1, 7] and text.data.page_share == 0.72
    assert [stage.trainable for stage in text.stages] == ["spatial", "all"]
    assert all(stage.loss.error == "rms" for stage in text.stages)
    assert [stage.trainable for stage in (*blocks.stages, *bundled_finish().stages)] == ["temporal", "all"]
    assert rich.stages[0].trainable == "spatial" and rich.stages[0].loss.perceptual == 0.1
    assert rich.teacher.kind == "peer" and rich.teacher.sees == "clean" and rich.data.pool == 480


@pytest.mark.parametrize("part", ["2d", "stage1", "steady", "text", "blocks", "rich"])
def test_the_small_model_is_trained_like_the_large_one_in_no_more_steps(part: str) -> None:
    small, large = get_recipe(f"nano_{part}"), get_recipe(f"bundled_{part}")
    assert small.student == PRESETS["nano"] and small.total_steps <= large.total_steps
    as_long = tuple(
        dataclasses.replace(stage, steps=other.steps) for stage, other in zip(small.stages, large.stages, strict=True)
    )
    assert dataclasses.replace(small, recipe=large.recipe, student=large.student, stages=as_long) == large


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(ConfigError, match="'nonsense'.*debug"):
        get_recipe("nonsense")


def test_settings_by_name() -> None:
    config = override(bundled_2d(), ["ema_decay=0.5", "stage1.steps=7", "stage.loss.perceptual=1", "data.workers=0"])
    assert config.ema_decay == 0.5 and config.data.workers == 0
    assert config.stages[1].steps == 7 and all(s.loss.perceptual == 1.0 for s in config.stages)
    assert override(debug(), ['stage0.mixture=[["clean", 1]]']).stages[0].mixture == (("clean", 1),)
    assert override(debug(), ["teacher.kind=checkpoint", "teacher.path=123"]).teacher.path == "123"


def test_settings_of_discriminators() -> None:
    config = override(debug(), ["stage.adversary.shuffled=0", 'stage3.adversary.domains=["pixel"]'])
    assert config.stages[3].adversary.shuffled == 0 and config.stages[3].adversary.domains == ("pixel",)
    assert override(debug(), ["stage3.adversary=null"]).stages[3].adversary is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nonsense=1", "has no 'nonsense'"),
        ("stage9.steps=1", "stage0 to stage3"),
        ("stage=1", "name a field of the stage"),
        ("stage.steps=fast", "expected a int"),
        ("stage.lr_size=20", "multiple of 16"),
        ("data=1", "name a field"),
        ("stage0.adversary.heads=single", "has no fields"),
        ("stage3.adversary.heads=three", "expected one of dual, single"),
        ("ema_decay", "not key=value"),
        ("precision=fp16", "expected one of bf16, fp32"),
    ],
)
def test_bad_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(debug(), [setting])


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        debug().seed = 1


def test_identity_forgets_only_what_changes_nothing() -> None:
    config = debug()
    same = override(config, ["validate_every=3", "data.workers=2", "micro_batch=1", "checkpoint_activations=true"])
    assert identity(same.to_json()) == identity(config.to_json())
    assert identity(override(config, ["stage0.batch=4"]).to_json()) != identity(config.to_json())


def test_max_steps_cuts_later_stages_first() -> None:
    assert [s.steps for s in train.shorten(debug(), 8).stages] == [6, 2]
    assert [s.steps for s in train.shorten(debug(), 3).stages] == [3]
    with pytest.raises(ConfigError):
        train.shorten(debug(), 0)


@pytest.mark.parametrize("gigabytes", MEMORY_PRESETS)
def test_memory_presets_keep_the_batch(gigabytes: int) -> None:
    config, fitted = get_recipe("video_from_adcsr"), fit_memory(get_recipe("video_from_adcsr"), gigabytes)
    assert fitted.micro_batch == 1 and fitted.checkpoint_activations
    for before, after in zip(config.stages, fitted.stages, strict=True):
        assert after.batch == before.batch and size(after) <= size(before)


def size(stage: StageConfig) -> int:
    return stage.num_frames * stage.lr_size**2
