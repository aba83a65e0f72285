"""The benchmarks that train run to their tables at toy size, so that none of them is a dead script."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adcvsr_core.checkpoint import save_student
from adcvsr_core.student import Student
from benchmarks import adversary, architectures
from training.recipes import debug


def test_the_search_trains_and_measures_every_candidate(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tiny = debug().student
    monkeypatch.setattr(
        architectures, "CANDIDATES", {"tiny": tiny, "group norm": replace(tiny, norm="group", norm_groups=2)}
    )
    for name, value in (("_NUM_FRAMES", 2), ("_HR_SIZE", 64), ("_SPEED_SIZE", 64)):
        monkeypatch.setattr(architectures, name, value)
    arguments = ["--data", str(folder), "--out", str(tmp_path), "--steps", "3", "--only", "tiny", "group norm"]
    assert architectures.main(arguments) == 0
    first = capsys.readouterr().out
    for line in ("| tiny | 0.0", "| group norm | 0.0", "| bicubic |  |"):
        assert line in first, first
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("student.safetensors")}
    assert len(made) == 2
    assert architectures.main(arguments) == 0  # measures again and trains nothing
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_the_adversarial_variants_run_and_are_tabled_by_seed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(adversary, "SMALL", [*adversary.SMALL, "stage0.steps=1", "stage.batch=1", "data.workers=0"])
    monkeypatch.setattr(adversary, "_NUM_CLIPS", 2)
    monkeypatch.setattr(adversary, "make_distance", lambda name, data: lambda a, b: (a - b).abs().mean((1, 2, 3)))
    save_student(Student(debug().student), tmp_path / "start.safetensors")
    arguments = ["--data", str(folder), "--out", str(tmp_path / "runs"), "--init", str(tmp_path / "start.safetensors")]
    variants = ["no adversary", "dual head, pixels only", adversary.NO_TIME]
    torch.manual_seed(0)
    assert adversary.main([*arguments, "--steps", "2", "--seeds", "0", "1", "--only", *variants]) == 0
    told = capsys.readouterr().out
    rows = [line for line in told.splitlines() if line.startswith("| ") and "y_psnr" not in line]
    assert [row.split(" | ")[0] for row in rows] == ["| bicubic", "| the start", *(f"| {each}" for each in variants)]
    assert all(("±" in row) == (row.split(" | ")[0].removeprefix("| ") in variants) for row in rows), told
    assert (tmp_path / "runs" / "strips.png").exists() and (tmp_path / "runs" / "curves.png").exists()
