"""What a training run is, as frozen values. A recipe is a function that returns one `TrainConfig`.

The configuration is written beside the run as config.json and compared on resume. Knows nothing about how any of it
is done.
"""

import dataclasses
import json
from dataclasses import dataclass, field

from adcvsr_core.config import StudentConfig
from adcvsr_core.degradation import DEGRADATIONS
from adcvsr_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms; 0 = the term is not computed.

    Attributes:
        charbonnier: weight of the pixel term.
        epsilon: Charbonnier's epsilon, in [-1, 1] units. With a residual over bicubic the median of the target is 0,
            so a small epsilon (like L1) makes silence a local optimum; 0.05 acts like a mean.
        frame_difference: weight of |d sr - d hr| between neighbouring frames.
        perceptual: weight of ST-LPIPS.
        perceptual_backbone: "alex" or "vgg".
        perceptual_frames: frames of each clip that the perceptual term looks at, 0 = all.
    """

    charbonnier: float = 1.0
    epsilon: float = 0.05
    frame_difference: float = 0.0
    perceptual: float = 0.0
    perceptual_backbone: str = "alex"
    perceptual_frames: int = 0

    def __post_init__(self) -> None:
        if self.perceptual_backbone not in ("alex", "vgg"):
            raise ConfigError(f'perceptual_backbone {self.perceptual_backbone!r}; expected "alex" or "vgg"')


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a run.

    Attributes:
        name: in the log.
        steps: how many.
        batch: clips a step.
        num_frames: frames of a clip.
        lr_size: edge of the square LR patches, in pixels, a multiple of 16.
        mixture: degradations and their shares.
        temporal_strength: 0 bypasses the temporal blocks; 1 trains them.
        bypass_every: every n-th step runs at strength 0, so that the 2D path stays good (neutral: 0 = never).
        learning_rate: AdamW's, at the top.
        temporal_learning_rate: of the temporal blocks.
        final_learning_rate: as a share of the top one; a cosine by steps leads there.
        warmup: steps of linear warm-up.
        seed_offset: keeps the samples of two stages apart.
        loss: the terms.
    """

    name: str
    steps: int
    batch: int
    num_frames: int
    lr_size: int
    mixture: tuple[tuple[str, float], ...]
    temporal_strength: float
    bypass_every: int = 0
    learning_rate: float = 8e-4
    temporal_learning_rate: float = 8e-4
    final_learning_rate: float = 0.02
    warmup: int = 50
    seed_offset: int = 0
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.num_frames) < 1:
            raise ConfigError(f"stage {self.name}: steps, batch and num_frames must be at least 1")
        if self.lr_size % 16:
            raise ConfigError(f"stage {self.name}: lr_size {self.lr_size} is no multiple of 16")
        unknown = [kind for kind, _ in self.mixture if kind not in DEGRADATIONS]
        if unknown:
            raise ConfigError(f"stage {self.name}: unknown degradations {unknown}; expected {', '.join(DEGRADATIONS)}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How clips are drawn.

    Attributes:
        film_share: share of clips from the film; the rest are photographs in motion.
        transpose_probability: chance of swapping height and width.
        workers: processes that draw ahead; never changes what is drawn.
    """

    film_share: float = 0.5
    transpose_probability: float = 0.25
    workers: int = 1


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run.

    Attributes:
        recipe: its name.
        student: the network.
        stages: in order.
        data: where clips come from.
        seed: of the weights and of every sample.
        ema_decay: of the averaged weights that are validated and exported.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        autocast: "bfloat16" or "none".
        max_skipped: non-finite steps in a row after which the run gives up.
        dead_after: a run whose loss stays at or above `dead_ratio` of bicubic's after this many steps of a stage
            that begins from nothing is stopped: it has learned silence (0 = never).
        dead_ratio: see above.
        checkpoint_every, validate_every, log_every: steps.
        keep_checkpoints: how many of the newest stay.
    """

    recipe: str
    student: StudentConfig
    stages: tuple[StageConfig, ...]
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    ema_decay: float = 0.999
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    autocast: str = "bfloat16"
    max_skipped: int = 20
    dead_after: int = 300
    dead_ratio: float = 0.999
    checkpoint_every: int = 200
    validate_every: int = 500
    log_every: int = 1
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.autocast not in ("bfloat16", "none"):
            raise ConfigError(f'autocast {self.autocast!r}; expected "bfloat16" or "none"')
        if not self.stages:
            raise ConfigError("a recipe needs at least one stage")

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def locate(self, step: int) -> tuple[int, int]:
        """Map a step of the run to (stage index, step inside it)."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, step
            step -= stage.steps
        raise ConfigError(f"the run has only {self.total_steps} steps")

    def to_json(self) -> str:
        """Return the configuration as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)


def override(config: TrainConfig, assignments: list[str]) -> TrainConfig:
    """Apply `key=value` settings.

    Keys are field names (`ema_decay`), or go through `data.` and `stage.` (all stages) or `stage0.` (one), and
    `loss.` behind these: `stage0.loss.perceptual=0.1`. Values are JSON; text without quotes is taken as text.

    Raises:
        ConfigError: an unknown key or a value of another type.
    """
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment!r} is not key=value")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        config = _set(config, key.split("."), value, key)
    return config


def _set(target: object, path: list[str], value: object, key: str) -> object:
    name, rest = path[0], path[1:]
    if isinstance(target, TrainConfig) and name.startswith("stage") and name != "stages":
        chosen = range(len(target.stages)) if name == "stage" else [_stage_index(name, target, key)]
        stages = tuple(_set(s, rest, value, key) if i in chosen else s for i, s in enumerate(target.stages))
        return dataclasses.replace(target, stages=stages)
    fields = {f.name: getattr(target, f.name) for f in dataclasses.fields(target)}
    if name not in fields:
        raise ConfigError(f"--set {key}: {type(target).__name__} has no {name!r}; it has {', '.join(fields)}")
    if rest:
        return dataclasses.replace(target, **{name: _set(fields[name], rest, value, key)})
    if dataclasses.is_dataclass(fields[name]):
        raise ConfigError(f"--set {key}: name a field of it, such as {key}.{dataclasses.fields(fields[name])[0].name}")
    return dataclasses.replace(target, **{name: _like(fields[name], value, key)})


def _stage_index(name: str, config: TrainConfig, key: str) -> int:
    number = name.removeprefix("stage")
    if not number.isdigit() or int(number) >= len(config.stages):
        raise ConfigError(f"--set {key}: the stages are stage0 to stage{len(config.stages) - 1}, or stage for all")
    return int(number)


def _like(old: object, value: object, key: str) -> object:
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, tuple) and isinstance(value, list):
        value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    if type(old) is not type(value):
        raise ConfigError(f"--set {key}: expected a {type(old).__name__}, got {value!r}")
    return value
