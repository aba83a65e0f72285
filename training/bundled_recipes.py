"""The recipes of the models that come with the package, in the order in which they made them.

Each begins with the student of the one before (`--init`). `bundled_*` made `default`; `nano_*` are the same stages with
fewer steps for the smaller network. Sizes fit two CPU cores: see training/README.md for how long each took. Knows
nothing about how a run is done.
"""

from dataclasses import replace

from adcvsr_core.config import PRESETS

from .config import AdversaryConfig, DataConfig, LossConfig, StageConfig, TeacherConfig, TrainConfig

# Users' clips are compressed: half of the clips are clean, a quarter H.264, the rest mildly blurred, noisy or JPEG.
FIRST_MIXTURE = (("clean", 0.5), ("h264", 0.25), ("light", 0.25))
# Then everything that people bring.
ALL_DAMAGE = (("clean", 0.4), ("h264", 0.25), ("light", 0.12), ("realbasicvsr", 0.08), ("film", 0.05), ("aigen", 0.1))
# Damage that differs from frame to frame, which is where neighbours know more than one frame does.
UNSTEADY = (
    ("clean", 0.15), ("h264", 0.35), ("light", 0.2), ("noise10", 0.1), ("realbasicvsr", 0.12), ("film", 0.03),
    ("aigen", 0.05),
)  # fmt: skip

# The teacher's pictures are of clean clips: most is to be learned there. For want of strong noise the student took
# noise for texture, and heavy damage is what it is weakest at.
RICH_DAMAGE = (
    ("clean", 0.38), ("h264", 0.17), ("noise10", 0.13), ("light", 0.06), ("realbasicvsr", 0.14), ("film", 0.05),
    ("aigen", 0.07),
)  # fmt: skip

# Where nothing moves but the damage, neighbours know most.
STEADY = (
    ("clean", 0.1), ("h264", 0.25), ("light", 0.1), ("noise10", 0.3), ("realbasicvsr", 0.1), ("film", 0.1),
    ("aigen", 0.05),
)  # fmt: skip
NOISY = (
    ("clean", 0.27), ("h264", 0.28), ("light", 0.08), ("noise10", 0.22), ("realbasicvsr", 0.07), ("film", 0.05),
    ("aigen", 0.03),
)  # fmt: skip
COMPRESSED = (
    ("clean", 0.3), ("h264", 0.3), ("light", 0.08), ("noise10", 0.17), ("realbasicvsr", 0.06), ("film", 0.05),
    ("aigen", 0.04),
)  # fmt: skip
MOSTLY_CLEAN = (
    ("clean", 0.4), ("h264", 0.2), ("light", 0.1), ("noise10", 0.14), ("realbasicvsr", 0.07), ("film", 0.04),
    ("aigen", 0.05),
)  # fmt: skip

# Letters are read in clean clips first of all; the temporal blocks are there for noise.
LETTERS = (
    ("clean", 0.45), ("h264", 0.28), ("light", 0.1), ("noise10", 0.1), ("realbasicvsr", 0.03), ("film", 0.01),
    ("aigen", 0.03),
)  # fmt: skip
LETTERS_AND_NOISE = (
    ("clean", 0.35), ("h264", 0.2), ("light", 0.08), ("noise10", 0.22), ("realbasicvsr", 0.07), ("film", 0.05),
    ("aigen", 0.03),
)  # fmt: skip

EVERYTHING = (
    ("clean", 0.35), ("h264", 0.25), ("light", 0.15), ("noise10", 0.08), ("realbasicvsr", 0.07), ("film", 0.03),
    ("aigen", 0.07),
)  # fmt: skip

# Of what is not film: there are three times as many pages as photographs.
_PAGES = 0.4


def bundled_2d() -> TrainConfig:
    """Single frames, the temporal blocks bypassed: what a small net needs first is many different pictures a step.

    It begins with clean frames, where there is most to learn: from silence, 200 of those take the loss to 0.94 of
    bicubic's, 400 of the mixture only to 0.98.
    """
    clean = StageConfig(
        name="clean frames",
        steps=500,
        batch=10,
        num_frames=1,
        lr_size=32,
        mixture=(("clean", 1.0),),
        temporal_strength=0.0,
        final_learning_rate=1.0,
    )
    mixed = replace(clean, name="frames", steps=2500, mixture=FIRST_MIXTURE, final_learning_rate=0.02, seed_offset=1)
    damaged = replace(mixed, name="all damage", steps=4500, mixture=ALL_DAMAGE, learning_rate=4e-4, seed_offset=5)
    data = DataConfig(page_share=_PAGES)
    return TrainConfig(recipe="bundled_2d", student=PRESETS["default"], stages=(clean, mixed, damaged), data=data)


def bundled_stage1() -> TrainConfig:
    """Clips: first the temporal blocks alone (they start as the identity), then all weights.

    The blocks learn on clips whose damage differs from frame to frame, which costs clean ones 0.2 to 0.35 dB; the
    second stage gets a part of that back. Every fourth of its steps bypasses the blocks.
    """
    blocks = StageConfig(
        name="temporal blocks",
        steps=2400,
        batch=2,
        num_frames=7,
        lr_size=32,
        mixture=UNSTEADY,
        trainable="temporal",
        temporal_strength=1.0,
        strength_every=10,
        learning_rate=1e-3,
        temporal_learning_rate=1e-3,
        seed_offset=6,
        loss=LossConfig(frame_difference=1.0),
    )
    together = replace(
        blocks,
        name="all weights",
        steps=1600,
        mixture=EVERYTHING,
        trainable="all",
        bypass_every=4,
        learning_rate=1e-4,
        temporal_learning_rate=5e-4,
        warmup=30,
        seed_offset=8,
        loss=LossConfig(frame_difference=0.5),
    )
    return _clip_run("bundled_stage1", blocks, together)


def bundled_steady() -> TrainConfig:
    """The temporal blocks alone once more, many of the cameras fixed, then all weights.

    Over photographs cameras nearly always move, and by what they see there the blocks learn to keep away from
    neighbours. Alone they learn to use them, and to take clean detail for noise, a third of a decibel; the second stage
    gets most of that back.
    """
    first, second = bundled_stage1().stages
    blocks = replace(
        first,
        name="fixed cameras",
        steps=3000,
        mixture=STEADY,
        learning_rate=2e-3,
        temporal_learning_rate=2e-3,
        seed_offset=14,
        loss=LossConfig(frame_difference=0.7),
    )
    together = replace(second, steps=1200, mixture=MOSTLY_CLEAN, learning_rate=2e-4, seed_offset=16)
    return _clip_run("bundled_steady", blocks, together, fixed_camera=0.4)


def bundled_text() -> TrainConfig:
    """Half of the clips are pages, three of four of text, and within a clip errors count by their squares.

    A network that has seen few small letters, or that draws the likelier of two strokes where it cannot know, breaks
    them; the mean of both strokes can be read. Pages of lines gain pictures more than letters. Many single frames
    first, the temporal blocks as they are, then clips to bring both together again.
    """
    _, together = bundled_steady().stages
    squares = LossConfig(error="rms", epsilon=0.005)
    letters = replace(
        together,
        name="letters and lines",
        steps=4900,
        batch=10,
        num_frames=1,
        mixture=LETTERS,
        trainable="spatial",
        bypass_every=3,
        learning_rate=8e-4,
        seed_offset=20,
        loss=squares,
    )
    clips = replace(
        together,
        name="clips of both",
        steps=900,
        mixture=LETTERS_AND_NOISE,
        learning_rate=3e-4,
        temporal_learning_rate=1e-3,
        seed_offset=22,
        loss=replace(squares, frame_difference=0.5),
    )
    return _clip_run("bundled_text", letters, clips, video_share=0.3, fixed_camera=0.4, page_share=0.72)


def bundled_blocks() -> TrainConfig:
    """The temporal blocks alone, for the layers around them that `bundled_text` made; clean frames pay for it."""
    blocks, _ = bundled_steady().stages
    alone = replace(blocks, name="blocks", steps=1400, mixture=NOISY, seed_offset=24)
    return _clip_run("bundled_blocks", alone, fixed_camera=0.4, page_share=0.5)


def bundled_finish() -> TrainConfig:
    """The faithful end: all weights, from the mean of what `bundled_text` and `bundled_blocks` end with.

    Clean frames get back what they paid, and the blocks lose much of their gain, for the other layers learn to do
    without them. The file is the mean of `bundled_blocks` and this.
    """
    _, clips = bundled_text().stages
    together = replace(
        clips,
        name="all weights",
        steps=700,
        mixture=COMPRESSED,
        learning_rate=2.5e-4,
        temporal_learning_rate=5e-4,
        seed_offset=26,
    )
    return _clip_run("bundled_finish", together, video_share=0.4, fixed_camera=0.4, page_share=0.6)


def bundled_rich() -> TrainConfig:
    """The rich end: the spatial layers go on from the faithful end, after a larger network's pictures.

    Give `teacher.path` (RealSR's network, of `prepare_benchmark_data`) and `teacher.cache`, and fill the cache first.
    The teacher sees clean clips, where it is at its best, and the student the same with all kinds of damage. What a
    network has drawn another can learn to draw, where real texture would leave it guessing. The temporal blocks stay
    the faithful end's, for few of these clips could teach them anything.
    """
    stage = StageConfig(
        name="distilled",
        steps=1500,
        batch=2,
        num_frames=5,
        lr_size=32,
        mixture=RICH_DAMAGE,
        trainable="spatial",
        temporal_strength=1.0,
        bypass_every=4,
        strength_every=10,
        learning_rate=4e-4,
        warmup=30,
        seed_offset=12,
        loss=LossConfig(epsilon=0.01, perceptual=0.1, perceptual_frames=2, flow=0.25),
    )
    teacher = TeacherConfig(kind="peer", sees="clean")
    return replace(_clip_run("bundled_rich", stage, video_share=0.4, pool=480), teacher=teacher)


def bundled_stage2() -> TrainConfig:
    """The paper's second stage at the size of the bundled model, with what needs no download.

    Give the result of `bundled_stage1` with `--init`. A small encoder learns the feature space first; then both
    discriminators join: ST-LPIPS's AlexNet on frames, the student's own frozen UNet on features. Rates are ours: the
    paper's fit networks a hundred times larger that train a thousand times longer.
    """
    features = StageConfig(
        name="features",
        task="features",
        steps=300,
        batch=4,
        num_frames=1,
        lr_size=32,
        mixture=FIRST_MIXTURE,
        temporal_strength=1.0,
        learning_rate=1e-3,
        seed_offset=3,
    )
    adversarial = StageConfig(
        name="adversarial",
        steps=600,
        batch=2,
        num_frames=7,
        lr_size=32,
        mixture=(("clean", 0.35), ("h264", 0.35), ("light", 0.3)),
        temporal_strength=1.0,
        bypass_every=5,
        strength_every=7,
        learning_rate=1e-4,
        temporal_learning_rate=2e-4,
        warmup=30,
        seed_offset=4,
        loss=LossConfig(frame_difference=0.5, perceptual=0.05, perceptual_frames=2, feature=0.01),
        # The order of frames is the hardest lesson: unrelated frames give themselves away at once.
        adversary=AdversaryConfig(
            pixel_backbone="st-alex",
            pixel_weight=0.005,
            feature_weight=0.002,
            real=4.0,
            shuffled=4.0,
            stacked=0.5,
            learning_rate=3e-4,
            lead=40,
        ),
    )
    return _clip_run("bundled_stage2", features, adversarial)


def nano_2d() -> TrainConfig:
    """`bundled_2d` for `nano`, with fewer of the last steps, which gained `default` little."""
    return _nano(bundled_2d(), 500, 2500, 2000)


def nano_stage1() -> TrainConfig:
    """`bundled_stage1` for `nano`."""
    return _nano(bundled_stage1(), 1500, 1000)


def nano_steady() -> TrainConfig:
    """`bundled_steady` for `nano`."""
    return _nano(bundled_steady(), 3000, 1200)


def nano_text() -> TrainConfig:
    """`bundled_text` for `nano`."""
    return _nano(bundled_text(), 3700, 900)


def nano_blocks() -> TrainConfig:
    """`bundled_blocks` for `nano`; the faithful end is the mean of this and `nano_text`."""
    return _nano(bundled_blocks(), 900)


def nano_rich() -> TrainConfig:
    """`bundled_rich` for `nano`."""
    return _nano(bundled_rich(), 900)


def _nano(recipe: TrainConfig, *steps: int) -> TrainConfig:
    stages = tuple(replace(stage, steps=number) for stage, number in zip(recipe.stages, steps, strict=True))
    name = recipe.recipe.replace("bundled", "nano")
    return replace(recipe, recipe=name, student=PRESETS["nano"], stages=stages)


def _clip_run(name: str, *stages: StageConfig, page_share: float = _PAGES, **data: float) -> TrainConfig:
    return TrainConfig(
        recipe=name,
        student=PRESETS["default"],
        stages=stages,
        data=DataConfig(page_share=page_share, **data),
        ema_decay=0.995,
        dead_after=0,
    )
