"""One command makes a bundled model from nothing; stopped and started again it goes on."""

import shutil
from pathlib import Path

import pytest
import torch

from adcvsr_core.checkpoint import load_student, read_config
from adcvsr_core.config import PRESETS
from tests.test_peers import write_network
from training import make_bundled, train
from training.export import STUDENT
from training.peers import PEERS
from training.recipes import RECIPES


@pytest.fixture
def material(folder: Path, tmp_path: Path) -> Path:
    """The small prepared folder with a teacher of random weights."""
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "peers").mkdir()
    write_network(tmp_path / "data" / "peers" / f"{PEERS[make_bundled.TEACHER]}.param")
    return tmp_path / "data"


def test_the_chain_runs_to_both_ends_and_goes_on_where_it_stopped(material, tmp_path, monkeypatch, capsys):
    out = tmp_path / "runs"
    command = ["--data", str(material), "--out", str(out), "--model", "nano", "--budget", "0.0005"]
    begun = []
    real = train.main

    def stopping(arguments):
        begun.append(arguments[arguments.index("--recipe") + 1])
        return 3 if begun == ["nano_2d", "nano_stage1"] else real(arguments)

    monkeypatch.setattr(train, "main", stopping)
    assert make_bundled.main(command) == 3 and not (out / "nano.safetensors").exists()
    assert make_bundled.main(command) == 0
    rest = ["nano_stage1", "nano_steady", "nano_text", "nano_blocks", "nano_rich"]
    assert begun == ["nano_2d", "nano_stage1", *rest], "what is complete is not trained again"
    for name, runs in make_bundled.RESULTS["nano"].items():
        assert read_config(out / f"{name}.safetensors") == PRESETS["nano"]
        assert_mean_of(out / f"{name}.safetensors", [out / run / STUDENT for run in runs])
    assert_mean_of(out / "nano_text.init.safetensors", [out / run / STUDENT for run in ("nano_stage1", "nano_steady")])
    assert list((out / "teacher").rglob("*.mkv")), "the teacher's pictures are stored"
    assert load_student(out / "nano.safetensors", fidelity=0.5).config == PRESETS["nano"], "the ends belong together"


def assert_mean_of(file: Path, files: list[Path]) -> None:
    weights = [load_student(each, dtype=torch.float32).state_dict() for each in files]
    for key, weight in load_student(file, dtype=torch.float32).state_dict().items():
        mean = sum(each[key] for each in weights) / len(weights)
        assert torch.allclose(weight, mean, atol=2e-3 * float(mean.abs().max()) + 1e-6), key


def test_a_time_limit_stops_it(material, tmp_path):
    command = ["--data", str(material), "--out", str(tmp_path / "runs"), "--model", "nano", "--minutes", "0.05"]
    assert make_bundled.main(command) == 3
    assert not (tmp_path / "runs" / "nano_2d" / STUDENT).exists()


@pytest.mark.parametrize("model", make_bundled.CHAINS)
def test_every_result_comes_from_the_chain(model):
    recipes = [recipe for recipe, _ in make_bundled.CHAINS[model]]
    assert set(recipes) <= set(RECIPES) and set().union(*make_bundled.RESULTS[model].values()) <= set(recipes)
    for index, (_, begins_with) in enumerate(make_bundled.CHAINS[model]):
        assert set(begins_with) <= set(recipes[:index]) and bool(begins_with) == bool(index)
