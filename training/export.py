"""From training to the world: safetensors files that the command line and the nodes take, and back.

Thin over `adcvsr_core.checkpoint` and `adcvsr_core.lora`, which own the formats. Also a command, so that a run can be
tried before it ends: `python -m training.export RUN [RUN...] --out model.safetensors [--dtype float16]`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adcvsr_core.checkpoint import load_student, save_student
from adcvsr_core.config import StudentConfig
from adcvsr_core.convert import key_table, with_recurrence, with_temporal
from adcvsr_core.errors import AdcvsrError, CheckpointError, ConfigError
from adcvsr_core.lora import save_lora
from adcvsr_core.student import Student

from .checkpoints import list_checkpoints, load_checkpoint
from .config import LoraConfig
from .lora import add_lora, lora_state, merged_state

STUDENT, LORA, HALF_DECODER = "student.safetensors", "lora.safetensors", "half_decoder.ckpt"


def export_result(state: dict[str, Any], folder: Path, base: dict[str, Tensor] | None = None) -> None:
    """Write what a finished run gives.

    Args:
        state: a checkpoint's, at the end.
        folder: gets student.safetensors; for adapters also lora.safetensors; after a decoder stage also
            half_decoder.ckpt in AdcSR's layout, for `half_decoder` in the next recipe.
        base: the weights that the run began with; needed for adapters.
    """
    run, student = rebuild(state)
    export_student(plain_student(student), folder / STUDENT, describe(state))
    if base is not None and has_lora(run):
        save_lora(lora_state(student, base, describe(state)), folder / LORA)
    if run["stages"][-1]["task"] == "decoder":
        torch.save({"state_dict": half_decoder_state(state, student)}, folder / HALF_DECODER)


def half_decoder_state(state: dict[str, Any], student: Student) -> dict[str, Tensor]:
    """Return a trained decoder and its first layer under the names of AdcSR's halfDecoder.ckpt."""
    averaged = state["averaged"]
    theirs = {f"decoder.{name}": value for name, value in averaged.items() if name.startswith("conv_in.")}
    for ours, names in key_table(student.config).items():
        if ours.startswith("decoder."):
            theirs |= dict(zip(names, averaged[ours].chunk(len(names)), strict=True))
    return {name: value.clone() for name, value in theirs.items()}


def rebuild(state: dict[str, Any]) -> tuple[dict[str, Any], Student]:
    """Return (configuration, student with the averaged weights, adapters still apart) of a checkpoint."""
    run = json.loads(state["config"])
    student = Student(StudentConfig(**run["student"]))
    if has_lora(run):
        add_lora(student, LoraConfig(**run["lora"]))
    weights = dict(state["student"])
    weights |= {name: value for name, value in state["averaged"].items() if name in weights}
    student.load_state_dict(weights)
    return run, student


def plain_student(student: Student) -> Student:
    """Return a student of the same output without adapters."""
    plain = Student(student.config)
    plain.load_state_dict(merged_state(student))
    return plain


def has_lora(run: dict[str, Any]) -> bool:
    """Return whether a run's configuration trains adapters."""
    return any(stage["trainable"] == "lora" for stage in run["stages"])


def describe(state: dict[str, Any]) -> dict[str, str]:
    """Return the texts that travel with the weights."""
    run = json.loads(state["config"])
    stages = ", ".join(stage["name"] for stage in run["stages"])
    return {"recipe": run["recipe"], "stages": stages, "steps": str(state["step"]), "teacher": run["teacher"]["kind"]}


def export_student(student: Student, path: Path, metadata: dict[str, str], dtype: torch.dtype = torch.float32) -> None:
    """Write weights and configuration to `path`; it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_student(student, path, dtype=dtype, metadata=metadata)


def read_weights(path: Path | str, config: StudentConfig) -> dict[str, Tensor]:
    """Read the weights of a student's file, as float32.

    A student with temporal blocks or recurrence may begin with one that has none: what is missing starts as identity.

    Raises:
        ConfigError: it has another configuration.
        CheckpointError: it cannot be read.
    """
    student = load_student(path, dtype=torch.float32)
    if student.config.temporal == "none" and config.temporal != "none":
        student = with_temporal(student, config.temporal)
    if config.recurrent and not student.config.recurrent:
        student = with_recurrence(student)
    if student.config != config:
        raise ConfigError(f"{path} holds a student of another shape: {student.config.to_json()}")
    return student.state_dict()


def export_runs(folders: Sequence[Path], path: Path, dtype: torch.dtype) -> int:
    """Export the averaged weights of a run's newest checkpoint, adapters merged.

    Args:
        folders: runs; of several the mean of their weights is taken, which are good together only where one run began
            with the other's result.
        path: the file.
        dtype: of the weights in it.

    Returns:
        the steps of all.

    Raises:
        CheckpointError: no checkpoint, or a broken one.
        ConfigError: students of different shapes.
    """
    students, abouts = zip(*(_newest(folder) for folder in folders), strict=True)
    if len({student.config for student in students}) > 1:
        raise ConfigError(f"{', '.join(map(str, folders))} hold students of different shapes; these have no mean")
    weights = [student.state_dict() for student in students]
    students[0].load_state_dict({key: sum(each[key] for each in weights) / len(weights) for key in weights[0]})
    about = {key: " + ".join(dict.fromkeys(each[key] for each in abouts)) for key in abouts[0]}
    export_student(students[0], path, about, dtype)
    return sum(int(each["steps"]) for each in abouts)


def _newest(folder: Path) -> tuple[Student, dict[str, str]]:
    found = list_checkpoints(folder / "checkpoints")
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint")
    state = load_checkpoint(found[-1])
    return plain_student(rebuild(state)[1]), describe(state)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description="Export a run, finished or not.")
    parser.add_argument("run", type=Path, nargs="+", help="the --output of training.train; of several, their mean")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    options = parser.parse_args(arguments)
    try:
        steps = export_runs(options.run, options.out, getattr(torch, options.dtype))
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {steps} steps, {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
