"""Between a model and its rich partner: the ends are the files, the middle is between them, and faults are told."""

from pathlib import Path

import pytest
import torch

from adcvsr_core.checkpoint import bundled_models, load_student, rich_partner, save_student
from adcvsr_core.cli import main
from adcvsr_core.errors import CheckpointError, ConfigError
from adcvsr_core.lora import load_with_lora
from adcvsr_core.student import Student


@pytest.fixture
def pair(tiny_config, tmp_path: Path) -> Path:
    for seed, name in enumerate(("m", "m.rich")):
        torch.manual_seed(seed)
        save_student(Student(tiny_config), tmp_path / f"{name}.safetensors")
    return tmp_path / "m.safetensors"


def weights(path: Path, fidelity: float, **options) -> torch.Tensor:
    student = load_student(path, fidelity=fidelity, **options)
    return torch.cat([value.flatten().double() for value in student.state_dict().values()])


def test_the_ends_are_the_files_and_the_way_is_straight(pair: Path) -> None:
    faithful, rich = load_student(pair), load_student(rich_partner(pair))
    for fidelity, end in ((1.0, faithful), (0.0, rich)):
        loaded = load_student(pair, fidelity=fidelity)
        assert all(
            torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), end.state_dict().values(), strict=True)
        )
    ends = weights(pair, 0.0), weights(pair, 1.0)
    for fidelity in (0.1, 0.5, 0.75):
        expected = ends[0] + fidelity * (ends[1] - ends[0])
        assert (weights(pair, fidelity) - expected).abs().max() < 1e-6
        assert (weights(pair, fidelity, dtype=torch.float16) - expected).abs().max() < 1e-2
    between = load_student(pair, fidelity=0.5)
    assert between.config == faithful.config and not between.training
    lr = torch.rand(1, 2, 3, 16, 16)
    with torch.no_grad():
        assert not torch.equal(between(lr), faithful(lr))
    assert torch.equal(load_with_lora(pair, fidelity=0.5)[0](lr), between(lr))


def test_faults_are_told(pair: Path, tiny_config, tmp_path: Path, sample: Path, capsys) -> None:
    for fidelity in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="outside"):
            load_student(pair, fidelity=fidelity)
    alone = tmp_path / "alone.safetensors"
    save_student(Student(tiny_config), alone)
    assert rich_partner(alone) is None and load_student(alone, fidelity=1.0)
    with pytest.raises(ConfigError, match=r"alone\.rich\.safetensors beside it"):
        load_student(alone, fidelity=0.9)
    assert main(["upscale", str(sample), str(tmp_path / "o.mp4"), "--model", str(alone), "--fidelity", "0.5"]) == 1
    assert "no richer partner" in " ".join(capsys.readouterr().err.split())
    other = Student(type(tiny_config)(**{**tiny_config.__dict__, "output_scale": 0.5}))
    save_student(other, tmp_path / "alone.rich.safetensors")
    with pytest.raises(CheckpointError, match="another network"):
        load_student(alone, fidelity=0.5)


def test_a_rich_partner_is_no_model_of_its_own() -> None:
    assert bundled_models()[0] == "default" and not any("rich" in name for name in bundled_models())
