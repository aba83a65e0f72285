"""The quality benchmark: its clips, its store, its averages, its reader, and one run at small size."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adcvsr_core.checkpoint import save_student
from adcvsr_core.student import Student
from benchmarks import quality, quality_methods, quality_sheet
from benchmarks.quality_clips import QualityClip, text_clip
from benchmarks.quality_text import accuracy, edit_distance
from tests.test_judge import published_layout
from tests.test_peers import write_network
from training import niqe
from training.flow import inside, warp
from training.judge import FILE
from training.measures import MEASURES, Setting, make_steps
from training.validation import bicubic_frames, strip

words = st.text("abcd", max_size=6)


@given(words, words, words)
def test_edit_distance_is_a_distance(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) <= max(len(a), len(b))
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert edit_distance(a, a + "x") == 1


def test_the_text_moves_as_its_flow_says() -> None:
    clip = text_clip()
    planar = clip.hr.permute(0, 3, 1, 2)
    flow = clip.flow.permute(0, 3, 1, 2)

    def error(offset: float) -> float:
        """How far the next frame, fetched along the flow and a wrong step to the side, is from this one."""
        moved = flow + torch.tensor([offset, 0.0])[:, None, None]
        return float(((warp(planar[1:], moved, "bicubic") - planar[:-1]).abs() * inside(moved)).mean())

    assert error(0.0) < min(error(0.25), error(-0.25)) and error(0.0) < 0.5 * error(0.75)


def test_every_line_of_text_is_inside_its_box() -> None:
    clip = text_clip()
    assert len(clip.lines) == 5
    for line in clip.lines:
        for t in (0, len(clip.hr) - 1):
            left, top, right, bottom = line.boxes[t]
            inner = clip.hr[t, top:bottom, left:right]
            assert inner.std() > 0.15, line.text  # ink and paper
            if right < clip.hr.shape[2]:
                assert clip.hr[t, top:bottom, right:].std(1).max() < 0.01, line.text  # nothing to its right


def test_accuracy_counts_characters() -> None:
    clip = text_clip()
    answers = iter([line.text for line in clip.lines] * 4)
    assert accuracy(clip.hr, clip.lines, lambda picture: next(answers)) == 1
    assert accuracy(clip.hr, clip.lines, lambda picture: "") == 0
    assert 0 < accuracy(clip.hr, clip.lines, lambda picture: clip.lines[0].text) < 1


def test_means_are_over_sources_not_clips() -> None:
    clips = {
        "one": ("many", {"m": {"y_psnr": 10.0}}),
        "two": ("many", {"m": {"y_psnr": 20.0}}),
        "three": ("single", {"m": {"y_psnr": 40.0, "crawl": 0.5}}),
        "four": ("left out", {"m": {"y_psnr": 99.0}}),
    }
    assert quality.over_sources(clips, {"many", "single"}) == {"m": {"y_psnr": 27.5, "crawl": 0.5}}


def test_what_is_kept_is_found_again_and_nothing_else(tmp_path: Path) -> None:
    calls = []

    def method(lr: torch.Tensor) -> torch.Tensor:
        calls.append(lr)
        return bicubic_frames(lr)

    kept = quality_methods._kept(method, tmp_path, "weights")
    lr = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3))).float() / 255
    first, again = kept(lr), kept(lr)
    assert len(calls) == 1 and torch.equal(first, again)
    kept(lr.flip(0))
    quality_methods._kept(method, tmp_path, "other weights")(lr)
    assert len(calls) == 3


def test_a_model_can_be_run_with_more_of_its_detail(tmp_path: Path, tiny_config) -> None:
    file = tmp_path / "a@b.safetensors"
    save_student(Student(dataclasses.replace(tiny_config, residual="bicubic")), file)
    methods = quality_methods.make_methods(tmp_path, {"as it is": str(file), "more": f"{file}@1.5"}, None, [])
    lr = torch.from_numpy(np.random.default_rng(0).random((2, 16, 16, 3), np.float32)) * 0.2 + 0.4
    base = bicubic_frames(lr)
    for time in ("", quality_methods.WITHOUT_TIME):
        added, more = (methods[name + time](lr) - base for name in ("as it is", "more"))
        assert 1.1 < more.std() / added.std() < 1.6, "coarse differences stay"


def test_crawl_tells_sticking_detail_from_boiling_detail() -> None:
    setting = Setting(features=Path(), device=torch.device("cpu"))
    bench = quality.Bench(steps=make_steps(["crawl"], setting), setting=setting, read=None, out=Path())
    generator = torch.Generator().manual_seed(0)
    paper = torch.rand(64, 80, 3, generator=generator)
    sticking = torch.stack([paper[:, 2 * t : 2 * t + 64] for t in range(4)])
    boiling = torch.rand(4, 64, 64, 3, generator=generator)
    flow = torch.tensor([-2.0, 0.0]).expand(3, 64, 64, 2)
    clip = QualityClip("s", "n", sticking, flow)
    made = {"sticking": sticking, "boiling": boiling, "weaker": 0.5 + 0.1 * (boiling - 0.5)}
    scores = quality.measure_clip(clip, made, sticking, bench)
    assert scores["sticking"]["crawl"] < 0.01
    assert scores["boiling"]["crawl"] == pytest.approx(1, abs=0.05)
    assert scores["weaker"]["crawl"] == pytest.approx(scores["boiling"]["crawl"], abs=1e-6)


def test_one_run_at_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config, capsys) -> None:
    """Everything but the real weights and clips: two conditions, three peers, a model with and without time."""
    (tmp_path / "features").mkdir()
    (tmp_path / "peers").mkdir()
    torch.save(published_layout(), tmp_path / "features" / FILE)
    np.savez(tmp_path / "features" / niqe.FILE, mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36))
    for seed, stem in enumerate(quality_methods.PEERS.values()):
        write_network(tmp_path / "peers" / f"{stem}.param", seed)
    save_student(Student(tiny_config), tmp_path / "model.safetensors")
    text = text_clip()
    clips = [
        dataclasses.replace(text, hr=text.hr[:, :64, :64], flow=text.flow[:, :64, :64], lines=()),
        QualityClip("film", "film bird", text.hr[:, 64:128, :64]),
    ]
    monkeypatch.setattr(quality, "quality_clips", lambda data: clips)
    monkeypatch.setattr(quality, "METRICS", tuple(name for name in quality.METRICS if name != "stlpips_vgg"))
    monkeypatch.setattr(quality, "_SPEED_SIZE", 32)
    monkeypatch.setattr(quality, "temporal_gain", lambda clips, model: {"flicker": {"mean": 0.1, "half": 0.2}})
    out = tmp_path / "out"
    arguments = ["--data", str(tmp_path), "--out", str(out), "--model", f"ours={tmp_path / 'model.safetensors'}"]
    assert quality.main([*arguments, "--conditions", "clean", "noise10"]) == 0
    result = json.loads((out / "quality.json").read_text())
    assert set(result["means"]) == {"clean", "noise10"} and len(list((out / "strips").glob("*.png"))) == 4
    table = result["means"]["noise10"]["film"]
    assert set(table) == {
        "bicubic", "lanczos", *quality_methods.PEERS, "ours", "ours, without time", "ground_truth",
    }  # fmt: skip
    assert table["bicubic"]["high_pass"] < 1 and table["bicubic"]["y_psnr"] > table["x4plus"]["y_psnr"]
    assert set(result["seconds_a_frame"]) == set(table) - {"ground_truth"}
    assert MEASURES["judge"].title in capsys.readouterr().out
    assert quality.main([*arguments, "--conditions", "clean", "--peers", "animevideov3", "--no-speed"]) == 0
    named = json.loads((out / "quality.json").read_text())["means"]["clean"]["film"]
    assert set(table) - set(named) == {"x4plus", "realsr-df2k"}


def test_a_missing_file_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert quality.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "prepare_b" in told


def test_the_sheet_takes_its_crops_from_the_strips(tmp_path: Path) -> None:
    """Every column of a strip has a grey level of its own, and each ends up under its name."""
    strips = tmp_path / "strips"
    strips.mkdir()
    levels = [20 * (index + 1) for index in range(len(quality_sheet.COLUMNS))]
    columns = [torch.full((256, 256, 3), level / 255) for level in levels]
    Image.fromarray(strip(columns)).save(strips / f"{next(iter(quality_sheet.ROWS))}.png")
    assert quality_sheet.main([str(tmp_path), "--out", str(tmp_path / "sheet.png")]) == 0
    row = np.asarray(Image.open(tmp_path / "sheet.png"))[-64]
    shown = [level for level, name in zip(levels, quality_sheet.COLUMNS, strict=True) if name]
    assert [int(row[131 * index + 64, 0]) for index in range(len(shown))] == shown
    assert quality_sheet.main([str(tmp_path / "nothing"), "--out", str(tmp_path / "no.png")]) == 1
