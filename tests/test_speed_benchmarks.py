"""Every speed benchmark runs to its JSON at tiny size on a CPU; what they measure with is right."""

import json
import math
import mmap
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import charts, files, fused, job, measuring, modules, peers, scaling, skips, teacher, training
from benchmarks.speed.diffusers_twin import DiffusersTwin
from benchmarks.speed.networks import student_config
from benchmarks.speed.random_teachers import RandomDove, RandomOSEDiff
from benchmarks.speed.roofline import Gpu, least_seconds
from training.peers import PEERS

CPU = torch.device("cpu")
COMMANDS = (files, fused, job, modules, peers, scaling, skips, teacher, training)


def run(command: ModuleType, out: Path, *arguments: str) -> dict:
    """Run a command at tiny size and return what it wrote, every number of it finite."""
    assert command.main(["--tiny", "--device", "cpu", "--out", str(out), *arguments]) == 0
    result = json.loads((out / f"{command.__name__.rpartition('.')[2]}.json").read_text())
    assert result["settings"]["tiny"] and result["machine"]["device"] == "cpu" and result["machine"]["threads"] >= 1
    numbers = [value for table in result["figures"].values() for row in table.values() for value in row.values()]
    assert numbers and all(value is None or (math.isfinite(value) and value >= 0) for value in numbers)
    assert result["ratios"] and all(math.isfinite(value) for value in result["ratios"].values())
    return result


def column(table: dict, name: str) -> list[float]:
    return [row[name] for row in table.values()]


@pytest.fixture(autouse=True)
def usual_settings(monkeypatch):
    """The commands change the process; here they share it with other tests."""
    monkeypatch.setattr(measuring, "keep_freed_memory", lambda: None)
    yield
    torch.backends.cudnn.benchmark = False


def test_every_command_is_tried_here():
    folder = Path(measuring.__file__).parent
    found = {file.stem for file in folder.glob("*.py") if "def main(" in file.read_text()}
    assert found == {command.__name__.rpartition(".")[2] for command in COMMANDS}


def test_teacher(tmp_path, capsys):
    pytest.importorskip("diffusers")
    result = run(teacher, tmp_path)
    for part, ours in (("clip", "adcvsr"), ("frame", "adcsr")):
        counted, measured = result["figures"][f"{part}: counted"], result["figures"][f"{part}: measured"]
        assert set(counted) == set(measured) == {"teacher", ours}
        for name, over in (("seconds", measured), ("TFLOP", counted), ("weight MB", counted)):
            title = {"TFLOP": "FLOPs", "weight MB": "weight bytes"}.get(name, name)
            ratio = over["teacher"][name] / over[ours][name]
            assert result["ratios"][f"{part}: {title}, teacher over ours"] == pytest.approx(ratio)
    assert "| teacher | 101,211 |" in capsys.readouterr().out
    assert "clip: counted" not in run(teacher, tmp_path, "--only", "frame")["figures"]


def test_modules(tmp_path):
    pytest.importorskip("diffusers")
    result = run(modules, tmp_path)
    assert set(result["figures"]) == {"frame by frame", "all at once"} and len(result["ratios"]) == 3
    assert result["settings"]["largest difference over deviation"] < 1e-3
    for way, table in result["figures"].items():
        theirs, ours = table["diffusers' modules"]["seconds a frame"], table["ours"]["seconds a frame"]
        assert result["ratios"][f"{way}: diffusers' seconds over ours"] == pytest.approx(theirs / ours)


def test_peers(tmp_path, capsys):
    result = run(peers, tmp_path)
    table = result["figures"]["seconds a frame"]
    assert set(table) == {*PEERS, "default", "nano"} and all(
        value > 0 for row in table.values() for value in row.values()
    )
    ratio = table["x4plus"]["fp32"] / table["default"]["fp32"]
    assert result["ratios"]["fp32: x4plus's seconds over default's"] == pytest.approx(ratio)
    assert (tmp_path / "peers.png").exists()
    # Without --tiny it wants the real files, and says where they come from.
    assert peers.main(["--device", "cpu", "--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "prepare_benchmark_data" in capsys.readouterr().err


def test_scaling(tmp_path):
    result = run(scaling, tmp_path, "--sizes", "16", "48")
    figures = result["figures"]
    assert column(figures["size"], "LR size") == [16, 48]
    for name in ("GFLOP a frame", "state MiB in fp16"):
        small, large = column(figures["size"], name)
        assert large >= 9 * 0.999 * small  # as the pixels, and more where it attends
    ways = figures["way"]
    assert len(ways) == 7 and ways["windows of 8 with a halo of 18"]["frames seen"] == 8
    assert ways["chunks of 1"]["frames seen"] == ways["whole clip"]["frames seen"] == 8
    assert column(figures["length"], "frames")[-1] == 12
    whole, windows = figures["window"]["64x48"].values()
    assert windows < whole
    assert (tmp_path / "scaling.png").exists()
    assert scaling.main(["--tiny", "--device", "cpu", "--out", str(tmp_path), "--sizes", "20"]) == 1


def test_scaling_of_a_recurrent_network_has_no_windows(tmp_path):
    ways = run(scaling, tmp_path, "--sizes", "16", "--model", "recurrent")["figures"]["way"]
    assert not any(name.startswith("windows") for name in ways)


def test_job(tmp_path):
    rows = run(job, tmp_path)["figures"]["4 frames to 64x64"]
    assert list(rows) == ["free memory", "4 GB"]
    assert all(row["frames a second"] == pytest.approx(4 / row["seconds"]) for row in rows.values())


def test_files(tmp_path):
    result = run(files, tmp_path)
    for way in (files.IN_TURNS, files.BESIDE):
        parts = result["figures"][way]
        assert min(parts[part]["seconds"] for part in ("decoding", "network", "encoding", "waiting")) > 0
    # In turns nothing happens at the same time, and whoever decodes or encodes lets the network wait.
    parts = result["figures"][files.IN_TURNS]
    assert sum(parts[part]["share"] for part in ("decoding", "network", "encoding", "the rest")) == pytest.approx(1)
    video = parts["decoding"]["seconds"] + parts["encoding"]["seconds"]
    assert parts["waiting"]["seconds"] == pytest.approx(video, rel=0.05, abs=2e-3)
    assert (tmp_path / "files.png").exists()


def test_training(tmp_path, folder):
    result = run(training, tmp_path, "--features", str(folder), "--rounds", "1")
    rows = result["figures"]["a step, without loading"]
    assert list(rows) == [f"debug: {stage}" for stage in ("frames", "clips", "features", "adversarial")]
    assert all(seconds > 0 for seconds in column(rows, "seconds a step")) and not result["not_measured"]


def test_training_lists_what_it_could_not_measure(tmp_path):
    result = run(training, tmp_path, "--recipes", "debug", "finetune_lora", "--features", str(tmp_path / "none"),
                 "--set", "stage.batch=1", "--set", "stage.lr_size=16", "--set", "stage.num_frames=2")  # fmt: skip
    assert (
        set(result["not_measured"]) == {"debug: adversarial"} and len(result["figures"]["a step, without loading"]) == 4
    )
    assert "prepare_bundled_data" in result["not_measured"]["debug: adversarial"]


def test_skips(tmp_path):
    result = run(skips, tmp_path)
    for table in result["figures"].values():
        stored, recomputed = table["stored"], table["recomputed"]
        assert recomputed["state MiB"] < stored["state MiB"] and recomputed["GFLOP a frame"] > stored["GFLOP a frame"]


def test_fused(tmp_path):
    result = run(fused, tmp_path)
    for title, ways in result["figures"].items():
        assert list(ways)[:2] == [fused.TEXTBOOK, fused.OURS] and all(ms > 0 for ms in column(ways, "ms"))
        differences, peaks = (column(ways, name) for name in ("largest difference over deviation", "counted peak MiB"))
        assert max(differences) < 1e-3 and peaks[1] <= peaks[0], title
    assert result["figures"]["network nano"][fused.OURS]["largest difference over deviation"] == 0


def test_unusable_settings_are_refused(tmp_path, capsys):
    for arguments in (["--device", "cuda:99"], ["--device", "toaster"], ["--rounds", "-1"]):
        assert skips.main(["--tiny", "--out", str(tmp_path), *arguments]) == 1
    assert capsys.readouterr().err.count("error: ") == 3 and not list(tmp_path.iterdir())


# What they measure with


def test_calls_take_turns_and_the_best_counts(monkeypatch):
    order, times = [], {"a": iter([9.0, 2.0, 3.0]), "b": iter([50.0, 40.0, 1.0])}

    def seconds(call, device):
        order.append(call())
        return next(times[order[-1]])

    monkeypatch.setattr(measuring, "seconds", seconds)
    calls = {"a": lambda: "a", "b": lambda: "b"}
    assert measuring.in_turns(calls, CPU, 2, patience=60) == {"a": 2.0, "b": 40.0}
    assert order == ["a", "b", "a", "b", "a"]  # b had its 60 seconds


def test_one_thread_is_timed_by_the_processor(monkeypatch):
    def sleep():
        time.sleep(0.2)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert measuring.seconds(sleep, CPU) < 0.1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert measuring.seconds(sleep, CPU) >= 0.2


def test_peak_memory_sees_what_was_freed():
    with measuring.PeakMemory(CPU) as before:
        pass
    if before.bytes is None:
        pytest.skip("this system does not tell a process's peak of memory")
    # Pages of its own, which go back at once: malloc may have been told to keep what is freed.
    with measuring.PeakMemory(CPU) as peak, mmap.mmap(-1, 400_000_000) as held:
        np.frombuffer(held, np.uint8)[:] = 1
    with measuring.PeakMemory(CPU) as after:
        pass
    assert peak.bytes - before.bytes > 350e6 and after.bytes < peak.bytes - 350e6


def test_random_teachers_have_the_true_shapes():
    pytest.importorskip("diffusers")
    meta = torch.device("meta")
    assert measuring.num_parameters(RandomDove(meta, torch.bfloat16, tiny=False).networks) == 5_786_260_259
    osediff = RandomOSEDiff(meta, torch.bfloat16, tiny=False).networks
    assert [measuring.num_parameters([each]) for each in osediff] == [865_910_724, 83_653_863]
    assert measuring.weight_bytes(osediff) == 2 * 949_564_587


@pytest.mark.parametrize("teacher_class", [RandomDove, RandomOSEDiff])
@torch.no_grad()
def test_operations_are_counted_without_being_done(teacher_class):
    pytest.importorskip("diffusers")
    counts = []
    for device in (CPU, torch.device("meta")):
        made = teacher_class(device, torch.float32, tiny=True)
        # The counter does not know the CPU's own flash attention.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            sr = made.super_resolve(torch.zeros(1, 9, 3, 16, 32, device=device), ["a"])
        assert sr.shape == (1, 9, 3, 64, 128)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_the_twin_notices_another_network():
    pytest.importorskip("diffusers")
    from adcvsr_core import Student

    student = Student(student_config("adcsr", tiny=True)).eval()
    twin, lr = DiffusersTwin(student), torch.rand(1, 1, 3, 16, 32) * 2 - 1
    with torch.no_grad():
        assert modules.check_equal(student, twin, lr) < 1e-3
        twin.unet.conv_in.bias[0] += 0.1
        with pytest.raises(modules.UnequalNetworks, match="deviations"):
            modules.check_equal(student, twin, lr)


def test_modelled_time_is_that_of_the_slower_half():
    gpu = Gpu(flops=1e9, bandwidth=1e6)
    a, b = torch.empty(100, 200, device="meta"), torch.empty(200, 50, device="meta")
    assert least_seconds(lambda: a @ b, Gpu(flops=1e6, bandwidth=1e12)) == pytest.approx(2 * 100 * 200 * 50 / 1e6)
    assert least_seconds(lambda: a @ b, gpu) == pytest.approx(4 * (100 * 200 + 200 * 50 + 100 * 50) / 1e6)
    assert least_seconds(lambda: (a + 1).T.reshape(-1), gpu) == pytest.approx(2 * a.nbytes / 1e6 + 2 * a.nbytes / 1e6)
    assert least_seconds(lambda: a.T.unsqueeze(0)[:, 3:], gpu) == 0  # no work at all
    q = torch.empty(1, 2, 1000, 8, device="meta")
    attention = least_seconds(lambda: F.scaled_dot_product_attention(q, q, q), gpu)
    assert attention == pytest.approx(max(4 * 2 * 1000 * 1000 * 8 / 1e9, 4 * q.nbytes / 1e6))


def test_curves_rise_where_numbers_do(tmp_path):
    rising = charts.Lines(title="t", x="x", y="y", curves={"": [(1, 1), (2, 2), (4, 8)]}, logarithmic=True)
    flat = charts.Lines(title="t", x="x", y="y", curves={"": [(0, 5.0), (10, 5.0)]})
    charts.draw_charts([rising, flat], tmp_path / "chart.png")
    picture = np.asarray(Image.open(tmp_path / "chart.png")).astype(int)
    blue = np.abs(picture - [0x1F, 0x6F, 0xEB]).sum(2) < 30
    for panel, is_flat in ((blue[:, :560], False), (blue[:, 560:], True)):
        columns = np.nonzero(panel.any(axis=0))[0]
        left, right = (np.nonzero(panel[:, x])[0].mean() for x in (columns[2], columns[-3]))
        assert (abs(left - right) < 3) if is_flat else (left > right + 100)


def test_frames_of_footage_move(tmp_path):
    from benchmarks.speed.footage import moving_frames

    frames = torch.cat(list(moving_frames(40, 24, 32)))
    assert frames.shape == (40, 24, 32, 3) and frames.min() >= 0 and frames.max() <= 1
    assert torch.equal(frames[1, :, :-2], frames[0, :, 2:]) and not torch.equal(frames[1], frames[0])
