"""A student as a teacher: any file that `load_student` reads, run on whole clips."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adcvsr_core.checkpoint import find_weights, load_student
from adcvsr_core.student import Student

from .base import Teacher, compute_dtype, crop, identify, pad_repeating
from .fingerprint import fingerprint


class StudentTeacher(Teacher):
    """A trained student at full temporal strength.

    Args:
        name_or_path: a bundled model's name or a safetensors file.
        device: where to compute, in bfloat16; on a CPU in float32.

    Raises:
        CheckpointError: there is no such file.
    """

    def __init__(self, name_or_path: str, device: torch.device):
        self.path, self.device = Path(find_weights(name_or_path)), device
        self.dtype = compute_dtype(device, torch.bfloat16)
        self.student: Student | None = None
        self.identity = identify(kind="checkpoint", file=fingerprint(self.path), dtype=str(self.dtype))

    def load(self) -> None:
        if self.student is None:
            self.student = load_student(self.path, self.dtype, self.device)

    def super_resolve(self, lr: Tensor, keys: Sequence[str]) -> Tensor:
        padded = pad_repeating(lr.flatten(0, 1), self.student.multiple_of).unflatten(0, lr.shape[:2])
        return torch.cat([crop(self.student(clip[None]), lr) for clip in padded])
