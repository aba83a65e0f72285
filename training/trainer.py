"""The training loop: steps, averaged weights, finite checks, checkpoints, validation, and a clean stop.

A run is a function of its configuration and its data: every batch is drawn from the step's number and the network
has no randomness of its own, so a resumed run gives the losses of an uninterrupted one. Knows nothing about recipes.
"""

import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adcvsr_core.errors import AdcvsrError, CheckpointError, ConfigError
from adcvsr_core.student import Student

from . import losses
from .checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from .config import StageConfig, TrainConfig
from .data import Batches, Corpus, make_loader
from .export import export_student
from .perceptual import load_stlpips
from .validation import validate


class TrainingError(AdcvsrError):
    """A run that cannot or should not go on."""


class Trainer:
    """One run.

    Args:
        config: the whole of it.
        folder: where its log, checkpoints, validation pictures and result go.
        data: the prepared folder.
        init: weights to begin with, None = fresh ones.
        resume: continue from the newest checkpoint; the data and configuration must be the same, but the run may be
            made longer or shorter.

    Raises:
        ConfigError: the folder holds a run and `resume` is not set, or one of another configuration.
        CheckpointError: a broken checkpoint, or nothing to resume.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        data: Path,
        init: dict[str, Tensor] | None = None,
        resume: bool = False,
    ):
        self.config, self.folder, self.data = config, folder, data
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(config.seed)
        self.student = Student(config.student).to(self.device)
        if init is not None:
            self.student.load_state_dict(init)
        self.averaged = {name: value.detach().clone() for name, value in self.student.state_dict().items()}
        self.step = 0
        self.skipped_in_a_row = 0
        self.stop_requested = False
        self.optimizer: torch.optim.AdamW | None = None
        self.log_path = folder / "metrics.jsonl"
        self.corpus = Corpus(data)
        self._open_folder(resume)

    def run(self, on_step: Callable[[dict[str, Any]], None] | None = None) -> bool:
        """Train to the end, or to a signal.

        Args:
            on_step: gets every line of the log.

        Returns:
            whether the run is complete; then `folder`/student.safetensors is written.

        Raises:
            TrainingError: the loss is not finite for too many steps, or the run has learned nothing.
        """
        previous = {number: signal.signal(number, self._request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self.step < self.config.total_steps and not self.stop_requested:
                self._run_stage(*self.config.locate(self.step), on_step)
            self._save()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        complete = self.step >= self.config.total_steps
        if complete:
            self.export(self.folder / "student.safetensors")
        return complete

    def export(self, path: Path) -> None:
        """Write the averaged weights as a student that `load_student` takes."""
        student = Student(self.config.student)
        student.load_state_dict(self.averaged)
        stages = ", ".join(stage.name for stage in self.config.stages)
        export_student(student, path, {"recipe": self.config.recipe, "stages": stages, "steps": str(self.step)})

    def _run_stage(self, index: int, first: int, on_step: Callable[[dict[str, Any]], None] | None) -> None:
        stage = self.config.stages[index]
        if first == 0 or self.optimizer is None:
            self.optimizer = self._make_optimizer(stage)
        distance = load_stlpips(self.data, stage.loss.perceptual_backbone) if stage.loss.perceptual else None
        distance = distance.to(self.device) if distance is not None else None
        batches = Batches(self.corpus, stage, self.config.data, self.config.seed)
        ratios: list[float] = []
        with self.log_path.open("a") as log:
            for step, (lr, hr) in make_loader(batches, first, self.config.data.workers):
                line = self._step(stage, step, lr.to(self.device), hr.to(self.device), distance)
                self.step += 1
                ratios = [*ratios[-99:], line["ratio"]]
                if self.step % self.config.log_every == 0 or "skipped" in line:
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                if on_step is not None:
                    on_step(line)
                self._check_alive(index, step, ratios)
                if self.step % self.config.validate_every == 0:
                    validate(self._averaged_student(), self.data, self.folder / "validation", self.step)
                if self.step % self.config.checkpoint_every == 0:
                    self._save()
                if self.stop_requested:
                    return

    def _step(self, stage: StageConfig, step: int, lr: Tensor, hr: Tensor, distance: Callable | None) -> dict[str, Any]:
        started = time.perf_counter()
        self._set_learning_rates(stage, step)
        bypass = stage.bypass_every > 0 and step % stage.bypass_every == stage.bypass_every - 1
        strength = 0.0 if bypass else stage.temporal_strength
        self.student.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast == "bfloat16"):
            sr = self.student(lr, temporal_strength=strength)
            terms = self._terms(stage, step, sr, hr, distance)
        loss = sum(weight * value for weight, value in terms.values())
        line = {"stage": stage.name, "step": self.step, "loss": loss.item(), "strength": strength}
        line |= {name: value.item() for name, (_, value) in terms.items()}
        line["ratio"] = line["charbonnier"] / max(_bicubic_loss(lr, hr, stage.loss.epsilon), 1e-12)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [p for p in self.student.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(trained, self.config.max_grad_norm).item()
        line["grad_norm"] = norm
        if math.isfinite(line["loss"]) and math.isfinite(norm):
            self.optimizer.step()
            self._average()
            self.skipped_in_a_row = 0
        else:
            self._skip(stage, step, line)
        line["seconds"] = round(time.perf_counter() - started, 4)
        return line

    def _terms(
        self, stage: StageConfig, step: int, sr: Tensor, hr: Tensor, distance: Callable | None
    ) -> dict[str, tuple[float, Tensor]]:
        weights = stage.loss
        terms = {"charbonnier": (weights.charbonnier, losses.charbonnier(sr, hr, weights.epsilon))}
        if weights.frame_difference:
            value = losses.frame_difference(sr, hr, weights.epsilon)
            terms["frame_difference"] = (weights.frame_difference, value)
        if weights.perceptual:
            num = weights.perceptual_frames or hr.shape[1]
            # Spread over the clip and moving with the step, so that every position is looked at.
            frames = sorted({(step + i * hr.shape[1] // num) % hr.shape[1] for i in range(num)})
            terms["perceptual"] = (weights.perceptual, losses.perceptual(sr, hr, distance, frames))
        return terms

    def _skip(self, stage: StageConfig, step: int, line: dict[str, Any]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped_in_a_row += 1
        line["skipped"] = f"not finite: seed {self.config.seed}, stage {stage.name}, step {step}"
        for key in ("loss", "grad_norm", "ratio", "charbonnier", "frame_difference", "perceptual"):
            if key in line and not math.isfinite(line[key]):
                line[key] = None
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise TrainingError(
                f"{self.skipped_in_a_row} steps in a row were {line['skipped']}; the newest checkpoint is good"
            )

    def _check_alive(self, index: int, step: int, ratios: list[float]) -> None:
        known = [r for r in ratios if r is not None and math.isfinite(r)]
        due = self.config.dead_after and index == 0 and step + 1 == self.config.dead_after
        if due and known and sum(known) / len(known) >= self.config.dead_ratio:
            raise TrainingError(
                f"after {step + 1} steps the loss is {sum(known) / len(known):.4f} of bicubic's: the network "
                "has learned to add nothing; lower the learning rate or raise loss.epsilon"
            )

    def _make_optimizer(self, stage: StageConfig) -> torch.optim.AdamW:
        temporal = [p for name, p in self.student.named_parameters() if "temporal" in name]
        spatial = [p for name, p in self.student.named_parameters() if "temporal" not in name]
        groups = [{"params": spatial}, {"params": temporal}]
        return torch.optim.AdamW(groups, lr=stage.learning_rate, weight_decay=self.config.weight_decay)

    def _set_learning_rates(self, stage: StageConfig, step: int) -> None:
        progress = step / stage.steps
        share = stage.final_learning_rate + (1 - stage.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))
        share *= min(1.0, (step + 1) / max(1, stage.warmup))
        for group, rate in zip(self.optimizer.param_groups, (stage.learning_rate, stage.temporal_learning_rate)):
            group["lr"] = rate * share

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.student.state_dict().items():
            self.averaged[name].lerp_(value, 1 - decay)

    def _averaged_student(self) -> Student:
        student = Student(self.config.student).to(self.device)
        student.load_state_dict(self.averaged)
        return student.eval()

    def _save(self) -> None:
        state = {
            "step": self.step,
            "config": _identity(self.config),
            "student": self.student.state_dict(),
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict() if self.optimizer is not None else {},
        }
        if not all(bool(value.isfinite().all()) for value in self.averaged.values()):
            raise TrainingError("the weights hold NaN or infinity; not saved, the newest checkpoint is good")
        save_checkpoint(self.folder / "checkpoints", self.step, state, self.config.keep_checkpoints)

    def _open_folder(self, resume: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = list_checkpoints(self.folder / "checkpoints")
        if found and not resume:
            raise ConfigError(f"{self.folder} already holds a run; use --resume, or another --output")
        if resume and not found:
            raise CheckpointError(f"{self.folder} holds no checkpoint to resume; leave --resume out to start")
        if found:
            self._restore(found[-1])
        (self.folder / "config.json").write_text(self.config.to_json())

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path)
        if state["config"] != _identity(self.config):
            raise ConfigError(f"{path} was made with another configuration; see config.json beside it")
        self.step = state["step"]
        self.student.load_state_dict(state["student"])
        self.averaged = {name: value.to(self.device) for name, value in state["averaged"].items()}
        if state["optimizer"] and self.step < self.config.total_steps:
            self.optimizer = self._make_optimizer(self.config.stages[self.config.locate(self.step)[0]])
            self.optimizer.load_state_dict(state["optimizer"])
        self._cut_log()

    def _cut_log(self) -> None:
        if self.log_path.exists():
            lines = self.log_path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < self.step]
            self.log_path.write_text("".join(kept))

    def _request_stop(self, number: int, frame: object) -> None:
        self.stop_requested = True


def _identity(config: TrainConfig) -> str:
    """What a resumed run must share: everything but how often it writes and who draws its samples."""
    described = json.loads(config.to_json())
    for key in ("checkpoint_every", "validate_every", "log_every", "keep_checkpoints", "max_skipped"):
        del described[key]
    del described["data"]["workers"]
    return json.dumps(described, sort_keys=True)


@torch.no_grad()
def _bicubic_loss(lr: Tensor, hr: Tensor, epsilon: float) -> float:
    base = F.interpolate(lr.flatten(0, 1).float(), scale_factor=4, mode="bicubic", align_corners=False)
    return losses.charbonnier(base.unflatten(0, lr.shape[:2]), hr, epsilon).item()
