"""Which files a teacher is made of, told by their contents and not by their place.

Hashing eleven gigabytes whole takes a minute at every start, so of large files only evenly spaced blocks are read:
enough to tell one set of weights from another, which differ everywhere; no proof against forgery.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from adcvsr_core.errors import CheckpointError

_STEM = "diffusion_pytorch_model.safetensors"
_WHOLE = 64 << 20  # bytes up to which a file is hashed whole
_BLOCK, _NUM_BLOCKS = 64 << 10, 256


def fingerprint(path: Path) -> str:
    """Return 32 hexadecimal digits of a file's contents: of all of it up to 64 MiB, beyond of its size and 256 blocks.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                while block := file.read(1 << 20):
                    digest.update(block)
            else:
                for index in range(_NUM_BLOCKS):
                    file.seek((size - _BLOCK) * index // (_NUM_BLOCKS - 1))
                    digest.update(file.read(_BLOCK))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()[:32]


def fingerprints(folder: Path, networks: Iterable[str]) -> dict[str, str]:
    """Identify what is read of a diffusers folder: its scheduler's configuration and these networks.

    Returns:
        "part/file" -> fingerprint, for configurations and the weights that they name; other files do not count.

    Raises:
        CheckpointError: one of them is missing.
    """
    names = ["scheduler/scheduler_config.json"]
    for part in networks:
        index = f"{part}/{_STEM}.index.json"
        names += [f"{part}/config.json", *([index] if (folder / index).exists() else [])]
        names += [f"{part}/{name}" for name in _weight_files(folder / index)]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}; expected a folder in diffusers' layout")
    return {name: fingerprint(folder / name) for name in names}


def _weight_files(index: Path) -> list[str]:
    """Return the files that an index names, or the one file that needs none."""
    if not index.exists():
        return [_STEM]
    try:
        return sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged: {error}") from error
