"""From training to the world: one safetensors file that `load_student` takes, and back.

Thin over `adcvsr_core.checkpoint`, which owns the format. Also a command, so that a run can be tried before it ends:
`python -m training.export RUN --out model.safetensors [--dtype float16]`.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from adcvsr_core.checkpoint import load_student, save_student
from adcvsr_core.config import StudentConfig
from adcvsr_core.errors import AdcvsrError, CheckpointError, ConfigError
from adcvsr_core.student import Student

from .checkpoints import list_checkpoints, load_checkpoint


def export_student(student: Student, path: Path, metadata: dict[str, str], dtype: torch.dtype = torch.float32) -> None:
    """Write weights and configuration to `path`; it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_student(student, path, dtype=dtype, metadata=metadata)


def read_weights(path: Path, config: StudentConfig) -> dict[str, Tensor]:
    """Read the weights of an exported student, as float32.

    Raises:
        ConfigError: it has another configuration.
        CheckpointError: it cannot be read.
    """
    student = load_student(path, dtype=torch.float32)
    if student.config != config:
        raise ConfigError(f"{path} holds a student of another shape: {student.config.to_json()}")
    return student.state_dict()


def export_run(folder: Path, path: Path, dtype: torch.dtype) -> int:
    """Export the averaged weights of a run's newest checkpoint; returns its step.

    Raises:
        CheckpointError: no checkpoint, or a broken one.
    """
    found = list_checkpoints(folder / "checkpoints")
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint")
    state = load_checkpoint(found[-1])
    run = json.loads(state["config"])
    student = Student(StudentConfig(**run["student"]))
    student.load_state_dict(state["averaged"])
    stages = ", ".join(stage["name"] for stage in run["stages"])
    metadata = {"recipe": run["recipe"], "stages": stages, "steps": str(state["step"])}
    export_student(student, path, metadata, dtype)
    return state["step"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description="Export a run, finished or not.")
    parser.add_argument("run", type=Path, help="the --output of training.train")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    options = parser.parse_args(arguments)
    try:
        step = export_run(options.run, options.out, getattr(torch, options.dtype))
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: step {step}, {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
