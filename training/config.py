"""What a training run is, as frozen values. A recipe is a function that returns one `TrainConfig`.

The configuration is written beside the run as config.json and compared on resume. Whatever the papers leave open is
a field here, with the choice explained. Knows nothing about how any of it is done.
"""

import dataclasses
import json
from dataclasses import dataclass, field

from adcvsr_core.config import StudentConfig
from adcvsr_core.degradation import DEGRADATIONS
from adcvsr_core.errors import ConfigError

PERCEPTUALS = ("st-lpips-alex", "st-lpips-vgg", "dists", "lpips-alex", "lpips-vgg")
PIXEL_ERRORS = ("charbonnier", "rms")
FLOWS = ("known", "dis", "raft")
TEACHERS = ("ground_truth", "folder", "checkpoint", "peer", "dove", "osediff")
SIGHTS = ("lr", "clean")
PIXEL_BACKBONES = ("convnext", "st-vgg", "st-alex", "patch")
FEATURE_BACKBONES = ("student", "sd-unet")
DOMAINS = ("pixel", "feature")
TASKS = ("restore", "decoder", "features")
TRAINABLE = ("all", "temporal", "spatial", "lora")
CLIP_MODES = ("uniform", "head", "slide", "full")


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the regression terms; 0 = the term is not computed.

    Attributes:
        pixel: weight of the distance between frames.
        error: which one: "charbonnier" of every pixel, or "rms", the root of each clip's mean square.
        epsilon: of that distance, in [-1, 1] units; Charbonnier's 0 is L1, the papers' choice. With a residual over
            bicubic the median of the target is 0, so L1 makes silence a local optimum; 0.05 acts like a mean.
        feature: weight of L1 in the feature domain, between what enters the decoder's levels and the feature space's
            view of the target.
        frame_difference: weight of |d sr - d target| between neighbouring frames.
        perceptual: weight of the perceptual distance.
        perceptual_name: which one: "dists" (AdcVSR), "lpips-vgg" (AdcSR's decoder), "lpips-alex": torchmetrics with its
            backbones; "st-lpips-alex", "st-lpips-vgg": offline, from `prepare_bundled_data`.
        perceptual_frames: frames of each clip that the perceptual term looks at, 0 = all.
        flow: weight of the flow-guided temporal term: |e_t+1 fetched along the motion - e_t|, e = sr - hr, where a
            point is visible in both frames.
        flow_source: "known" (material whose motion was generated; other clips do not count), "dis" (OpenCV's, from the
            HR clip), "raft" (torchvision's, from the HR clip).
    """

    pixel: float = 1.0
    error: str = "charbonnier"
    epsilon: float = 0.05
    feature: float = 0.0
    frame_difference: float = 0.0
    perceptual: float = 0.0
    perceptual_name: str = "st-lpips-alex"
    perceptual_frames: int = 0
    flow: float = 0.0
    flow_source: str = "known"

    def __post_init__(self) -> None:
        _choice("error", self.error, PIXEL_ERRORS)
        _choice("perceptual_name", self.perceptual_name, PERCEPTUALS)
        _choice("flow_source", self.flow_source, FLOWS)
        if self.epsilon < 0:
            raise ConfigError(f"epsilon {self.epsilon} is below 0")


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """The discriminators of a stage, what they see and how they train.

    Each sees five kinds of clips, in each domain. Labels are (detail, consistency), -1 fake, +1 real, 0 silent:
    the student's (-1, -1), real video (0, +1), real video with its frames shuffled (0, -1), a real image repeated
    (+1, +1), unrelated crops of real images stacked (+1, -1).

    Attributes:
        domains: of "pixel" and "feature".
        heads: "dual" (detail and consistency) or "single" (one, which calls real video and repeated images real, the
            student's clips fake; the paper's ablation).
        pixel_backbone: "convnext" (open_clip's, as the paper), "st-vgg" and "st-alex" (offline), "patch" (a small
            one trained from nothing, single-head: AdcSR's decoder stage).
        feature_backbone: "student" (frozen copy of the student's UNet as the stage begins) or "sd-unet" (Stable
            Diffusion's, frozen, with LoRA: AdcSR's).
        channels: width after the trainable tail.
        detail_channels: of these, how many the detail head reads; the consistency head reads the rest.
        pixel_weight, feature_weight: of each domain's term in the student's loss. The paper: 0.1 and 1.
        detail_weight, consistency_weight: how the heads combine in the student's loss. The paper does not say; a plain
            sum (1, 1) here.
        real, shuffled, still, stacked: weight of each kind in the discriminators' loss, 0 = not drawn. The paper does
            not say; 1 each here.
        stacked_detail: detail label of stacked crops: 1 as in the paper's table, -1 in another account of the method.
        learning_rate: the discriminators'. The paper's 1e-7 is for a frozen backbone of hundreds of millions.
        betas: Adam's. Not in the papers.
        adaptive: whether the adversarial weight follows the ratio of gradients at the last layer (AdcSR's decoder
            stage, from latent diffusion's autoencoder).
        lead: steps that the discriminators train before the student listens.
        lora_rank: of "sd-unet".
        timestep: of "sd-unet", 0 to 999: for which level of noise it judges. AdcSR: 999, the last.
        noise: of "sd-unet": Gaussian noise added to the features it judges, as a multiple of their own deviation.
            AdcSR: none. More hides what sets both sides apart from a discriminator that wins early.
    """

    domains: tuple[str, ...] = DOMAINS
    heads: str = "dual"
    pixel_backbone: str = "convnext"
    feature_backbone: str = "student"
    channels: int = 256
    detail_channels: int = 192
    pixel_weight: float = 0.1
    feature_weight: float = 1.0
    detail_weight: float = 1.0
    consistency_weight: float = 1.0
    real: float = 1.0
    shuffled: float = 1.0
    still: float = 1.0
    stacked: float = 1.0
    stacked_detail: int = 1
    learning_rate: float = 1e-7
    betas: tuple[float, float] = (0.9, 0.999)
    adaptive: bool = False
    lead: int = 0
    lora_rank: int = 4
    timestep: int = 999
    noise: float = 0.0

    def __post_init__(self) -> None:
        for domain in self.domains:
            _choice("domains", domain, DOMAINS)
        _choice("heads", self.heads, ("dual", "single"))
        _choice("pixel_backbone", self.pixel_backbone, PIXEL_BACKBONES)
        _choice("feature_backbone", self.feature_backbone, FEATURE_BACKBONES)
        if not self.domains:
            raise ConfigError("an adversary needs at least one domain")
        if self.heads == "dual" and not 0 < self.detail_channels < self.channels:
            raise ConfigError(f"detail_channels {self.detail_channels} must lie between 0 and channels {self.channels}")
        if not 0 <= self.timestep <= 999 or self.noise < 0:
            raise ConfigError(f"timestep {self.timestep} must lie in 0..999 and noise {self.noise} be at least 0")
        if self.stacked_detail not in (-1, 1):
            raise ConfigError(f"stacked_detail is {self.stacked_detail}; expected 1 (the paper) or -1")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a run.

    Attributes:
        name: in the log.
        task: "restore" (LR clips to sharp ones), "decoder" (AdcSR's half decoder behind a frozen encoder) or "features"
            (a small encoder from frames to what a student's decoder reads, for feature losses without a VAE).
        steps: how many.
        batch: clips a step, over all processes and micro-batches, so that results do not depend on their number.
        num_frames: frames of a clip.
        lr_size: edge of the square LR patches, in pixels, a multiple of 16.
        mixture: degradations and their shares.
        trainable: "all", "temporal" (the 1D blocks), "spatial" (all but these), "lora" (adapters on the spatial layers,
            and the 1D blocks whole).
        temporal_strength: 0 bypasses the temporal blocks; 1 trains them.
        bypass_every: every n-th step runs at strength 0, so that the 2D path stays good (0 = never).
        strength_every: every n-th step draws a strength from (0, 1), so that the slider stays inside what was learned
            (0 = never).
        optimizer: "adamw" or "adam" (the papers').
        betas: its two. The papers do not say.
        learning_rate: at the top.
        temporal_learning_rate: of the temporal blocks.
        schedule: "cosine" (by steps, down to `final_learning_rate`) or "halve" (once, after `halve_after` steps).
        final_learning_rate: as a share of the top one.
        halve_after: see `schedule`.
        warmup: steps of linear warm-up.
        seed_offset: keeps the samples of two stages apart.
        loss: the regression terms.
        adversary: the discriminators, None = regression alone.
    """

    name: str
    steps: int
    batch: int
    num_frames: int
    lr_size: int
    mixture: tuple[tuple[str, float], ...]
    temporal_strength: float
    task: str = "restore"
    trainable: str = "all"
    bypass_every: int = 0
    strength_every: int = 0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    learning_rate: float = 8e-4
    temporal_learning_rate: float = 8e-4
    schedule: str = "cosine"
    final_learning_rate: float = 0.02
    halve_after: int = 0
    warmup: int = 50
    seed_offset: int = 0
    loss: LossConfig = field(default_factory=LossConfig)
    adversary: AdversaryConfig | None = None

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.num_frames) < 1:
            raise ConfigError(f"stage {self.name}: steps, batch and num_frames must be at least 1")
        if self.lr_size < 16 or self.lr_size % 16:
            raise ConfigError(f"stage {self.name}: lr_size {self.lr_size} is no multiple of 16")
        unknown = [kind for kind, _ in self.mixture if kind not in DEGRADATIONS]
        if unknown or not self.mixture:
            raise ConfigError(f"stage {self.name}: unknown degradations {unknown}; expected {', '.join(DEGRADATIONS)}")
        _choice(f"stage {self.name}: task", self.task, TASKS)
        _choice(f"stage {self.name}: trainable", self.trainable, TRAINABLE)
        _choice(f"stage {self.name}: optimizer", self.optimizer, ("adamw", "adam"))
        _choice(f"stage {self.name}: schedule", self.schedule, ("cosine", "halve"))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How clips are drawn.

    Attributes:
        video_share: share of clips from video; the rest are photographs in motion. Where only one of them is there, it
            is used for all.
        mode: where in a shot a clip begins: "uniform" anywhere, "head" at its first frame, "slide" at multiples of half
            a clip, "full" spread over the whole shot by a longer stride.
        stride: largest step between a clip's frames, in frames of the video ("full" ignores it).
        fixed_camera: share of the photographs before which the camera stands still; pieces of others may move in front.
        page_share: share of the photographs that are drawn pages, of text or lines; 0 = pages are drawn like other
            photographs, mirrored and reduced. Nothing of it holds for what is held out: no page is.
        transpose_probability: chance of swapping height and width.
        held_out: share of the shots of a user's own footage that is never trained on; at least one where there are two.
        pool: number of distinct samples, 0 = endless. With a cached teacher every sample of the pool is super-resolved
            once. With a teacher that sees clean clips, the clips are limited and their damage is not.
        workers: processes that draw ahead; never changes what is drawn.
    """

    video_share: float = 0.5
    mode: str = "uniform"
    stride: int = 2
    fixed_camera: float = 0.0
    page_share: float = 0.0
    transpose_probability: float = 0.25
    held_out: float = 0.1
    pool: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        _choice("mode", self.mode, CLIP_MODES)
        if self.stride < 1:
            raise ConfigError(f"stride {self.stride} is below 1")
        for name in ("fixed_camera", "page_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is outside [0, 1]")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Where the targets come from.

    Attributes:
        kind: "ground_truth" (the HR clips; no teacher), "folder" (video that another program made from the same LR),
            "checkpoint" (a student), "peer" (another upscaler's network: a `.param` file that `training.peers` reads),
            "dove" or "osediff".
        path: the folder or file of that kind; "" for "ground_truth".
        extra: a second file: DOVE's prompt embedding, OSEDiff's LoRA weights.
        sees: "lr" (what the student sees) or "clean" (the HR clip reduced by bicubic, whatever was done to the
            student's: the target then holds what can be known without the damage, and one stored output serves all).
        cache: folder in which its outputs are stored once, "" = computed at every step.
        seed: of the teacher's own randomness.
    """

    kind: str = "ground_truth"
    path: str = ""
    extra: str = ""
    sees: str = "lr"
    cache: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        _choice("teacher.kind", self.kind, TEACHERS)
        _choice("teacher.sees", self.sees, SIGHTS)
        if self.sees != "lr" and self.kind in ("ground_truth", "folder"):
            raise ConfigError(f'teacher.sees is {self.sees!r}, but teacher.kind "{self.kind}" looks at nothing')


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters for `trainable` "lora".

    Attributes:
        rank: of every adapter.
        alpha: their outputs are scaled by alpha / rank.
    """

    rank: int = 16
    alpha: float = 16.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run.

    Attributes:
        recipe: its name.
        student: the network; None = that of the weights to begin with.
        stages: in order.
        data: where clips come from.
        teacher: where targets come from.
        lora: adapters, where a stage trains them.
        stable_diffusion: folder of SD 2.1 in diffusers' layout, for the feature domain of full-size students and
            AdcSR's discriminator; "" = a small learned encoder is the feature space.
        half_decoder: AdcSR's halfDecoder.ckpt, or the half_decoder.ckpt of `adcsr_decoder`, whose first layers end that
            feature space.
        features: folder made by `prepare_bundled_data`, for its offline perceptual networks; "" = the run's own data.
        seed: of the weights and of every sample.
        ema_decay: of the averaged weights that are validated and exported. Not in the papers.
        weight_decay: the student's. Not in the papers.
        max_grad_norm: gradients are clipped to this norm.
        precision: "bf16" (autocast; weights stay float32) or "fp32". fp16 is not offered: AdcSR's UNet overflows it.
        micro_batch: clips that one process takes at a time, 0 = its whole share of `batch`; the rest is accumulated.
        checkpoint_activations: compute activations again in the backward pass, for a third more time.
        max_skipped: non-finite steps in a row after which the run gives up.
        dead_after: a run whose loss stays at or above `dead_ratio` of bicubic's after this many steps of a stage
            that begins from nothing is stopped: it has learned silence (0 = never).
        dead_ratio: see above.
        checkpoint_every, validate_every, log_every: steps.
        keep_checkpoints: how many of the newest stay.
    """

    recipe: str
    student: StudentConfig | None
    stages: tuple[StageConfig, ...]
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    stable_diffusion: str = ""
    half_decoder: str = ""
    features: str = ""
    seed: int = 0
    ema_decay: float = 0.999
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "bf16"
    micro_batch: int = 0
    checkpoint_activations: bool = False
    max_skipped: int = 20
    dead_after: int = 300
    dead_ratio: float = 0.999
    checkpoint_every: int = 200
    validate_every: int = 500
    log_every: int = 1
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        _choice("precision", self.precision, ("bf16", "fp32"))
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


def identity(text: str) -> str:
    """Reduce a configuration's JSON to what a resumed run must share.

    That is everything but how often it writes, who draws its samples, and how a step is divided.
    """
    described = json.loads(text)
    for key in ("checkpoint_every", "validate_every", "log_every", "keep_checkpoints", "max_skipped", "micro_batch"):
        del described[key]
    del described["checkpoint_activations"], described["data"]["workers"]
    return json.dumps(described, sort_keys=True)
