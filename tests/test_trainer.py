"""Laws of a training run: what moves, what is skipped, what is kept, and that a resumed run is the same run."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from adcvsr_core.checkpoint import load_student
from adcvsr_core.config import PRESETS
from adcvsr_core.errors import CheckpointError, ConfigError
from adcvsr_core.lora import merge_lora, read_lora
from adcvsr_core.student import Student
from tests.training_material import make_footage
from training import export, train
from training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from training.config import TrainConfig
from training.overrides import override
from training.recipes import debug
from training.sampling import Batches
from training.trainer import Trainer, TrainingError

SHORT = ["stage.steps=2"]  # eight steps in four stages


def run(config: TrainConfig, output: Path, folder: Path, stop_after: int | None = None, **options) -> list[dict]:
    """Train, stopping like a signal does after `stop_after` steps; returns this run's lines."""
    trainer = Trainer(config, output, folder, **options)
    lines = []

    def on_step(line: dict) -> None:
        lines.append(line)
        if len(lines) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.run(on_step)
    return lines


def log_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses_of(lines: list[dict]) -> list[float]:
    """The losses of student and discriminators, step by step."""
    return [line[name] for line in lines for name in ("loss", "adversary_loss") if name in line]


def test_debug_runs_every_stage_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert train.main(["--recipe", "debug", "--output", str(output), "--data", str(folder)]) == 0
    lines = log_of(output)
    assert [line["step"] for line in lines] == list(range(19))
    assert [line["stage"] for line in lines] == ["frames"] * 6 + ["clips"] * 6 + ["features"] * 3 + ["adversarial"] * 4
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert {line["strength"] for line in lines[:6]} == {0.0} and {line["strength"] for line in lines[6:12]} == {
        0.0,
        1.0,
    }
    assert "frame_difference" in lines[6] and "flow" in lines[6] and "frame_difference" not in lines[0]
    first, *rest = lines[15:]
    assert "adversarial_pixel" not in first and first["adversary_loss"] > 0, "the student listened before its time"
    assert all({"adversarial_pixel", "adversarial_feature", "feature"} <= line.keys() for line in rest)
    kinds = ("student", "real", "shuffled", "still", "stacked")
    assert {f"logit_{d}_{k}_{h}" for d in ("pixel", "feature") for k in kinds for h in ("detail", "consistency")} <= (
        first.keys()
    )
    assert 0 < rest[-1]["strength"] < 1, "no step drew a strength"
    assert load_student(output / "student.safetensors").config == debug().student
    assert [p.name for p in list_checkpoints(output / "checkpoints")] == ["step-00000016", "step-00000019"]
    assert {p.suffix for p in (output / "validation").iterdir()} == {".png", ".mp4", ".jsonl"}
    assert (output / "validation" / "step-00000000.png").exists(), "no look before the first step"
    assert train.main(["--recipe", "debug", "--output", str(output), "--data", str(folder)]) == 1, "ran over a run"


def test_each_stage_moves_what_it_trains_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    trainer = Trainer(debug(), tmp_path / "run", folder)
    before: dict[str, torch.Tensor] = {}

    def moved() -> set[str]:
        now = {name: p.detach().clone() for name, p in trainer.student.named_parameters()}
        changed = {name for name in now if before and not torch.equal(now[name], before[name])}
        before.update(now)
        return changed

    moved()
    by_stage: dict[str, set[str]] = {}

    def on_step(line: dict) -> None:
        by_stage.setdefault(line["stage"], set()).update(moved())

    trainer.run(on_step)
    assert by_stage["frames"] and not any("temporal" in name for name in by_stage["frames"])
    assert any("temporal" in name for name in by_stage["clips"])
    assert by_stage["features"] == set()
    assert by_stage["adversarial"]


def test_discriminators_learn_and_their_backbones_do_not(folder: Path, tmp_path: Path) -> None:
    trainer = Trainer(debug(), tmp_path / "run", folder)
    seen: list[dict[str, torch.Tensor]] = []

    def on_step(line: dict) -> None:
        if line["stage"] == "adversarial":
            adversary = trainer.objective.adversary
            seen.append({name: value.clone() for name, value in adversary.state_dict().items()})

    trainer.run(on_step)
    trained = {name for name, p in trainer.objective.adversary.named_parameters() if p.requires_grad}
    changed = {name for name in seen[0] if not torch.equal(seen[0][name], seen[-1][name])}
    assert changed and changed <= trained
    assert {name.split(".")[1] for name in changed} == {"pixel", "feature"}


@pytest.mark.parametrize("stop_after", [4, 12, 14, 17])
def test_resumed_run_gives_the_same_losses(
    folder: Path, tmp_path: Path, whole_run: list[float], stop_after: int
) -> None:
    output = tmp_path / "pieces"
    run(debug(), output, folder, stop_after=stop_after)
    with (output / "metrics.jsonl").open("a") as log:  # what a kill -9 leaves: lines after the checkpoint, one torn
        log.write('{"step": 98, "loss": 123}\n{"step": 99, "lo')
    run(debug(), output, folder, resume=True)
    assert losses_of(log_of(output)) == whole_run


@pytest.fixture(scope="module")
def whole_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of an uninterrupted debug run."""
    output = tmp_path_factory.mktemp("whole")
    run(debug(), output, folder)
    return losses_of(log_of(output))


def test_killed_run_goes_on_with_the_same_losses(folder: Path, tmp_path: Path, whole_run: list[float]) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-m", "training.train", "--recipe", "debug", "--output", str(output)]
    command += ["--data", str(folder), "--set", "checkpoint_every=2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(_lines(output)) < 9:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 9 <= len(_lines(output)) < 19, "killed too early or too late to show anything"
    run(override(debug(), ["checkpoint_every=2"]), output, folder, resume=True)
    assert losses_of(log_of(output)) == pytest.approx(whole_run, rel=1e-6)


def _lines(output: Path) -> list[str]:
    path = output / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_micro_batches_change_nothing(folder: Path, tmp_path: Path) -> None:
    config = override(debug(), [*SHORT, "stage.batch=2", "data.video_share=0"])
    whole = run(config, tmp_path / "whole", folder)
    pieces = run(override(config, ["micro_batch=1"]), tmp_path / "pieces", folder)
    assert losses_of(pieces) == pytest.approx(losses_of(whole), rel=1e-5)


def test_recomputed_activations_change_nothing(folder: Path, tmp_path: Path) -> None:
    config = override(debug(), SHORT)
    kept = run(config, tmp_path / "kept", folder)
    again = run(override(config, ["checkpoint_activations=true"]), tmp_path / "again", folder)
    assert losses_of(again) == pytest.approx(losses_of(kept), rel=1e-6)
    weights = [load_student(tmp_path / name / "student.safetensors").state_dict() for name in ("kept", "again")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-6) for key in weights[0])


def test_other_settings_are_not_resumed(folder: Path, tmp_path: Path) -> None:
    run(debug(), tmp_path / "run", folder, stop_after=2)
    with pytest.raises(ConfigError, match="another configuration"):
        Trainer(override(debug(), ["stage.learning_rate=0.1"]), tmp_path / "run", folder, resume=True)
    with pytest.raises(ConfigError, match="already holds a run"):
        Trainer(debug(), tmp_path / "run", folder)
    with pytest.raises(CheckpointError, match="no checkpoint to resume"):
        Trainer(debug(), tmp_path / "elsewhere", folder, resume=True)
    Trainer(override(debug(), ["validate_every=3", "data.workers=1"]), tmp_path / "run", folder, resume=True)


def test_truncated_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    run(debug(), tmp_path / "run", folder, stop_after=5)
    state = list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or was changed"):
        Trainer(debug(), tmp_path / "run", folder, resume=True)


def test_tampered_and_unfinished_checkpoints_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"x": torch.arange(100)}, keep=2)
    state = bytearray((path / "state.pt").read_bytes())
    state[len(state) // 2] ^= 1
    (path / "state.pt").write_bytes(state)
    with pytest.raises(CheckpointError, match="changed"):
        load_checkpoint(path)
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_killed_while_written_does_not_count(tmp_path: Path) -> None:
    good = save_checkpoint(tmp_path, 1, {"x": torch.ones(3)}, keep=2)
    (tmp_path / "step-00000002.tmp").mkdir()
    assert list_checkpoints(tmp_path) == [good]
    for step in (2, 3, 4):
        save_checkpoint(tmp_path, step, {"x": torch.ones(3)}, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]


def poison(monkeypatch: pytest.MonkeyPatch, when) -> None:
    """Let the HR clips of chosen (stage, step) be NaN."""
    draw = Batches.__getitem__

    def poisoned(self: Batches, index: int) -> dict:
        batch = draw(self, index)
        step = index // (len(self) // self.stage.steps)
        return batch | {"hr": batch["hr"] * math.nan} if when(self.stage.name, step) else batch

    monkeypatch.setattr(Batches, "__getitem__", poisoned)


@pytest.mark.parametrize(("stage", "step", "number"), [("frames", 2, 2), ("adversarial", 2, 17)])
def test_nan_batch_is_skipped_and_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int, number: int
) -> None:
    poison(monkeypatch, lambda name, at: (name, at) == (stage, step))
    lines = run(debug(), tmp_path / "run", folder)
    skipped = [line for line in log_of(tmp_path / "run") if "skipped" in line]
    assert [line["step"] for line in skipped] == [number] and f"stage {stage}, step {step}" in skipped[0]["skipped"]
    assert math.isfinite(lines[-1]["loss"])
    load_student(tmp_path / "run" / "student.safetensors")  # refuses weights that are not finite


def test_a_run_of_nothing_but_nan_gives_up(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, lambda name, at: True)
    with pytest.raises(TrainingError, match="3 steps in a row"):
        run(override(debug(), ["max_skipped=3"]), tmp_path / "run", folder)


def test_a_silent_run_is_stopped(folder: Path, tmp_path: Path) -> None:
    settings = ["stage.learning_rate=0", "stage.temporal_learning_rate=0", "dead_after=4", "dead_ratio=0.9"]
    with pytest.raises(TrainingError, match="learned to add nothing"):
        run(override(debug(), settings), tmp_path / "run", folder)


def test_training_lowers_the_loss(folder: Path, tmp_path: Path) -> None:
    config = override(debug(), ["stage0.steps=40", "stage0.learning_rate=0.004", 'stage0.mixture=[["clean", 1.0]]'])
    config = train.shorten(config, 40)
    ratios = [line["ratio"] for line in run(config, tmp_path / "run", folder)]
    assert np.mean(ratios[-10:]) < 0.99 < np.mean(ratios[:5])


def test_init_continues_from_weights(folder: Path, tmp_path: Path) -> None:
    run(train.shorten(debug(), 6), tmp_path / "first", folder)
    path = tmp_path / "first" / "student.safetensors"
    trainer = Trainer(debug(), tmp_path / "second", folder, init=export.read_weights(path, debug().student))
    assert torch.equal(trainer.student.decoder.conv_out.weight, load_student(path).decoder.conv_out.weight)
    with pytest.raises(ConfigError, match="another shape"):
        export.read_weights(path, PRESETS["default"])


def test_adapters_end_as_a_small_file_that_gives_the_same_student(folder: Path, tmp_path: Path) -> None:
    run(train.shorten(debug(), 3), tmp_path / "base", folder)
    base = tmp_path / "base" / "student.safetensors"
    command = ["--recipe", "finetune_lora", "--init", str(base), "--data", str(folder), "--max-steps", "3"]
    command += ["--output", str(tmp_path / "run"), "--set", "stage.lr_size=16", "--set", "data.workers=0"]
    command += ["--set", "stage.learning_rate=0.01", "--set", "stage.warmup=0"]
    assert train.main([*command, "--set", "stage.batch=1", "--set", "lora.rank=2"]) == 0
    merged = load_student(tmp_path / "run" / "student.safetensors")
    plain = load_student(base)
    lr = torch.rand(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert (merged(lr) - plain(lr)).abs().max() > 1e-5, "nothing was learned"
        merge_lora(plain, read_lora(tmp_path / "run" / "lora.safetensors"), 1.0)
        assert (merged(lr) - plain(lr)).abs().max() < 1e-5
    assert (tmp_path / "run" / "lora.safetensors").stat().st_size < base.stat().st_size


def test_damage_by_name_makes_the_mixture(tmp_path: Path) -> None:
    words = ["--recipe", "debug", "--output", str(tmp_path), "--damage", "film", "aigen"]
    config, _ = train._configure(train._parser().parse_args(words))
    assert all(dict(stage.mixture) == {"clean": 0.4, "film": 0.3, "aigen": 0.3} for stage in config.stages)


def test_a_run_says_when_its_start_was_better(tmp_path: Path) -> None:
    (tmp_path / "validation").mkdir()
    log = tmp_path / "validation" / "metrics.jsonl"
    for last, worse in (
        ({"gain_clean_db": 1.0, "gain_h264_db": 0.3}, True),
        ({"gain_clean_db": 1.0, "gain_h264_db": 0.5}, False),
    ):
        lines = [{"step": 0, "gain_clean_db": 1.2, "gain_h264_db": 0.4}, {"step": 9, **last}]
        log.write_text("\n".join(json.dumps(line) for line in lines))
        report = train.held_out_report(tmp_path)
        assert "clean +1.20 -> +1.00, h264 +0.40 ->" in report[0] and (len(report) == 2) == worse


def test_one_command_fine_tunes_on_a_folder_and_beats_its_start(folder: Path, tmp_path: Path, capsys) -> None:
    run(train.shorten(debug(), 3), tmp_path / "start", folder)
    clips = tmp_path / "clips"
    clips.mkdir()
    make_footage(clips)  # one shot, three shots, a broken file
    command = ["--recipe", "finetune_full", "--init", str(tmp_path / "start" / "student.safetensors")]
    command += ["--data", str(clips), "--output", str(tmp_path / "run"), "--max-steps", "60"]
    settings = ["stage.lr_size=16", "stage.batch=2", "stage.num_frames=3", "data.workers=0", "precision=fp32"]
    settings += ["stage.learning_rate=0.004", 'stage.mixture=[["clean",1.0]]', "stage.warmup=0", "ema_decay=0.9"]
    assert train.main([*command, *(word for setting in settings for word in ("--set", setting))]) == 0
    told = capsys.readouterr()
    assert "left out" in told.err, "the broken file was not named"
    assert "held-out clips, dB over bicubic: clean" in told.out and "became worse" not in told.out
    gains = [json.loads(line) for line in (tmp_path / "run" / "validation" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in gains] == [0, 60]
    assert gains[1]["gain_clean_db"] > gains[0]["gain_clean_db"] + 0.1, "on shots that it never saw"


def test_a_recipe_that_goes_on_asks_for_a_model(folder: Path, tmp_path: Path, capsys) -> None:
    command = ["--recipe", "finetune_full", "--data", str(folder), "--output", str(tmp_path / "run")]
    assert train.main(command) == 1
    assert "--init" in capsys.readouterr().err


def test_dry_run_says_what_a_run_needs_and_leaves_nothing(folder: Path, tmp_path: Path, capsys) -> None:
    command = ["--recipe", "debug", "--output", str(tmp_path / "run"), "--data", str(folder), "--dry-run"]
    assert train.main(command) == 0
    text = capsys.readouterr().out
    assert all(f"{name}: " in text for name in ("frames", "clips", "features", "adversarial")) and "s a step" in text
    assert not (tmp_path / "run").exists()


def test_students_of_different_shapes_have_no_mean(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(export, "_newest", lambda folder: (Student(PRESETS[folder.name]), {}))
    out = tmp_path / "mean.safetensors"
    assert export.main(["default", "nano", "--out", str(out)]) == 1 and not out.exists()
    assert "default, nano hold students of different shapes" in capsys.readouterr().err


def test_export_of_an_unfinished_run(folder: Path, tmp_path: Path) -> None:
    run(debug(), tmp_path / "run", folder, stop_after=5)
    out = tmp_path / "model.safetensors"
    assert export.main([str(tmp_path / "run"), "--out", str(out), "--dtype", "float16"]) == 0
    assert load_student(out).config == debug().student
    assert export.main([str(tmp_path), "--out", str(out)]) == 1


@pytest.mark.parametrize("name", ["default", "nano"])
def test_fresh_students_begin_near_bicubic(name: str) -> None:
    torch.manual_seed(0)
    student = Student(PRESETS[name])
    lr = torch.rand(1, 1, 3, 32, 32) * 2 - 1
    bicubic = torch.nn.functional.interpolate(lr[0], scale_factor=4, mode="bicubic")
    with torch.no_grad():
        difference = (student(lr)[0] - bicubic).abs().mean()
    assert 1e-5 < difference < 0.05, "a silent or a loud start"


def test_ctrl_c_reaches_the_workers_too_and_still_saves(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-m", "training.train", "--recipe", "debug", "--output", str(output)]
    command += ["--data", str(folder), "--set", "data.workers=2", "--set", "stage0.steps=400"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(_lines(output)) < 5:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    assert process.wait(60) == 3
    newest = list_checkpoints(output / "checkpoints")[-1]
    assert load_checkpoint(newest)["step"] == len(_lines(output))
