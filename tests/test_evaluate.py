"""The evaluation: what is compared with what, laws of the metrics, optional packages, and the command."""

import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from adcvsr_core import metrics
from adcvsr_core.checkpoint import save_student
from adcvsr_core.config import UpscaleConfig
from adcvsr_core.engine import upscale
from adcvsr_core.errors import ConfigError, InputError
from adcvsr_core.lora import Lora, fingerprint, save_lora
from adcvsr_core.student import Student
from tests.evaluation_clips import HR, LR, make_crops, make_dove, make_realsr, moving, small, softened
from tests.training_material import make_prepared_folder
from training import evaluate, flow, measures, optional_measures, testsets
from training.clip_run import BICUBIC, MODEL, TRUTH, WITHOUT_TIME, ClipRun, EvaluationConfig
from training.testsets import ClipPair, open_testsets

SETTING = measures.Setting(features=Path("nowhere"), device=torch.device("cpu"))
QUICK = ["y_psnr", "rgb_psnr", "ssim", "flicker", "shimmer", "motion_energy", "high_pass"]


def scores_of(pair: ClipPair, names: list[str], student: Student | None = None, **settings) -> dict:
    """Measure one clip: {method: scores}."""
    steps = measures.make_steps(names, SETTING)
    result = evaluate.evaluate(student, [pair], steps, EvaluationConfig(**settings), SETTING)
    return result["clips"][pair.group][pair.name]


# What is compared with what


def test_a_student_runs_as_in_the_engine_and_is_rounded_as_files_are(student: Student) -> None:
    pair = ClipPair(group="g", name="n", lr=LR, hr=HR)
    shown = list(ClipRun(pair, student, EvaluationConfig(without_time=True), SETTING).shown())
    for method, strength in ((MODEL, 1.0), (WITHOUT_TIME, 0.0)):
        expected = torch.cat(list(upscale([LR], student, UpscaleConfig(temporal_strength=strength))))
        found = torch.stack([frame[method].sr for frame in shown])
        assert torch.equal((expected * 255).round(), (found * 255).round())
        assert torch.equal(found, (found * 255).round() / 255)
    assert torch.equal(torch.stack([frame[TRUTH].sr for frame in shown]), HR)
    assert [len(frame[MODEL].past) for frame in shown] == [0, 1, 2]
    assert torch.equal(shown[2][MODEL].past[1], shown[0][MODEL].sr)


@pytest.mark.parametrize(("feeding", "work_size"), [("downscale", 0), ("full", 64)])
def test_sets_of_equal_size_are_fed_as_asked(feeding: str, work_size: int, student: Student) -> None:
    soft = softened(HR)
    pair = ClipPair(group="g", name="n", lr=soft, hr=HR)
    assert pair.scale == 1
    shown = list(ClipRun(pair, student, EvaluationConfig(feeding=feeding), SETTING).shown())
    expected = torch.cat(list(upscale([soft], student, UpscaleConfig(scale=1.0, work_size=work_size))))
    assert torch.equal(torch.stack([frame[MODEL].sr for frame in shown]), (expected * 255).round() / 255)
    assert all(torch.equal(frame[BICUBIC].sr, lr) for frame, lr in zip(shown, soft, strict=True))


@pytest.mark.parametrize("scale", [4, 1])
def test_a_crop_shows_the_same_place_in_both(scale: int) -> None:
    hr, motion = moving(2, 96, 128), torch.rand(1, 96, 128, 2)
    lr = small(hr) if scale == 4 else hr
    pair = ClipPair(group="g", name="n", lr=lr, hr=hr, flow=motion)
    frame = list(ClipRun(pair, None, EvaluationConfig(crop=32), SETTING).shown())[1][BICUBIC]
    assert torch.equal(frame.moment.reference, hr[1, 32:64, 48:80])
    assert torch.equal(frame.moment.lr, lr[1, 32 // scale : 64 // scale, 48 // scale : 80 // scale])
    assert torch.equal(frame.moment.motion, motion[0, 32:64, 48:80])
    with pytest.raises(InputError, match=r"512x512 does not fit into results of 128x96"):
        ClipRun(pair, None, EvaluationConfig(crop=512), SETTING)


@pytest.mark.parametrize(("settings", "message"), [({"crop": 30}, "30"), ({"feeding": "x"}, "downscale, full")])
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig(**settings)


# Laws of the metrics


def test_frame_by_frame_sums_equal_the_metrics_of_whole_clips() -> None:
    pair = ClipPair(group="g", name="n", lr=small(moving(5)), hr=moving(5), flow=torch.full((4, 64, 96, 2), -0.5))
    sr = torch.stack([frame[BICUBIC].sr for frame in ClipRun(pair, None, EvaluationConfig(), SETTING).shown()])
    scores = scores_of(pair, [*QUICK, "warping_error"])[BICUBIC]
    expected = {
        "y_psnr": metrics.psnr(sr, pair.hr).mean(),
        "ssim": metrics.ssim(sr, pair.hr).mean(),
        "flicker": metrics.flicker(sr, pair.hr),
        "shimmer": metrics.shimmer(sr),
        "motion_energy": metrics.motion_energy_ratio(sr, pair.hr),
        "warping_error": metrics.warping_error(sr, pair.flow),
    }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(float(value), rel=1e-6), name


def test_rgb_psnr_of_a_known_error() -> None:
    hr = torch.rand(1, 8, 8, 3) * 0.5
    assert measures.rgb_psnr(hr + 0.1, hr).item() == pytest.approx(20, abs=1e-4)


def test_the_truth_is_measured_only_where_that_says_something() -> None:
    scores = scores_of(ClipPair(group="g", name="n", lr=LR, hr=HR), QUICK)
    assert set(scores[TRUTH]) == {"shimmer"} and set(scores[BICUBIC]) == set(QUICK)


def test_stillness_cannot_win() -> None:
    """A frozen clip: no motion energy, and by the reference's motion a larger warping error than the moving one."""
    pytest.importorskip("cv2", reason="opencv is optional")
    hr = moving(4, 128, 128, step=4)
    names = ["motion_energy", "ewarp"]
    frozen = scores_of(ClipPair(group="g", name="n", lr=small(hr[:1].expand(4, -1, -1, -1)), hr=hr), names)
    live = scores_of(ClipPair(group="g", name="n", lr=small(hr), hr=hr), names)
    assert frozen[BICUBIC]["motion_energy"] == 0
    assert 0.8 < live[BICUBIC]["motion_energy"] < 1.05
    assert frozen[BICUBIC]["ewarp"] > 5 * live[BICUBIC]["ewarp"]
    assert live[TRUTH]["ewarp"] == frozen[TRUTH]["ewarp"] > 0


def test_flow_never_comes_from_the_result_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(clip: Tensor, source: str) -> tuple[Tensor, Tensor]:
        seen.append(clip)
        return torch.zeros(1, 1, 2, *clip.shape[3:]), torch.ones(1, 1, 1, *clip.shape[3:])

    monkeypatch.setattr(measures, "estimate", spy)
    scores = scores_of(ClipPair(group="g", name="n", lr=LR, hr=HR), ["ewarp"])
    assert [clip.shape[3] for clip in seen] == [16, 64, 64]  # the probe, then one estimate a pair for all methods
    assert torch.allclose(seen[1][0] * 0.5 + 0.5, HR[:2].permute(0, 3, 1, 2))
    change = (HR[1:] - HR[:-1]).square().mean()
    assert scores[TRUTH]["ewarp"] == pytest.approx(1000 * change.item(), rel=1e-5)


def test_detail_and_its_lack_show_in_the_high_pass_energy() -> None:
    """An LR clip that is the truth itself has all of its energy, a softened one less, a noisy one more."""
    noisy = (HR + 0.05 * torch.randn(HR.shape)).clamp(0, 1)
    energy = {}
    for name, lr in (("same", HR), ("soft", softened(HR)), ("noisy", noisy)):
        energy[name] = scores_of(ClipPair(group="g", name="n", lr=lr, hr=HR), ["high_pass"])[BICUBIC]["high_pass"]
    assert energy["same"] == 1 and energy["soft"] < 0.9 and energy["noisy"] > 1.1


def test_without_ground_truth_the_reference_is_the_enlarged_lr_clip_under_another_name() -> None:
    scores = scores_of(ClipPair(group="g", name="n", lr=LR), [*QUICK, "motion_energy_lr", "high_pass_lr"])
    assert TRUTH not in scores
    assert scores[BICUBIC] == {"shimmer": scores[BICUBIC]["shimmer"], "motion_energy_lr": 1, "high_pass_lr": 1}


def test_single_pictures_have_no_metrics_of_time() -> None:
    scores = scores_of(ClipPair(group="g", name="n", lr=LR[:1], hr=HR[:1]), QUICK)
    assert set(scores[BICUBIC]) == {"y_psnr", "rgb_psnr", "ssim", "high_pass"}


def test_slow_networks_look_at_chosen_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    class Distance(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            looked.append(b)
            return (a - b).abs().mean((1, 2, 3))

    monkeypatch.setattr(measures, "make_distance", lambda name, folder: Distance())
    pair = ClipPair(group="g", name="n", lr=HR, hr=HR, perceptual=frozenset([1]))
    assert scores_of(pair, ["stlpips_vgg"])[BICUBIC]["stlpips_vgg"] == 0
    assert len(looked) == 1 and torch.allclose(looked[0][0], HR[1].permute(2, 0, 1) * 2 - 1)


def test_compatible_warping_error_is_the_published_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network that finds no motion: mean over pixels of the squared difference, summed over the channels."""
    fed = []

    def still(a: Tensor, b: Tensor, num_flow_updates: int) -> list[Tensor]:
        fed.append((a, num_flow_updates))
        return [torch.zeros(1, 2, *a.shape[2:])]

    monkeypatch.setattr(optional_measures, "load_raft", lambda name, device: still)
    between = optional_measures.compatible_warping_error(torch.device("cpu"))
    first = torch.rand(1, 3, 256, 268)
    assert between(first, first * 0 + 0.5) > 0
    assert fed[0][0].shape[2:] == (128, 136) and fed[0][0].max() < -0.99 and fed[0][1] == 20
    flat = torch.full((1, 3, 256, 256), 0.5)
    assert between(flat, flat + 0.1) == pytest.approx(1000 * 3 * 0.01, rel=1e-4)
    with pytest.raises(InputError, match="256x256 or more"):
        between(flat[..., :200], flat[..., :200])


# Optional packages


@pytest.mark.parametrize(
    ("name", "package", "message"),
    [
        ("musiq", "nothing", "add --download"),
        ("lpips_alex", "torchmetrics", "pip install torchmetrics"),
        ("ewarp_compat", "torchvision.models.optical_flow", "pip install torchvision"),
        ("ewarp", "cv2", "pip install opencv"),
        ("psnr", "nothing", "unknown metrics psnr; expected of y_psnr"),
    ],
)
def test_metrics_that_cannot_be_had_are_refused_by_name(
    name: str, package: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    flow._load_raft.cache_clear()
    with pytest.raises(ConfigError, match=message):
        measures.make_steps([name], SETTING)


def test_what_the_defaults_leave_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    steps, missing = measures.make_default_steps(SETTING)
    assert set(QUICK) <= set(steps)
    assert set(steps) | {line.split(":")[0] for line in missing} == set(measures.DEFAULT)
    assert {"stlpips_vgg", "lpips_alex", "dists"} <= {line.split(":")[0] for line in missing}


def test_pyiqa_is_asked_by_its_own_names_for_frames_in_0_to_1(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create_metric(name: str, device: torch.device):
        asked.append(name)
        return lambda frames: frames.mean((1, 2, 3))

    monkeypatch.setitem(sys.modules, "pyiqa", types.SimpleNamespace(create_metric=create_metric))
    allowed = measures.Setting(features=Path("x"), device=torch.device("cpu"), download=True)
    steps = measures.make_steps(["maniqa-pipal"], allowed)
    pair = ClipPair(group="g", name="n", lr=HR, hr=HR)
    result = evaluate.evaluate(None, [pair], steps, EvaluationConfig(), allowed)["means"]["g"]
    assert asked == ["maniqa-pipal"]
    assert result[BICUBIC]["maniqa-pipal"] == result[TRUTH]["maniqa-pipal"] == pytest.approx(HR.mean().item())


def test_fid_without_its_packages_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    make_crops(tmp_path)
    assert evaluate.main(["--model", "bicubic", "--data", str(tmp_path), "--metrics", "y_psnr", "fid"]) == 1
    assert "pip install torch-fidelity" in capsys.readouterr().err


# The command


@pytest.fixture(scope="module")
def model(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "student.safetensors"
    save_student(student, path)
    return path


def test_command_writes_numbers_whose_means_are_those_of_the_clips(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, out = tmp_path / "test", tmp_path / "out"
    make_dove(data)
    arguments = ["--model", str(model), "--data", str(data), "--out", str(out), "--save", "--frames", "3"]
    assert evaluate.main([*arguments, "--metrics", *QUICK, "motion_energy_lr"]) == 0
    result = json.loads((out / "evaluation.json").read_text())
    assert set(result["clips"]["UDM10"]) == {"a", "b"} and result["settings"]["frames"] == 3
    for group, clips in result["clips"].items():
        for method, row in result["means"][group].items():
            for name, value in row.items():
                assert value == pytest.approx(np.mean([scores[method][name] for scores in clips.values()]))
    assert set(result["means"]["UDM10"]) == {BICUBIC, MODEL, TRUTH}
    assert set(result["means"]["VideoLQ"][MODEL]) == {"shimmer", "motion_energy_lr"}
    assert Image.open(out / "UDM10-a.png").size == (4 * 96 + 3 * 4, 64)
    assert Image.open(out / "VideoLQ-7.png").size == (3 * 96 + 2 * 4, 64)
    printed = capsys.readouterr().out
    assert f"{result['means']['UDM10'][MODEL]['ssim']:.4f}" in printed and "Y-PSNR ↑" in printed


def test_a_lora_changes_the_model_as_strongly_as_told(model: Path, student: Student, tmp_path: Path) -> None:
    change = {"decoder.conv_out.weight.delta": torch.randn(student.decoder.conv_out.weight.shape)}
    own = {"rank": 1, "alpha": 1.0, "config": student.config, "base": fingerprint(student.state_dict())}
    save_lora(Lora(tensors=change, **own), tmp_path / "lora.safetensors")
    make_crops(tmp_path / "pairs")
    scores = {}
    for strength in ("", ":0", ":0.5"):
        lora = f"{tmp_path / 'lora.safetensors'}{strength}"
        arguments = ["--model", str(model), "--data", str(tmp_path / "pairs"), "--out", str(tmp_path), "--lora", lora]
        assert evaluate.main([*arguments, "--metrics", "y_psnr"]) == 0
        result = json.loads((tmp_path / "evaluation.json").read_text())
        assert result["settings"]["lora"] == [str(tmp_path / "lora.safetensors"), float(strength[1:] or 1)]
        scores[strength] = result["means"]["pairs"][MODEL]["y_psnr"]
    pair = open_testsets(tmp_path / "pairs")[0]
    plain = scores_of(pair, ["y_psnr"], student)[MODEL]["y_psnr"]
    assert scores[":0"] == pytest.approx(plain) and len(set(scores.values())) == 3


def test_equal_pictures_give_valid_json(tmp_path: Path) -> None:
    make_realsr(tmp_path / "pairs")
    arguments = ["--model", "bicubic", "--data", str(tmp_path / "pairs"), "--out", str(tmp_path)]
    assert evaluate.main([*arguments, "--metrics", "y_psnr", "ssim"]) == 0
    text = (tmp_path / "evaluation.json").read_text()
    scores = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["means"]["pairs"]
    assert scores[BICUBIC] == {"y_psnr": None, "ssim": pytest.approx(1)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save"], "--save needs --out"),
        (["--model", "nothing.safetensors"], "nothing.safetensors"),
        (["--model", "bicubic", "--lora", "x.safetensors:0.5"], "bicubic is none"),
        (["--metrics", "beauty"], "unknown metrics beauty"),
        (["--frames", "-1"], "frames is -1"),
    ],
)
def test_faults_are_told_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make_crops(tmp_path)
    assert evaluate.main(["--data", str(tmp_path), "--metrics", "y_psnr", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_held_out_clips_of_the_prepared_corpus(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    make_prepared_folder(folder)
    chosen = {"num_frames": 4, "size": 64, "film_corner": [8, 16], "film": {"x": 26}, "photograph_seed": 1}
    listed = {"photographs": ["c"], "evaluation": chosen | {"photograph_paths": {"c": 0}}}
    (tmp_path / "heldout.json").write_text(json.dumps(listed))
    monkeypatch.setattr(testsets, "HELD_OUT_FILE", tmp_path / "heldout.json")
    arguments = ["--model", str(model), "--data", str(folder), "--out", str(tmp_path)]
    assert evaluate.main([*arguments, "--metrics", "y_psnr", "flicker", "warping_error"]) == 0
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(result["clips"]) == list(testsets.HELD_OUT_KINDS)
    clips = result["clips"]["clean"]
    assert set(clips) == {"film x", "photograph c"} and set(clips["film x"]) == {BICUBIC, MODEL, WITHOUT_TIME, TRUTH}
    assert "warping_error" in clips["photograph c"][MODEL] and "warping_error" not in clips["film x"][MODEL]
    gain = np.mean([scores[MODEL]["y_psnr"] - scores[WITHOUT_TIME]["y_psnr"] for scores in clips.values()])
    assert result["temporal"]["clean"]["y_psnr"]["mean"] == pytest.approx(gain)
    assert "temporal blocks on minus off, clean" in capsys.readouterr().out
    # Along the known motion the photograph itself changes little, and much less than without following it.
    truth = next(pair for pair in testsets.held_out_pairs(folder) if pair.flow is not None)
    assert clips["photograph c"][TRUTH]["warping_error"] < 0.5 * metrics.warping_error(truth.hr, truth.flow * 0)


def test_held_out_clips_are_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_prepared_folder(tmp_path)
    chosen = {"num_frames": 3, "size": 64, "film_corner": [0, 0], "film": {}, "photograph_seed": 1}
    listed = {"photographs": ["c"], "evaluation": chosen | {"photograph_paths": {"c": 0}}}
    (tmp_path / "heldout.json").write_text(json.dumps(listed))
    monkeypatch.setattr(testsets, "HELD_OUT_FILE", tmp_path / "heldout.json")
    for a, b in zip(testsets.held_out_pairs(tmp_path), testsets.held_out_pairs(tmp_path), strict=True):
        assert torch.equal(a.lr, b.lr) and torch.equal(a.hr, b.hr) and torch.equal(a.flow, b.flow)


def test_temporal_differences_of_equal_methods_are_nothing() -> None:
    scores = {MODEL: {"y_psnr": 30.0}, WITHOUT_TIME: {"y_psnr": 30.0}}
    assert evaluate.temporal_differences({"a": scores, "b": scores}) == {"y_psnr": {"mean": 0, "standard_error": 0}}
    assert math.isclose(evaluate.means({"a": scores})[MODEL]["y_psnr"], 30)
