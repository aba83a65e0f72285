"""Several processes train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adcvsr_core.checkpoint import load_student
from adcvsr_core.errors import ConfigError
from training.processes import Processes

# Adam makes a whole step of a gradient that is rounding noise; the discriminators' steps are small so that the second
# adversarial loss shows what was computed, and not that.
SETTINGS = ["stage.steps=2", "stage.batch=2", "stage.optimizer=adam", "checkpoint_every=100"]
SETTINGS += ["stage.adversary.learning_rate=1e-7"]


def train(output: Path, folder: Path, num_processes: int) -> list[dict]:
    """Run `debug` under accelerate's launcher on the CPU; returns its log."""
    # Without --multi_gpu accelerate starts one process where there is no GPU; gloo connects them all the same.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
    launcher += ["--dynamo_backend", "no", "--num_processes", str(num_processes), "--main_process_port", "0"]
    command = [sys.executable, *(launcher if num_processes > 1 else []), "-m", "training.train", "--recipe", "debug"]
    command += ["--output", str(output), "--data", str(folder)]
    for setting in SETTINGS:
        command += ["--set", setting]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("the first of 2 processes" in done.stdout) == (num_processes == 2), "as many as asked for"
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_equal_one(folder: Path, tmp_path: Path) -> None:
    one, two = train(tmp_path / "one", folder, 1), train(tmp_path / "two", folder, 2)
    assert [line["step"] for line in two] == [line["step"] for line in one] == list(range(8))
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5), a["stage"]
        assert a.get("adversary_loss", 0) == pytest.approx(b.get("adversary_loss", 0), abs=1e-4), a["stage"]
    weights = [load_student(tmp_path / name / "student.safetensors").state_dict() for name in ("one", "two")]
    # Adam turns a gradient of rounding noise into a whole step, so weights agree less well than losses.
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=2e-3) for key in weights[0])


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_schemes_that_split_the_network_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=f"{name}.*plain multi-GPU"):
        Processes()
