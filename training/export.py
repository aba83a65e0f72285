"""From training to the world: one safetensors file that `load_student` takes, and back.

Thin over `adcvsr_core.checkpoint`, which owns the format. The file is written under another name and renamed.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from adcvsr_core.checkpoint import load_student, save_student
from adcvsr_core.config import StudentConfig
from adcvsr_core.errors import ConfigError
from adcvsr_core.student import Student


def export_student(
    student: Student, path: Path, metadata: dict[str, str], dtype: torch.dtype = torch.float32
) -> None:
    """Write weights and configuration to `path`; it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    save_student(student, partial, dtype=dtype, metadata=metadata)
    os.replace(partial, path)


def read_weights(path: Path, config: StudentConfig) -> dict[str, Tensor]:
    """Read the weights of an exported student.

    Raises:
        ConfigError: it has another configuration.
        CheckpointError: it cannot be read.
    """
    student = load_student(path)
    if student.config != config:
        raise ConfigError(f"{path} holds a student of another shape: {student.config.to_json()}")
    return student.state_dict()
