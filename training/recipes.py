"""One function per recipe, each returning the whole configuration of a run.

`bundled_2d` and `bundled_stage1`, one after the other, made the model in adcvsr_core/weights; `debug` is every part
of a run at toy size, for tests. Knows nothing about how a run is done.
"""

from collections.abc import Callable
from dataclasses import replace

from adcvsr_core.config import PRESETS, StudentConfig
from adcvsr_core.errors import ConfigError

from .config import DataConfig, LossConfig, StageConfig, TrainConfig

# Users' clips are compressed: half of the clips are clean, a quarter H.264, the rest mildly blurred, noisy or JPEG.
BUNDLED_MIXTURE = (("clean", 0.5), ("h264", 0.25), ("light", 0.25))


def bundled_2d() -> TrainConfig:
    """Single frames, the temporal blocks bypassed: what a small net needs first is many different pictures a step.

    It begins with clean frames, where there is most to learn: from silence, 200 of those take the loss to 0.94 of
    bicubic's, 400 of the mixture only to 0.98.
    """
    frames = StageConfig(
        name="clean frames",
        steps=500,
        batch=10,
        num_frames=1,
        lr_size=32,
        mixture=(("clean", 1.0),),
        temporal_strength=0.0,
        final_learning_rate=1.0,
    )
    mixed = replace(frames, name="frames", steps=2500, mixture=BUNDLED_MIXTURE, final_learning_rate=0.02, seed_offset=1)
    return TrainConfig(
        recipe="bundled_2d",
        student=PRESETS["default"],
        stages=(frames, mixed),
        data=DataConfig(film_share=0.5, transpose_probability=0.25),
    )


def bundled_stage1() -> TrainConfig:
    """Clips with the temporal blocks on (they start as the identity), a light perceptual term, less flicker.

    Give the result of `bundled_2d` with `--init`. Every third step bypasses the blocks.
    """
    return TrainConfig(
        recipe="bundled_stage1",
        student=PRESETS["default"],
        stages=(
            StageConfig(
                name="clips",
                steps=1000,
                batch=2,
                num_frames=7,
                lr_size=32,
                mixture=(("clean", 0.35), ("h264", 0.35), ("light", 0.3)),
                temporal_strength=1.0,
                bypass_every=3,
                learning_rate=2e-4,
                temporal_learning_rate=8e-4,
                warmup=30,
                seed_offset=2,
                loss=LossConfig(frame_difference=0.5, perceptual=0.02, perceptual_frames=1),
            ),
        ),
        data=DataConfig(film_share=0.5, transpose_probability=0.25),
        ema_decay=0.99,
        dead_after=0,
    )


def debug() -> TrainConfig:
    """Both stages of the bundled model in a few seconds, with a student of 30 thousand parameters."""
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
    return TrainConfig(
        recipe="debug",
        student=student,
        stages=(
            StageConfig(
                name="frames",
                steps=6,
                batch=2,
                num_frames=1,
                lr_size=16,
                mixture=mixture,
                temporal_strength=0.0,
                warmup=2,
            ),
            StageConfig(
                name="clips",
                steps=6,
                batch=1,
                num_frames=3,
                lr_size=16,
                mixture=mixture,
                temporal_strength=1.0,
                bypass_every=3,
                warmup=2,
                seed_offset=1,
                loss=LossConfig(frame_difference=0.5),
            ),
        ),
        data=DataConfig(workers=0),
        checkpoint_every=4,
        validate_every=6,
        autocast="none",
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "bundled_2d": bundled_2d,
    "bundled_stage1": bundled_stage1,
    "debug": debug,
}


def get_recipe(name: str) -> TrainConfig:
    """Return a recipe's configuration.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[name]()
