"""Layouts of test sets: which files belong together, and what is refused."""

from pathlib import Path

import pytest
import torch

from adcvsr_core.errors import InputError
from tests import evaluation_clips
from tests.evaluation_clips import HR, LR, make_dove, save, write_film, write_pictures
from training import evaluate, measures
from training.clip_run import BICUBIC, EvaluationConfig
from training.testsets import open_testsets

SETTING = measures.Setting(features=Path("nowhere"), device=torch.device("cpu"))
LAYOUTS = [make for name, make in vars(evaluation_clips).items() if name.startswith("make_")]


def found_in(folder: Path) -> list[tuple[str, str, int, bool]]:
    return [(pair.group, pair.name, pair.scale, pair.hr is not None) for pair in open_testsets(folder)]


@pytest.mark.parametrize("make", LAYOUTS)
def test_published_layouts_are_understood_and_measured(make, tmp_path: Path) -> None:
    expected = make(tmp_path)
    assert found_in(tmp_path) == expected
    steps = measures.make_steps(["y_psnr", "motion_energy_lr"], SETTING)
    clips = evaluate.evaluate(None, open_testsets(tmp_path), steps, EvaluationConfig(), SETTING)["clips"]
    for group, name, _, has_truth in expected:
        assert ("y_psnr" in clips[group][name][BICUBIC]) == has_truth


def test_nothing_known_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        open_testsets(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no clips"):
        open_testsets(tmp_path)


def test_clips_without_a_partner_are_named(tmp_path: Path) -> None:
    make_dove(tmp_path)
    write_pictures(tmp_path / "UDM10" / "LQ" / "extra", LR)
    with pytest.raises(InputError, match=r"1 in .*LQ have no partner \(extra\)"):
        open_testsets(tmp_path)


def test_two_files_for_one_clip_are_refused(tmp_path: Path) -> None:
    write_film(tmp_path / "clip.mkv", LR)
    save(tmp_path / "clip.png", LR[0])
    with pytest.raises(InputError, match="one name for two clips"):
        open_testsets(tmp_path)


def test_sizes_that_do_not_fit_are_told_and_not_cropped(tmp_path: Path) -> None:
    write_pictures(tmp_path / "GT" / "a", HR[:, :62, :94])
    write_pictures(tmp_path / "LQ" / "a", LR)
    with pytest.raises(InputError, match=r"a: the LR frames are 24x16 and the ground truth is 94x62"):
        open_testsets(tmp_path)


@pytest.mark.parametrize("write", [write_pictures, lambda path, frames: write_film(path.with_suffix(".mkv"), frames)])
def test_lengths_that_differ_are_told(write, tmp_path: Path) -> None:
    write(tmp_path / "GT" / "a", HR)
    write(tmp_path / "LQ" / "a", LR[:2])
    pairs = open_testsets(tmp_path)
    with pytest.raises(InputError, match="/a: the LR clip has 2 frames and the ground truth has 3"):
        evaluate.evaluate(None, pairs, {}, EvaluationConfig(), SETTING)
    evaluate.evaluate(None, pairs, {}, EvaluationConfig(frames=2), SETTING)
