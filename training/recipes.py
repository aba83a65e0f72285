"""One function per recipe, each returning the whole configuration of a run.

The papers' recipes hold every number that the papers publish; what they leave open has a field in `config.py` that
says so, and the choice made here. `bundled_*` and `nano_*` (`training.bundled_recipes`) made the models in
adcvsr_core/weights; `finetune_*` are for people with one GPU and a folder of clips; `debug` is every part of a run at
toy size, for tests. Knows nothing about how a run is done. Sources: AdcSR (arXiv 2411.13383) and its public training
code, AdcVSR (arXiv 2603.00458), latent diffusion's autoencoder (arXiv 2112.10752), the abstract of InstaVSR (arXiv
2603.26134).
"""

from collections.abc import Callable
from dataclasses import replace

from adcvsr_core.config import PRESETS, StudentConfig
from adcvsr_core.errors import ConfigError

from .bundled_recipes import (
    bundled_2d,
    bundled_blocks,
    bundled_finish,
    bundled_rich,
    bundled_stage1,
    bundled_stage2,
    bundled_steady,
    bundled_text,
    nano_2d,
    nano_blocks,
    nano_rich,
    nano_stage1,
    nano_steady,
    nano_text,
)
from .config import AdversaryConfig, DataConfig, LossConfig, StageConfig, TeacherConfig, TrainConfig

# What people's own footage may look like by the time it reaches an upscaler. Close to what the bundled model was
# trained on: a short run shall learn the footage, not another kind of damage.
FOOTAGE_MIXTURE = (("clean", 0.4), ("h264", 0.3), ("light", 0.15), ("realbasicvsr", 0.1), ("aigen", 0.05))

# GB of the GPU -> (frames of a clip, edge of LR patches). Starting points, not measured on such cards.
MEMORY_PRESETS = {12: (5, 64), 24: (9, 96), 48: (13, 128)}


def adcsr_decoder() -> TrainConfig:
    """AdcSR's first stage: a decoder with half the channels learns to read Stable Diffusion's latents.

    250 thousand steps of L1 and LPIPS, 250 thousand more with a patch adversary. AdcSR points to latent diffusion's
    code for it; batch, rates and the adaptive weight are that code's (4.5e-6 times the batch; the adversary's weight
    0.5). Set `stable_diffusion`.
    """
    stage = StageConfig(
        name="reconstruction",
        task="decoder",
        steps=250_000,
        batch=96,
        num_frames=1,
        lr_size=64,
        mixture=(("clean", 1.0),),
        temporal_strength=0.0,
        optimizer="adam",
        betas=(0.5, 0.9),
        learning_rate=4.5e-6 * 96,
        schedule="halve",
        loss=LossConfig(pixel=1.0, epsilon=0.0, perceptual=1.0, perceptual_name="lpips-vgg"),
    )
    adversary = AdversaryConfig(
        domains=("pixel",),
        heads="single",
        pixel_backbone="patch",
        pixel_weight=0.5,
        learning_rate=4.5e-6 * 96,
        betas=(0.5, 0.9),
        adaptive=True,
    )
    return TrainConfig(
        recipe="adcsr_decoder",
        student=PRESETS["adcsr"],
        stages=(stage, replace(stage, name="adversary", seed_offset=1, adversary=adversary)),
        data=DataConfig(video_share=0.0, transpose_probability=0.0, workers=4),
        checkpoint_every=5000,
        validate_every=5000,
        dead_after=0,
    )


def adcsr_distill() -> TrainConfig:
    """AdcSR's second stage: the pruned UNet learns its teacher's features, with Stable Diffusion's UNet as adversary.

    200 epochs of 1,000 steps, 12 images on each of 8 GPUs, LSDIR at 512 pixels, Real-ESRGAN's degradation as AdcSR
    sets it; Adam 1e-4 halved at epoch 100, adversary 1e-6 with LoRA of rank 4; both terms weigh 1 and no pixel is
    compared. Set `teacher.path`, `teacher.extra`, `stable_diffusion` and `half_decoder`; begin with the student of
    `adcsr_decoder`. AdcSR takes its teacher's latents; here every teacher gives frames, which the feature space encodes
    again, as in AdcVSR.
    """
    stage = StageConfig(
        name="distillation",
        steps=200_000,
        batch=96,
        num_frames=1,
        lr_size=128,
        mixture=(("realesrgan_adcsr", 1.0),),
        temporal_strength=0.0,
        optimizer="adam",
        learning_rate=1e-4,
        schedule="halve",
        halve_after=100_000,
        warmup=0,
        loss=LossConfig(pixel=0.0, epsilon=0.0, feature=1.0),
        adversary=AdversaryConfig(
            domains=("feature",),
            heads="single",
            feature_backbone="sd-unet",
            feature_weight=1.0,
            learning_rate=1e-6,
            lora_rank=4,
        ),
    )
    return TrainConfig(
        recipe="adcsr_distill",
        student=PRESETS["adcsr"],
        stages=(stage,),
        data=DataConfig(video_share=0.0, transpose_probability=0.0, workers=4),
        teacher=TeacherConfig(kind="osediff"),
        checkpoint_every=5000,
        validate_every=5000,
        dead_after=0,
    )


def adcvsr_stage1() -> TrainConfig:
    """AdcVSR's first stage: 2D + 1D against DOVE by L1 in both domains and DISTS.

    200 thousand steps, 8 clips of 25 frames at 512 pixels, RealBasicVSR's degradation, Adam 1e-4 halved after 100
    thousand, lambda_pixel 0.1 and lambda_feature 1. Set `teacher.path`, `stable_diffusion` and `half_decoder`; begin
    with AdcSR (`--init`). Ours: a random temporal strength every tenth step, so that the slider stays in what was
    learned.
    """
    stage = StageConfig(
        name="regression",
        steps=200_000,
        batch=8,
        num_frames=25,
        lr_size=128,
        mixture=(("realbasicvsr", 1.0),),
        temporal_strength=1.0,
        strength_every=10,
        optimizer="adam",
        learning_rate=1e-4,
        temporal_learning_rate=1e-4,
        schedule="halve",
        halve_after=100_000,
        warmup=0,
        loss=LossConfig(pixel=0.1, epsilon=0.0, feature=1.0, perceptual=0.1, perceptual_name="dists"),
    )
    return TrainConfig(
        recipe="adcvsr_stage1",
        student=PRESETS["adcvsr"],
        stages=(stage,),
        data=DataConfig(video_share=1.0, workers=4),
        teacher=TeacherConfig(kind="dove"),
        checkpoint_activations=True,
        checkpoint_every=1000,
        validate_every=5000,
        dead_after=0,
    )


def adcvsr_stage2() -> TrainConfig:
    """AdcVSR's second stage: the same terms and the dual-head discriminators in both domains.

    200 thousand steps more; student 1e-5 halved after 100 thousand, discriminators 1e-7, lambda_adv 1 inside each
    domain's lambda. Begin with the student of `adcvsr_stage1`.
    """
    first = adcvsr_stage1()
    stage = replace(
        first.stages[0],
        name="adversarial",
        learning_rate=1e-5,
        temporal_learning_rate=1e-5,
        seed_offset=1,
        adversary=AdversaryConfig(pixel_weight=0.1, feature_weight=1.0, learning_rate=1e-7),
    )
    return replace(first, recipe="adcvsr_stage2", stages=(stage,))


def video_from_adcsr() -> TrainConfig:
    """The official AdcSR weights, frozen, and the 31 million weights of the temporal blocks trained on your clips.

    The one full-size video model that people can have today. Begin with the converted AdcSR (`--init`). No teacher is
    needed: the 2D half keeps the detail it knows, the blocks learn what neighbouring frames tell.
    """
    stage = StageConfig(
        name="temporal blocks",
        steps=20_000,
        batch=4,
        num_frames=9,
        lr_size=64,
        mixture=FOOTAGE_MIXTURE,
        trainable="temporal",
        temporal_strength=1.0,
        strength_every=10,
        learning_rate=1e-4,
        temporal_learning_rate=1e-4,
        loss=LossConfig(pixel=1.0, epsilon=0.0, frame_difference=1.0),
    )
    return TrainConfig(
        recipe="video_from_adcsr",
        student=PRESETS["adcvsr"],
        stages=(stage,),
        data=DataConfig(video_share=1.0, workers=2),
        micro_batch=1,
        checkpoint_activations=True,
        dead_after=0,
    )


def instavsr() -> TrainConfig:
    """A recurrent student with a flow-guided term and adversaries on features and pixels.

    Our interpretation of InstaVSR's abstract, which is all that is known to us; none of its numbers are claimed. The
    frame before, as the student made it, enters beside the LR frame; gradients flow through all frames of a clip.
    Begin with AdcSR (`--init`); set `stable_diffusion` and `half_decoder`.
    """
    stage = StageConfig(
        name="recurrent",
        steps=100_000,
        batch=8,
        num_frames=5,
        lr_size=128,
        mixture=(("realbasicvsr", 1.0),),
        temporal_strength=1.0,
        strength_every=10,
        learning_rate=5e-5,
        temporal_learning_rate=5e-5,
        loss=LossConfig(
            pixel=1.0, epsilon=0.0, feature=1.0, perceptual=1.0, perceptual_name="dists", flow=1.0, flow_source="raft"
        ),
        adversary=AdversaryConfig(
            heads="single",
            feature_backbone="sd-unet",
            pixel_weight=0.1,
            feature_weight=0.1,
            learning_rate=1e-6,
        ),
    )
    return TrainConfig(
        recipe="instavsr",
        student=replace(PRESETS["adcsr"], recurrent=True),
        stages=(stage,),
        data=DataConfig(video_share=1.0, workers=4),
        checkpoint_activations=True,
        checkpoint_every=1000,
        validate_every=5000,
        dead_after=0,
    )


def finetune_full() -> TrainConfig:
    """All weights of a model (`--init`), on a folder of your clips."""
    stage = StageConfig(
        name="your clips",
        steps=2000,
        batch=4,
        num_frames=7,
        lr_size=48,
        mixture=FOOTAGE_MIXTURE,
        temporal_strength=1.0,
        bypass_every=5,
        strength_every=7,
        learning_rate=5e-5,
        temporal_learning_rate=5e-5,
        loss=LossConfig(frame_difference=0.5),
    )
    return TrainConfig(
        recipe="finetune_full", student=None, stages=(stage,), data=DataConfig(video_share=0.8), dead_after=0
    )


def finetune_temporal() -> TrainConfig:
    """Only the temporal blocks of a model (`--init`), on a folder of your clips: single frames stay as they are."""
    config = finetune_full()
    stage = replace(config.stages[0], trainable="temporal", bypass_every=0)
    return replace(config, recipe="finetune_temporal", stages=(stage,))


def finetune_lora() -> TrainConfig:
    """Adapters of rank 16 and the temporal blocks of a model (`--init`): a small file that is added to the model."""
    config = finetune_full()
    stage = replace(config.stages[0], trainable="lora", learning_rate=1e-4)
    return replace(config, recipe="finetune_lora", stages=(stage,))


def debug() -> TrainConfig:
    """Every kind of stage of the bundled model in seconds, with a student of 30 thousand parameters."""
    student = StudentConfig(
        channels=(8, 8, 8, 8),
        layers=1,
        heads=(0, 0, 2, 0),
        mid_heads=2,
        decoder_channels=(4, 4, 8, 8),
        decoder_layers=0,
        decoder_attention=False,
        norm="none",
        residual="bicubic",
        output_scale=0.1,
        color="none",
    )
    mixture = (("clean", 0.5), ("h264", 0.25), ("light", 0.25))
    frames = StageConfig(
        name="frames",
        steps=6,
        batch=2,
        num_frames=1,
        lr_size=16,
        mixture=mixture,
        temporal_strength=0.0,
        warmup=2,
    )
    clips = replace(
        frames,
        name="clips",
        num_frames=3,
        temporal_strength=1.0,
        bypass_every=3,
        seed_offset=1,
        loss=LossConfig(frame_difference=0.5, flow=0.1),
    )
    features = replace(frames, name="features", task="features", steps=3, seed_offset=2)
    adversarial = replace(
        clips,
        name="adversarial",
        steps=4,
        strength_every=4,
        seed_offset=3,
        loss=LossConfig(frame_difference=0.5, feature=0.1),
        adversary=AdversaryConfig(
            pixel_backbone="st-alex", channels=16, detail_channels=12, learning_rate=1e-3, pixel_weight=0.01, lead=1
        ),
    )
    return TrainConfig(
        recipe="debug",
        student=student,
        stages=(frames, clips, features, adversarial),
        data=DataConfig(workers=0),
        checkpoint_every=4,
        validate_every=10,
        precision="fp32",
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        bundled_2d,
        bundled_stage1,
        bundled_steady,
        bundled_text,
        bundled_blocks,
        bundled_finish,
        bundled_rich,
        bundled_stage2,
        nano_2d,
        nano_stage1,
        nano_steady,
        nano_text,
        nano_blocks,
        nano_rich,
        adcsr_decoder,
        adcsr_distill,
        adcvsr_stage1,
        adcvsr_stage2,
        video_from_adcsr,
        instavsr,
        finetune_full,
        finetune_temporal,
        finetune_lora,
        debug,
    )
}


def get_recipe(name: str) -> TrainConfig:
    """Return a recipe's configuration.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def fit_memory(config: TrainConfig, gigabytes: int) -> TrainConfig:
    """Fit a recipe to a GPU: one clip at a time, of few frames and small patches, activations computed twice.

    The batch stays; it is accumulated.
    """
    num_frames, lr_size = MEMORY_PRESETS[gigabytes]
    stages = tuple(
        replace(stage, num_frames=min(stage.num_frames, num_frames), lr_size=min(stage.lr_size, lr_size))
        for stage in config.stages
    )
    return replace(config, stages=stages, micro_batch=1, checkpoint_activations=True)
