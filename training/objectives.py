"""What each kind of stage trains, and by which loss terms.

`Restore` teaches a student to restore clips, with or without discriminators; `LearnFeatures` trains the small encoder
that gives feature losses to students without a VAE; `Decode` trains AdcSR's half decoder. An objective turns a batch
into terms; it knows nothing about optimizers, processes, files or logs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcvsr_core.errors import ConfigError
from adcvsr_core.student import Student

from . import losses
from .adversary import Adversary, adaptive_weight
from .config import StageConfig, TrainConfig
from .feature_space import FeatureSpace, LearnedFeatures, StableDiffusionFeatures, base_of, features_loss
from .flow import estimate
from .generator import Generator, Made
from .half_decoder import HalfDecoder
from .perceptual import make_distance
from .teachers import Teacher

Batch = dict
Terms = dict[str, tuple[float, Tensor]]  # name -> (weight, value)


@dataclass
class Run:
    """What the stages of a run share.

    Attributes:
        config: the whole run's.
        prepared: folder whose `features/` holds the weights of offline perceptual networks.
        device: of this process.
        student: the one that trains.
        space: the feature space, once a stage needed it.
        teacher: None = the HR clips are the target.
    """

    config: TrainConfig
    prepared: Path
    device: torch.device
    student: Student
    space: nn.Module | None = None
    teacher: Teacher | None = None

    def feature_space(self) -> FeatureSpace:
        """Return the run's feature space, made when first asked for."""
        if self.space is None:
            config = self.config
            if config.stable_diffusion:
                space = StableDiffusionFeatures(config.stable_diffusion, config.half_decoder)
            else:
                space = LearnedFeatures(self.student.config)
            self.space = space.to(self.device)
        return self.space


class Objective(Protocol):
    """What a stage trains.

    Attributes:
        trained: holds every parameter on the student's side that this stage moves.
        adversary: the stage's discriminators, or None.
    """

    trained: nn.Module
    adversary: Adversary | None

    def student_terms(self, batch: Batch, step: int) -> tuple[Terms, dict[str, float], Made]:
        """Return the terms to minimise, further numbers for the log, and what was made."""

    def adversary_loss(self, batch: Batch, made: Made) -> tuple[Tensor, dict[str, float]]:
        """Return the discriminators' loss on what was made (detached) and real clips, and numbers for the log."""


def make_objective(run: Run, stage: StageConfig) -> Objective:
    """Return a stage's objective; sets which of the student's parameters train.

    Raises:
        ConfigError: the stage does not fit the student or the run.
    """
    return {"restore": Restore, "features": LearnFeatures, "decoder": Decode}[stage.task](run, stage)


class Restore:
    """LR clips in, sharp clips out, near a teacher's or the HR clips."""

    def __init__(self, run: Run, stage: StageConfig):
        self.run, self.stage, loss = run, stage, stage.loss
        self.trained: nn.Module = run.student
        choose_trainable(run.student, stage.trainable)
        self.generator = Generator(run.student, run.config.checkpoint_activations)
        self.distance = make_distance(loss.perceptual_name, run.prepared).to(run.device) if loss.perceptual else None
        self.adversary = make_adversary(run, stage)
        in_features = stage.adversary is not None and "feature" in stage.adversary.domains
        self.space = run.feature_space() if loss.feature or in_features else None
        learned = [s for s in run.config.stages if s.task == "features"]
        if isinstance(self.space, LearnedFeatures) and not learned:
            raise ConfigError(
                f'stage {stage.name} compares features, but no stage before it has task "features" and there is no '
                "stable_diffusion folder: the feature space would be random"
            )

    def student_terms(self, batch: Batch, step: int) -> tuple[Terms, dict[str, float], Made]:
        if self.adversary is not None:
            self.adversary.set_step(step)
        strength = draw_strength(self.stage, self.run.config.seed, step)
        lr, hr = batch["lr"], batch["hr"]
        target = hr if self.run.teacher is None else self.run.teacher(batch.get("clean", lr), batch["keys"])
        made = self.generator(lr, strength)
        terms = dict(regression_terms(self.stage, step, made.sr, target, self.distance))
        if self.stage.loss.feature:
            with torch.no_grad():
                wanted = self.space.encode(target, base_of(lr, self.run.student))
            terms["feature"] = (self.stage.loss.feature, losses.charbonnier(made.features, wanted, 0.0))
        if self.stage.loss.flow:
            terms["flow"] = (self.stage.loss.flow, self._flow_term(made.sr, batch))
        terms |= self._adversarial_terms(made, terms, step)
        loss = self.stage.loss
        bicubic = losses.ERRORS[loss.error](bicubic_clip(lr), target, loss.epsilon).item()
        return terms, {"strength": strength, "ratio": terms["pixel"][1].item() / max(bicubic, 1e-12)}, made

    def adversary_loss(self, batch: Batch, made: Made) -> tuple[Tensor, dict[str, float]]:
        return self.adversary.discriminator_loss(batch, made.sr, made.features, self._encode_real)

    def _encode_real(self, clip: Tensor) -> Tensor:
        # A real clip has no LR of its own here: what bicubic shrinking and growing leaves of it stands for it.
        lr = F.interpolate(clip.flatten(0, 1), scale_factor=0.25, mode="bicubic", antialias=True)
        return self.space.encode(clip, base_of(lr.unflatten(0, clip.shape[:2]), self.run.student))

    def _flow_term(self, sr: Tensor, batch: Batch) -> Tensor:
        hr = batch["hr"]  # whose motion is the true one, also beside a teacher
        if self.stage.loss.flow_source == "known":
            return losses.flow_temporal(sr, hr, batch["flow"], batch["visible"])
        return losses.flow_temporal(sr, hr, *estimate(hr, self.stage.loss.flow_source))

    def _adversarial_terms(self, made: Made, terms: Terms, step: int) -> Terms:
        config = self.stage.adversary
        if self.adversary is None or step < config.lead:
            return {}
        weights = {"adversarial_pixel": config.pixel_weight, "adversarial_feature": config.feature_weight}
        return {k: (weights[k], v) for k, v in self.adversary.student_loss(made.sr, made.features).items()}


class LearnFeatures:
    """Frames to what the student's decoder reads, the student as it is."""

    adversary = None

    def __init__(self, run: Run, stage: StageConfig):
        self.run, self.stage = run, stage
        self.trained = run.feature_space()
        if not isinstance(self.trained, LearnedFeatures):
            raise ConfigError(f"stage {stage.name}: Stable Diffusion's features need no training; leave the stage out")
        run.student.requires_grad_(False)

    def student_terms(self, batch: Batch, step: int) -> tuple[Terms, dict[str, float], Made]:
        value = features_loss(self.trained, self.run.student, batch["hr"], batch["lr"])
        return {"features": (1.0, value)}, {}, Made(batch["hr"], value)

    def adversary_loss(self, batch: Batch, made: Made) -> tuple[Tensor, dict[str, float]]:
        raise NotImplementedError("this objective has no adversary")


class Decode:
    """Frames through Stable Diffusion's frozen encoder and back through the student's half decoder."""

    def __init__(self, run: Run, stage: StageConfig):
        self.run, self.stage, loss = run, stage, stage.loss
        if not run.config.stable_diffusion:
            raise ConfigError(f"stage {stage.name} needs Stable Diffusion's encoder: set stable_diffusion=FOLDER")
        run.student.requires_grad_(False)
        self.half = HalfDecoder(run.student, run.config.stable_diffusion).to(run.device)
        self.trained: nn.Module = self.half.trained
        self.trained.requires_grad_(True)
        self.distance = make_distance(loss.perceptual_name, run.prepared).to(run.device) if loss.perceptual else None
        self.adversary = make_adversary(run, stage)

    def student_terms(self, batch: Batch, step: int) -> tuple[Terms, dict[str, float], Made]:
        hr, config = batch["hr"], self.stage.adversary
        features, sr = self.half(hr)
        made = Made(losses.straight_through_clamp(sr), features)
        terms = dict(regression_terms(self.stage, step, made.sr, hr, self.distance))
        log = {}
        if self.adversary is not None and step >= config.lead:
            value = self.adversary.student_loss(made.sr, made.features)["adversarial_pixel"]
            weight = config.pixel_weight
            if config.adaptive:
                regression = sum(w * v for w, v in terms.values())
                weight *= adaptive_weight(regression, value, self.half.last_layer)
                log["adaptive_weight"] = float(weight)
            terms["adversarial_pixel"] = (float(weight), value)
        return terms, log, made

    def adversary_loss(self, batch: Batch, made: Made) -> tuple[Tensor, dict[str, float]]:
        return self.adversary.discriminator_loss(batch, made.sr, made.features, None)


def make_adversary(run: Run, stage: StageConfig) -> Adversary | None:
    """Return a stage's discriminators on the run's device."""
    if stage.adversary is None:
        return None
    adversary = Adversary(
        stage.adversary, run.student, features=run.prepared / "features", stable_diffusion=run.config.stable_diffusion
    )
    return adversary.to(run.device)


def regression_terms(
    stage: StageConfig, step: int, sr: Tensor, target: Tensor, distance: Callable[[Tensor, Tensor], Tensor] | None
) -> Iterator[tuple[str, tuple[float, Tensor]]]:
    """Yield the terms that compare frames."""
    loss = stage.loss
    yield "pixel", (loss.pixel, losses.ERRORS[loss.error](sr, target, loss.epsilon))
    if loss.frame_difference:
        change = losses.frame_difference(sr, target, loss.epsilon, loss.error)
        yield "frame_difference", (loss.frame_difference, change)
    if distance is not None:
        length = target.shape[1]
        num = min(loss.perceptual_frames or length, length)
        # Spread over the clip and moving with the step, so that every position is looked at.
        frames = sorted({(step + i * length // num) % length for i in range(num)})
        yield "perceptual", (loss.perceptual, losses.perceptual(sr, target, distance, frames))


def choose_trainable(student: Student, which: str) -> None:
    """Freeze what a stage does not train.

    Raises:
        ConfigError: nothing is left to train.
    """
    over_time = student.temporal_names()
    for name, parameter in student.named_parameters():
        temporal, adapter = name in over_time, ".lora_" in name
        parameter.requires_grad_(
            {"all": not adapter, "spatial": not temporal, "temporal": temporal, "lora": temporal or adapter}[which]
        )
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ConfigError(
            f'trainable "{which}" leaves nothing to train: this student has temporal blocks "{student.config.temporal}"'
        )


def draw_strength(stage: StageConfig, seed: int, step: int) -> float:
    """Return the temporal strength of a step: the stage's, 0 on bypass steps, or drawn from (0, 1)."""
    if stage.bypass_every and step % stage.bypass_every == stage.bypass_every - 1:
        return 0.0
    if stage.strength_every and step % stage.strength_every == stage.strength_every - 1:
        return float(np.random.default_rng((seed, stage.seed_offset, step)).uniform(0.05, 0.95))
    return stage.temporal_strength


def bicubic_clip(lr: Tensor) -> Tensor:
    """[B,T,3,h,w] -> [B,T,3,4h,4w]."""
    base = F.interpolate(lr.flatten(0, 1).float(), scale_factor=4, mode="bicubic", align_corners=False)
    return base.unflatten(0, lr.shape[:2])
