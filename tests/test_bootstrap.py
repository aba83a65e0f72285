"""The two commands: what is installed where, what an interruption leaves, and how failures read."""

import itertools
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import av
import numpy as np
import pytest

import bootstrap
from benchmarks import make_sample

CPU_TORCH = {"version": "2.13.0+cpu", "requires_dist": ["filelock", "sympy>=1.13"]}
CUDA_TORCH = {"version": "2.13.0", "requires_dist": ["filelock", 'nvidia-cublas==13.1; platform_system == "Linux"']}


class Machine:
    """Stands in for every program that a set-up starts: venv, pip and the venv's Python."""

    def __init__(self, venv):
        self.venv, self.commands, self.fail_on, self.error = venv, [], None, None

    def capture(self, *arguments):
        line = " ".join(str(each) for each in arguments)
        self.commands.append(line)
        if self.fail_on and self.fail_on in line:
            if self.error:
                raise self.error
            return SimpleNamespace(returncode=1, stdout="", stderr="noise\nERROR: no room left\n")
        if "-m venv" in line:
            python = bootstrap.venv_python()
            python.parent.mkdir(parents=True)
            python.touch()
        missing = "metadata" in line and not any("install --quiet torch" in each for each in self.commands)
        return SimpleNamespace(returncode=int(missing), stdout="pip 25.0 from there", stderr="")

    def made(self):
        return sum("-m venv" in line for line in self.commands)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    venv = tmp_path / ".venv"
    fake = Machine(venv)
    monkeypatch.setattr(bootstrap, "VENV", venv)
    monkeypatch.setattr(bootstrap, "LOG", venv / "setup.log")
    monkeypatch.setattr(bootstrap, "UNFINISHED", venv / "setup-unfinished")
    monkeypatch.setattr(bootstrap, "capture", fake.capture)
    monkeypatch.setattr(bootstrap, "has_nvidia", lambda: False)
    monkeypatch.setattr(bootstrap, "resolve", lambda *arguments: CPU_TORCH)
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
    leftover = machine.venv / "half-installed"
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

    monkeypatch.setattr(bootstrap, "resolve", resolve)
    assert bootstrap.choose_torch(nvidia) == expected
    several_gb = platform == "linux" and not nvidia and expected == ["torch==2.13.0"]
    assert ("several GB" in capsys.readouterr().out) == several_gb


def test_a_machine_without_torch_is_told(machine, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "resolve", lambda *arguments: None)
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
