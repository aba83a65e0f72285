"""The project's commands, on any machine with Python 3.10 or newer and nothing else installed.

    python bootstrap.py demo              upscale the bundled clip and show before and after
    python bootstrap.py test [-- ARGS]    check style and run the tests; ARGS go to pytest (such as -k streaming)
    python bootstrap.py lint              check style only
    python bootstrap.py kernels           test the GPU kernels on a CPU, with Triton, fetched when missing (1 GB)
    python bootstrap.py comfy [-- ARGS]   run the tests that need a real ComfyUI, which it makes in `.comfy` (1.5 GB)
    python bootstrap.py browser [-- ARGS] run the example workflows in ComfyUI's front end, in a headless Chromium

Each makes the virtual environment `.venv` beside this file when it is missing or out of date, with the PyTorch
that fits the machine. Uses the standard library only. Knows nothing about what the package computes; how ComfyUI
is made is in tests/comfy_environment.py, and where the browser comes from in tests/browser_environment.py.
"""

from __future__ import annotations  # so that an old Python reads far enough to say that it is too old

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SAMPLE = ROOT / "adcvsr_core" / "samples" / "demo.mp4"
DEMO = ROOT / "demo"

TORCH = "torch==2.13.0"  # the version the tests pass on; requirements.txt says which ones may work
# PyTorch's documented index of builds without CUDA. Used only where pip's own choice would be a CUDA build and the
# machine has no NVIDIA card; never required.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Of requirements.txt, what upscaling needs; the rest is for training.
INFERENCE = ("torch", "safetensors", "einops", "numpy", "pillow", "av", "rich")
TOOLS = ("pytest>=8", "hypothesis>=6.100", "ruff==0.17.*")  # formatting differs between ruff's versions


class Fault(Exception):
    """A failure that the user can read in one line."""


def say(line: str) -> None:
    print(line, flush=True)


def environment() -> dict[str, str]:
    """Return the environment of every program started here: UTF-8, and only the venv's packages."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "PYTHONUTF8": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_USER": "0"}


def run(*arguments: str | Path, **variables: str) -> int:
    """Run a program in the project's root and return its exit code; after Ctrl-C it may end in its own way.

    Args:
        variables: More of its environment.
    """
    process = subprocess.Popen([str(each) for each in arguments], cwd=ROOT, env={**environment(), **variables})
    interrupted = False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return code


def capture(*arguments: str | Path, log: Path | None = None) -> subprocess.CompletedProcess:
    """Run a program, its output returned and added to the log."""
    command = [str(each) for each in arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, errors="replace")
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
    if log and log.parent.is_dir():
        with log.open("a", encoding="utf-8") as lines:
            lines.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    return done


def reason(done: subprocess.CompletedProcess) -> str:
    """Return the line of a failed program's output that says most."""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [f"exit code {done.returncode}"])[-1].removeprefix("ERROR: ")


def requirements() -> dict[str, str]:
    """Return the lines of requirements.txt by package name."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines())
    return {re.match(r"[A-Za-z0-9._-]+", line).group().lower(): line for line in lines if line}


def has_nvidia() -> bool:
    """Return whether an NVIDIA driver answers on this machine."""
    found = shutil.which("nvidia-smi")
    return bool(found) and "GPU" in capture(found, "-L").stdout


def needs_cuda(metadata: dict) -> bool:
    """Return whether a torch wheel brings CUDA's libraries along, by what it requires."""
    return any(re.match(r"(nvidia|cuda|triton)", line) for line in metadata.get("requires_dist") or [])


class Venv:
    """A virtual environment, and the log of what was done to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.log = path / "setup.log"
        self.unfinished = path / "setup-unfinished"  # there while pip works: a set-up that was cut off starts over

    def capture(self, *arguments: str | Path) -> subprocess.CompletedProcess:
        return capture(self.python, *arguments, log=self.log)

    def pip(self, *arguments: str | Path) -> subprocess.CompletedProcess:
        return self.capture("-m", "pip", *arguments)

    def install(self, what: str, *arguments: str) -> None:
        """Install with pip and say how long it took."""
        start = time.monotonic()
        done = self.pip("install", "--quiet", *arguments)
        if done.returncode:
            raise Fault(f"pip could not install {what}: {reason(done)} (all of it: {self.log})")
        say(f"      {time.monotonic() - start:.0f} s")

    def make(self) -> None:
        """Make it, unless a working one is there; what an interrupted set-up left is removed first."""
        if self.path.exists() and (self.unfinished.exists() or self.capture("-c", "").returncode):
            if Path(sys.prefix).resolve() == self.path:
                raise Fault(f"{self.path} has to be made again; run this with the system's Python, not the one inside")
            say("      the last set-up was cut off, or its Python is gone: making it again")
            shutil.rmtree(self.path)
        fresh = not self.path.exists()
        self.path.mkdir(exist_ok=True)
        self.unfinished.touch()
        if fresh:
            done = capture(sys.executable, "-m", "venv", self.path, log=self.log)
            if done.returncode and "ensurepip" in done.stdout:
                raise Fault("this Python has no venv module; on Debian and Ubuntu: sudo apt install python3-venv")
            if done.returncode:
                raise Fault(f"python could not make {self.path}: {reason(done)}")
        found = re.match(r"pip (\d+)", self.pip("--version").stdout)
        if found is None:
            raise Fault(f"{self.path} has no pip; remove it and run this again")
        if int(found.group(1)) < 23:  # older ones cannot report what they would install
            self.install("a newer pip", "--upgrade", "pip")

    def resolve(self, *arguments: str) -> dict | None:
        """Return the metadata of the package that pip would install, or None where pip finds none."""
        report = ("--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-")
        done = self.pip("install", *report, *arguments)
        return None if done.returncode else json.loads(done.stdout)["install"][0]["metadata"]

    def choose_torch(self, nvidia: bool) -> list[str]:
        """Return the pip arguments for the torch that fits: pip's own choice, or the build without CUDA.

        Raises:
            Fault: pip finds no torch for this Python and system.
        """
        wanted = requirements()["torch"]
        found = self.resolve(TORCH) or self.resolve(wanted)
        if found is None:
            version = ".".join(map(str, sys.version_info[:2]))
            raise Fault(f"pip finds no {wanted} for Python {version} on {sys.platform} (details: {self.log})")
        exact = f"torch=={found['version']}"
        if nvidia or not sys.platform.startswith("linux") or not needs_cuda(found):
            return [exact]
        small = [f"{exact.split('+')[0]}+cpu", "--extra-index-url", CPU_INDEX]
        if self.resolve("--retries", "1", "--timeout", "15", *small):
            return small
        say(f"      {CPU_INDEX} has no {small[0]} or cannot be reached: taking the CUDA build, several GB")
        return [exact]


VENV = Venv(ROOT / ".venv")


def packages(level: str) -> list[str]:
    """Return what `level` ("demo" or "test") needs besides torch, as pip requirements."""
    known = requirements()
    names = INFERENCE if level == "demo" else known
    return [known[name] for name in names if name != "torch"] + ([] if level == "demo" else list(TOOLS))


def fingerprint(level: str) -> str:
    """Return a hash of everything that decides what is installed for `level`."""
    inputs = [TORCH, requirements()["torch"], *packages(level)]
    return hashlib.sha256("\n".join(inputs).encode()).hexdigest()


def stamp(level: str) -> Path:
    return VENV.path / f"ready-{level}"


def is_ready(level: str) -> bool:
    """Return whether the environment was completed for `level`, or for "test", which holds all that "demo" needs."""
    if VENV.unfinished.exists() or not VENV.python.exists():
        return False
    levels = ("demo", "test") if level == "demo" else ("test",)
    return any(stamp(each).exists() and stamp(each).read_text("utf-8") == fingerprint(each) for each in levels)


def install_torch() -> None:
    """Install the torch that fits the machine, unless one is there."""
    there = VENV.capture("-c", "import importlib.metadata as m; print(m.version('torch'))")
    if there.returncode == 0:
        say(f"[2/3] torch {there.stdout.strip()} is there")
        return
    nvidia = has_nvidia()
    arguments = VENV.choose_torch(nvidia)
    say(f"[2/3] installing {arguments[0]} ({'an' if nvidia else 'no'} NVIDIA driver found); this can take minutes")
    VENV.install("torch", *arguments)
    if nvidia and VENV.capture("-c", "import torch; assert torch.version.cuda").returncode:
        say("      this build cannot use the NVIDIA card; see https://pytorch.org/get-started for one that can")


def set_up(level: str) -> None:
    """Make the environment for `level`, or return at once when it is complete."""
    if is_ready(level):
        return
    start = time.monotonic()
    say(f"[1/3] making {VENV.path} with Python {'.'.join(map(str, sys.version_info[:3]))}")
    for each in ("demo", "test"):
        stamp(each).unlink(missing_ok=True)
    VENV.make()
    try:
        install_torch()
        names = packages(level)
        say(f"[3/3] installing {' '.join(re.split('[=<>~]', name)[0] for name in names)}")
        VENV.install("the other packages", *names)
    except Fault:
        VENV.unfinished.unlink()  # pip ended by itself, so what it did install is whole
        raise
    VENV.unfinished.unlink()
    stamp(level).write_text(fingerprint(level), "utf-8")
    say(f"environment ready in {time.monotonic() - start:.0f} s")


def demo() -> int:
    """Upscale the bundled clip, lay a frame beside its source, and say where both files are."""
    set_up("demo")
    DEMO.mkdir(exist_ok=True)
    clip, picture = DEMO / "demo_x4.mp4", DEMO / "before_after.png"
    tool = (VENV.python, "-m", "adcvsr_core")
    code = run(*tool, "upscale", SAMPLE, clip, "--overwrite")
    if code == 0:
        code = run(*tool, "compare", SAMPLE, clip, "--out", picture, "--overwrite")
    if code == 0:
        say(f"\nupscaled clip:     {clip}\nbefore and after:  {picture}")
    return code


def lint() -> int:
    """Check style and formatting."""
    set_up("test")
    return run(VENV.python, "-m", "ruff", "check", ".") or run(VENV.python, "-m", "ruff", "format", "--check", ".")


def test(arguments: list[str]) -> int:
    """Check style, then run the tests."""
    return lint() or run(VENV.python, "-m", "pytest", "-c", "tests/pytest.ini", "tests", *arguments)


def kernels() -> int:
    """Run the tests of the GPU kernels, for which alone Triton is fetched: Linux has wheels of it, GPU or not."""
    set_up("test")
    if VENV.capture("-c", "import triton").returncode:
        say("installing triton")
        VENV.install("triton", "triton")
    return run(VENV.python, "-m", "pytest", "-c", "tests/pytest.ini", "tests/test_fused.py")


def comfy(arguments: list[str]) -> int:
    """Run the tests that need a real ComfyUI, which is made first where there is none."""
    set_up("test")
    return run(VENV.python, "-m", "tests.comfy_environment", *arguments)


def browser(arguments: list[str]) -> int:
    """Run the tests that open ComfyUI's front end in Chromium; both are fetched first where they are missing."""
    set_up("test")
    return run(VENV.python, "-m", "tests.browser_environment", *arguments)


def main(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    rest = rest[1:] if rest[:1] == ["--"] else rest
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    simple = {"demo": demo, "lint": lint, "kernels": kernels}
    with_arguments = {"test": test, "comfy": comfy, "browser": browser}
    if command not in with_arguments and (command not in simple or rest):
        found = " ".join(arguments) or "nothing"
        expected = ", ".join((*simple, *with_arguments))
        print(f"error: expected one of {expected}, found {found}\n\n{__doc__}", file=sys.stderr)
        return 2
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 (run by whatever Python there is)
            raise Fault(f"Python {'.'.join(map(str, sys.version_info[:3]))} is too old; use 3.10 or newer")
        return simple[command]() if command in simple else with_arguments[command](rest)
    except (Fault, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
