"""Checkpoints of a run: written whole or not at all, verified when read, pruned last.

A checkpoint is a folder `step-00001200` with state.pt and a manifest that holds its hash; it appears by one rename.
Reading executes no pickled code. Knows nothing about what is inside the state.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from adcvsr_core.errors import CheckpointError

_STATE, _MANIFEST = "state.pt", "manifest.json"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `folder`/step-N, then remove all but the `keep` newest.

    Args:
        folder: of all checkpoints of the run.
        step: steps done.
        state: tensors, numbers and strings in dicts and lists.
        keep: at least 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    partial = folder / f"step-{step:08d}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    torch.save(state, partial / _STATE)
    manifest = {"step": step, "bytes": (partial / _STATE).stat().st_size, "sha256": sha256(partial / _STATE)}
    (partial / _MANIFEST).write_text(json.dumps(manifest))
    for path in (partial / _STATE, partial / _MANIFEST):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.name.endswith(".tmp"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint.

    Raises:
        CheckpointError: incomplete, truncated or changed since it was written.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        found = (path / _STATE).stat().st_size
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a finished checkpoint ({error}); delete it to use the one before"
        ) from error
    if found != manifest["bytes"] or sha256(path / _STATE) != manifest["sha256"]:
        raise CheckpointError(
            f"{path / _STATE} has {found} bytes and another hash than its manifest ({manifest['bytes']} bytes): "
            "it is truncated or was changed; delete the folder to use the checkpoint before it"
        )
    return torch.load(path / _STATE, map_location="cpu", weights_only=True)


def sha256(path: Path) -> str:
    """Return a file's hash in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
