"""Optional packages, and weights that they would download: there, or refused with what to do instead.

Training and evaluation never download behind the user's back. Imports nothing but torch; each optional package is
imported where it is used.
"""

from pathlib import Path

import torch

from adcvsr_core.errors import ConfigError


def unavailable(package: str, wanted: str, instead: str, error: Exception) -> ConfigError:
    """Return the error to raise when an optional package is missing or broken.

    Args:
        package: its name for pip.
        wanted: what needs it.
        instead: what works without it.
        error: what importing it raised.
    """
    state = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({error})"
    return ConfigError(f"{wanted} needs the package {package}, which {state}: pip install {package}; or {instead}")


def require_cached(url: str, wanted: str, instead: str) -> Path:
    """Return where torch keeps a weights file that torchvision would download, if it is there.

    Args:
        url: where torchvision has it from.
        wanted, instead: see `unavailable`.

    Raises:
        ConfigError: the file is not in torch's cache.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.exists():
        raise ConfigError(
            f"{wanted} needs weights that are not on this machine: save {url} as {path} "
            f"(TORCH_HOME moves that folder); or {instead}"
        )
    return path
