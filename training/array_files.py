"""Arrays in files. Knows nothing about what they hold."""

import os
from pathlib import Path

import numpy as np


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as `path` in one step, so that a half-written one is never taken for whole."""
    partial = path.with_suffix(".part.npy")
    np.save(partial, array)
    os.replace(partial, path)
