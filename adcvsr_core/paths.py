"""Which files a name may lead to. Knows nothing about what is in them."""

import os
from collections.abc import Iterable
from pathlib import Path

from .errors import InputError


def require_inside(path: str | os.PathLike, folders: Iterable[str | os.PathLike]) -> str:
    """Return a path, links followed, that lies in one of the folders or below; a folder may itself be a link.

    Raises:
        InputError: it lies elsewhere, by `..` or by a link. Neither place is told: the message may travel far.
    """
    real = Path(path).resolve()
    if not any(real.is_relative_to(Path(folder).resolve()) for folder in folders):
        raise InputError(
            f"{Path(path).name} is a link out of its folder; put the file itself there, or name the folder where it "
            "is in extra_model_paths.yaml"
        )
    return str(real)
