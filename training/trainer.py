"""The training loop: steps, averaged weights, finite checks, checkpoints, validation, and a clean stop.

A run is a function of its configuration and its data: every batch is drawn from the step's number and the networks
have no randomness of their own, so a resumed run gives the losses of an uninterrupted one, and any number of processes
those of a single one, up to rounding. Knows nothing about recipes, nor about what a stage minimises.
"""

import signal
import time
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adcvsr_core.convert import student_from_sd
from adcvsr_core.errors import AdcvsrError, CheckpointError, ConfigError
from adcvsr_core.student import Student

from .average import Average
from .checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from .clips import to_stderr
from .config import StageConfig, TrainConfig, identity
from .export import export_result
from .lora import add_lora
from .objectives import Batch, Objective, Run, make_objective
from .optimizers import make_adversary_optimizer, make_student_optimizer, set_learning_rates
from .processes import Processes, is_finite
from .run_log import RunLog
from .sampling import Batches, make_loader
from .sources import open_source
from .teachers import make_teacher
from .validation import Validator

Watcher = Callable[[dict[str, Any]], None]


class TrainingError(AdcvsrError):
    """A run that cannot or should not go on."""


class Trainer:
    """One run.

    Args:
        config: the whole of it.
        folder: where its log, checkpoints, validation pictures and result go.
        data: the material: a prepared folder, or one of videos and pictures.
        init: weights to begin with, None = fresh ones.
        resume: continue from the newest checkpoint; the data and configuration must be the same.

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
        self.processes = Processes()
        student = self._make_student(init)
        self.run_state = Run(config, Path(config.features or data), self.processes.device, student)
        self.step, self.skipped_in_a_row, self.stop_requested = 0, 0, False
        self.objective: Objective | None = None
        self.optimizers: list[torch.optim.Optimizer] = []
        self.average: Average | None = None
        self._restored: dict[str, Any] = {}
        self._saved = -1
        self._index = folder / "footage"
        self._open_folder(resume)

    @property
    def student(self) -> Student:
        return self.run_state.student

    def run(self, on_step: Watcher | None = None) -> bool:
        """Train to the end, or to a signal.

        Args:
            on_step: gets every line of the log.

        Returns:
            whether the run is complete; then `folder`/student.safetensors is written.

        Raises:
            TrainingError: the loss is not finite for too many steps, or the run has learned nothing.
        """
        previous = {number: signal.signal(number, self._request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        self._log = RunLog(self.folder, self.step) if self.processes.is_main else None
        try:
            self._open_material()
            self._validator = Validator(
                self.config, self.data, self.folder / "validation", self.run_state.teacher, self._index
            )
            while self.step < self.config.total_steps and not self.stop_requested:
                self._run_stage(*self.config.locate(self.step), on_step)
            self._save()
        finally:
            if self._log is not None:
                self._log.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        complete = self.step >= self.config.total_steps
        if complete and self.processes.is_main:
            export_result(self._restored or self._state(), self.folder, self._base)
        self.processes.wait()
        return complete

    def rehearse(self, stage: StageConfig, num_steps: int = 2) -> list[dict[str, Any]]:
        """Take the first steps of a stage for their time and memory; the run is spoilt for training."""
        self._open_material()
        self._enter_stage(stage, 0)
        return [self._step(stage, step, batches) for step, batches in islice(self._batches(stage, 0), num_steps)]

    def _open_material(self) -> None:
        self.run_state.teacher = make_teacher(self.config.teacher, self.processes.device)
        targets = Path(self.config.teacher.path) if self.config.teacher.kind == "folder" else None
        report = to_stderr if self.processes.is_main else _silent
        with self.processes.main_first():  # it looks for cuts, the others read what it found
            self._source = open_source(self.data, self.config.data, "train", targets, index=self._index, report=report)

    def _make_student(self, init: dict[str, Tensor] | None) -> Student:
        torch.manual_seed(self.config.seed)
        if init is None and self.config.stable_diffusion:
            init = student_from_sd(self.config.stable_diffusion, self.config.student).state_dict()
        student = Student(self.config.student)
        if init is not None:
            student.load_state_dict(init)
        self._base: dict[str, Tensor] | None = None
        if any(stage.trainable == "lora" for stage in self.config.stages):
            if init is None:
                raise ConfigError("adapters need weights to adapt; give --init, also with --resume")
            self._base = {name: value.clone() for name, value in init.items()}
            add_lora(student, self.config.lora)
        student.to(self.processes.device)
        self.processes.share(student)
        return student

    # One stage

    def _run_stage(self, index: int, first: int, on_step: Watcher | None) -> None:
        stage = self.config.stages[index]
        # Encoders and discriminators are drawn alike whether the stages before ran now or before a restart.
        torch.manual_seed(self.config.seed + 1 + index)
        self._enter_stage(stage, first)
        if self.step == 0:  # what would fail after hours shall fail now: one validation and one checkpoint
            self._validate()
            self._save()
        ratios: list[float] = []
        for step, batches in self._batches(stage, first):
            line = self._step(stage, step, batches)
            self.step += 1
            if step + 1 == stage.steps:  # the next stage, and the result, have the averaged weights
                self.average.copy_to(self.objective.trained)
            if self._log is not None and (self.step % self.config.log_every == 0 or "skipped" in line):
                self._log.write(line)
            if on_step is not None:
                on_step(line)
            ratios = [*ratios[-99:], line["ratio"]] if is_finite([line.get("ratio", float("nan"))]) else ratios
            self._check_alive(index, step, ratios)
            if self.step % self.config.validate_every == 0 or self.step == self.config.total_steps:
                self._validate()
            if self.step % self.config.checkpoint_every == 0:
                self._save()
            if self.processes.any(self.stop_requested):
                self.stop_requested = True
                return

    def _enter_stage(self, stage: StageConfig, first: int) -> None:
        self.objective = make_objective(self.run_state, stage)
        self.processes.share(self.objective.trained)
        temporal = self.student.temporal_names()
        self.optimizers = [make_student_optimizer(self.objective.trained, temporal, stage, self.config.weight_decay)]
        if self.objective.adversary is not None:
            self.processes.share(self.objective.adversary)
            parameters = self.objective.adversary.trainable_parameters()
            self.optimizers.append(make_adversary_optimizer(parameters, stage.adversary))
        self.average = Average(self.objective.trained, self.config.ema_decay)
        if self._restored and first > 0:
            self._restore_stage(self._restored)
        self._restored = {}

    def _batches(self, stage: StageConfig, first: int) -> Iterator[tuple[int, Iterator[Batch]]]:
        batches = Batches(
            self._source,
            stage,
            self.config.data,
            self.config.seed,
            rank=self.processes.rank,
            world=self.processes.num,
            micro_batch=self.config.micro_batch,
            with_clean=self.config.teacher.sees == "clean",
        )
        self._num_micro = len(batches) // stage.steps
        loader = make_loader(batches, first, self.config.data.workers)
        for step, group in groupby(loader, key=lambda item: item[0]):
            yield step, (self._to_device(batch) for _, _, batch in group)

    def _to_device(self, batch: Batch) -> Batch:
        device = self.processes.device
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    # One step

    def _step(self, stage: StageConfig, step: int, batches: Iterator[Batch]) -> dict[str, Any]:
        started = time.perf_counter()
        set_learning_rates(self.optimizers[0], stage, step)
        self.objective.trained.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        numbers: dict[str, float] = {}
        for batch in batches:
            for name, value in self._backward(batch, step).items():
                numbers[name] = numbers.get(name, 0.0) + value / self._num_micro
        numbers = self.processes.mean(numbers)
        numbers |= self._gradient_norms()
        line: dict[str, Any] = {"stage": stage.name, "step": self.step, **numbers}
        if is_finite(numbers.values()):
            for optimizer in self.optimizers:
                optimizer.step()
            self.average.update(self.objective.trained, step)
            self.skipped_in_a_row = 0
        else:
            self._skip(stage, step, line)
        line["seconds"] = round(time.perf_counter() - started, 4)
        return line

    def _backward(self, batch: Batch, step: int) -> dict[str, float]:
        autocast = torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
        with autocast:
            terms, numbers, made = self.objective.student_terms(batch, step)
            loss = sum(weight * value for weight, value in terms.values())
        (loss / self._num_micro).backward()
        numbers = {"loss": loss.item(), **{k: v.item() for k, (_, v) in terms.items()}, **numbers}
        if self.objective.adversary is not None:
            with autocast:
                loss, verdicts = self.objective.adversary_loss(batch, made)
            (loss / self._num_micro).backward()
            numbers |= {"adversary_loss": loss.item(), **verdicts}
        return numbers

    def _gradient_norms(self) -> dict[str, float]:
        norms = {}
        for name, optimizer in zip(("grad_norm", "adversary_grad_norm"), self.optimizers):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self.processes.average_gradients(parameters)
            norms[name] = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm).item()
        return norms

    def _skip(self, stage: StageConfig, step: int, line: dict[str, Any]) -> None:
        self.skipped_in_a_row += 1
        line["skipped"] = f"not finite: seed {self.config.seed}, stage {stage.name}, step {step}"
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise TrainingError(
                f"{self.skipped_in_a_row} steps in a row were {line['skipped']}; the newest checkpoint is good"
            )

    def _check_alive(self, index: int, step: int, ratios: list[float]) -> None:
        due = self.config.dead_after and index == 0 and step + 1 == self.config.dead_after
        if due and ratios and sum(ratios) / len(ratios) >= self.config.dead_ratio:
            raise TrainingError(
                f"after {step + 1} steps the loss is {sum(ratios) / len(ratios):.4f} of bicubic's: the network "
                "has learned to add nothing; lower the learning rate or raise loss.epsilon"
            )

    # Looking and keeping

    def _validate(self) -> None:
        if self.processes.is_main:
            self._validator.show(self.student, self.average, self.objective.trained, self.step)
        self.processes.wait()

    def _save(self) -> None:
        if self.processes.is_main and self.step != self._saved:
            if not is_finite(self.average.values.values()):
                raise TrainingError("the weights hold NaN or infinity; not saved, the newest checkpoint is good")
            save_checkpoint(self.folder / "checkpoints", self.step, self._state(), self.config.keep_checkpoints)
            self._saved = self.step
        self.processes.wait()

    def _state(self) -> dict[str, Any]:
        space, adversary = self.run_state.space, self.objective.adversary
        return {
            "step": self.step,
            "config": self.config.to_json(),
            "student": self.student.state_dict(),
            "trained": self.objective.trained.state_dict(),
            "averaged": self.average.values,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "space": space.state_dict() if space is not None else {},
            "adversary": adversary.state_dict() if adversary is not None else {},
        }

    def _open_folder(self, resume: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = list_checkpoints(self.folder / "checkpoints")
        if found and not resume:
            raise ConfigError(f"{self.folder} already holds a run; use --resume, or another --output")
        if resume and not found:
            raise CheckpointError(f"{self.folder} holds no checkpoint to resume; leave --resume out to start")
        if found:
            self._restore(found[-1])
        if self.processes.is_main:
            (self.folder / "config.json").write_text(self.config.to_json())

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path)
        if identity(state["config"]) != identity(self.config.to_json()):
            raise ConfigError(f"{path} was made with another configuration; see config.json beside it")
        self.step = self._saved = state["step"]
        self.student.load_state_dict(state["student"])
        if state["space"]:
            self.run_state.feature_space().load_state_dict(state["space"])
        self._restored = state

    def _restore_stage(self, state: dict[str, Any]) -> None:
        """Continue inside a stage; one that has not begun needs nothing but the student and the feature space."""
        self.objective.trained.load_state_dict(state["trained"])
        self.average.load(state["averaged"], self.processes.device)
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        if self.objective.adversary is not None:
            self.objective.adversary.load_state_dict(state["adversary"])

    def _request_stop(self, number: int, frame: object) -> None:
        self.stop_requested = True


def _silent(message: str) -> None:
    """The main process says it."""
