"""Parts of a diffusers folder: read strictly and offline, and moved to the device only while they work.

Knows nothing about what the parts compute. Works with diffusers 0.32 and later.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from adcvsr_core.errors import CheckpointError

from ..packages import unavailable
from .base import one_line


def load_diffusers() -> Any:
    """Return the package diffusers.

    Raises:
        ConfigError: it is missing or broken.
    """
    try:
        import diffusers
    except Exception as error:  # it imports other packages, and any of them may be broken
        raise unavailable("diffusers", "this teacher", "use teacher.kind=checkpoint or folder", error) from error
    return diffusers


def load_part(folder: Path, part: str, cls: str, dtype: torch.dtype) -> nn.Module:
    """Read a network from FOLDER/PART, on the CPU, frozen and in eval mode.

    Args:
        folder: in diffusers' layout.
        part: "unet", "vae" or "transformer".
        cls: name of its class in diffusers.
        dtype: of the weights.

    Raises:
        CheckpointError: it cannot be read, or a weight is missing, unknown or of another shape.
    """
    try:
        model, info = getattr(load_diffusers(), cls).from_pretrained(
            folder / part, torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / part} cannot be read as {cls}: {one_line(error)}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            names = [str(key) for key in info[what]]
            raise CheckpointError(f"{folder / part}: {len(names)} {what.replace('_', ' ')}, such as {names[:3]}")
    return model.requires_grad_(False).eval()


def load_scheduler(folder: Path, cls: str, prediction_type: str) -> Any:
    """Read FOLDER/scheduler as a scheduler of diffusers, whichever class wrote it.

    Raises:
        CheckpointError: it cannot be read, or its network predicts something else than `prediction_type`.
    """
    try:
        scheduler = getattr(load_diffusers(), cls).from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / 'scheduler'} cannot be read: {one_line(error)}") from error
    found = scheduler.config.prediction_type
    if found != prediction_type:
        raise CheckpointError(f"{folder / 'scheduler'} has prediction_type {found!r}; expected {prediction_type!r}")
    return scheduler


@contextlib.contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Let a frozen module's weights be on a device for a while.

    The originals stay where they are and come back as they were, so that nothing is copied from the device. A module
    that is on the device already stays there.
    """
    tables = [table for each in module.modules() for table in (each._parameters, each._buffers)]
    originals = [(table, name, tensor) for table in tables for name, tensor in table.items() if tensor is not None]
    try:
        for table, name, tensor in originals:
            moved = tensor.to(device)
            table[name] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
        yield
    finally:
        for table, name, tensor in originals:
            table[name] = tensor
