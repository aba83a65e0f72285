"""What the tests of teachers share: clips to give them, and folders to spoil."""

from pathlib import Path

import torch
import torch.nn.functional as F


def clip(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return smooth clips [B,T,3,h,w] in [-1, 1]."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.tanh(F.avg_pool2d(noise.flatten(0, 1), 3, 1, 1).unflatten(0, shape[:2]) * 2)


def copy_folder(folder: Path, target: Path) -> Path:
    for file in folder.rglob("*"):
        if file.is_file():
            (target / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(folder)).write_bytes(file.read_bytes())
    return target
