"""Our networks by name, and frames to give them.

Weights make no difference to speed: where a model is not bundled, its preset is built with random ones. With `--tiny`
the full-size presets shrink to a network with the same parts.
"""

from dataclasses import replace

import torch
from torch import Tensor

from adcvsr_core.checkpoint import bundled_models, load_student, read_config
from adcvsr_core.config import PRESETS, StudentConfig
from adcvsr_core.errors import ConfigError
from adcvsr_core.student import Student

from .command import Setup

# Attention at the same places and groups that straddle the borders of concatenated skips, as at full size.
_TINY = StudentConfig(
    channels=(24, 24, 48, 48),
    layers=1,
    heads=(1, 1, 2, 0),
    mid_heads=2,
    decoder_channels=(24, 24, 24, 24),
    decoder_layers=1,
    norm_groups=24,
)
_SHRUNKEN = {
    "adcvsr": _TINY,
    "adcsr": replace(_TINY, temporal="none"),
    "recurrent": replace(_TINY, temporal="none", recurrent=True),
}


def student_config(name: str, *, tiny: bool = False) -> StudentConfig:
    """Return the shape of a bundled model or preset.

    Raises:
        ConfigError: no such name.
    """
    if tiny and name in _SHRUNKEN:
        return _SHRUNKEN[name]
    if name in bundled_models():
        return read_config(name)
    if name not in PRESETS:
        raise ConfigError(f"no model is called {name!r}; expected one of {', '.join({*bundled_models(), *PRESETS})}")
    return PRESETS[name]


def make_student(name: str, setup: Setup, dtype: torch.dtype | None = None) -> Student:
    """Return a bundled model, or a preset with random weights, ready for inference.

    Args:
        name: see `student_config`.
        setup: its device, and whether it is tiny.
        dtype: to compute in, None = the setup's.
    """
    dtype = dtype or setup.dtype
    if name in bundled_models():
        return load_student(name, dtype, setup.device)
    with torch.random.fork_rng(), torch.device(setup.device):
        torch.manual_seed(0)
        student = Student(student_config(name, tiny=setup.tiny))
    return student.eval().requires_grad_(False).to(dtype)


def weights_of(name: str) -> str:
    """Say where `make_student` has a model's weights from."""
    return "bundled" if name in bundled_models() else "random"


def random_clip(num_frames: int, height: int, width: int, setup: Setup, dtype: torch.dtype | None = None) -> Tensor:
    """Return LR frames [1,T,3,H,W] in [-1, 1] on the setup's device, the same in every run."""
    frames = torch.rand(1, num_frames, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return frames.to(setup.device, dtype or setup.dtype)
