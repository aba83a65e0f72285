"""From a run's configuration to its teacher."""

import torch

from adcvsr_core.errors import ConfigError

from ..config import TeacherConfig
from .base import Teacher
from .cached import CachedTeacher
from .dove import DoveTeacher
from .osediff import OSEDiffTeacher
from .peer import PeerTeacher
from .student import StudentTeacher


def make_teacher(config: TeacherConfig, device: torch.device | str) -> Teacher | None:
    """Return a run's teacher, or None where the target comes with the data ("ground_truth" and "folder").

    Its files are found and identified now. Its weights are read now too, or, with a cache, when something is missing
    there: a run whose targets are all stored needs no memory for its teacher.

    Raises:
        ConfigError: a setting is missing, or makes no sense for this kind.
        CheckpointError: files are missing or cannot be read.
    """
    if config.kind in ("ground_truth", "folder"):
        if config.cache:
            raise ConfigError(f'teacher.cache is set, but teacher.kind "{config.kind}" computes nothing to store')
        return None
    if not config.path:
        raise ConfigError(f'teacher.kind "{config.kind}" needs teacher.path')
    teacher = _make(config, torch.device(device))
    if config.cache:
        return CachedTeacher(teacher, config.cache)
    teacher.load()
    return teacher


def _make(config: TeacherConfig, device: torch.device) -> Teacher:
    if config.kind == "dove":
        return DoveTeacher(config.path, device, prompt_embedding=config.extra, seed=config.seed)
    if config.kind == "osediff":
        if not config.extra:
            raise ConfigError('teacher.kind "osediff" needs teacher.extra: the file of OSEDiff, PiSA-SR or AdcSR')
        return OSEDiffTeacher(config.path, config.extra, device)
    if config.extra:
        raise ConfigError(f'teacher.kind "{config.kind}" is one file; teacher.extra {config.extra!r} has no meaning')
    return PeerTeacher(config.path, device) if config.kind == "peer" else StudentTeacher(config.path, device)
