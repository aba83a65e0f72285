"""The command line on real files: what it writes, what it says, and that a fault leaves nothing behind."""

import dataclasses
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
import torch
from conftest import awaken

from adcvsr_core import UpscaleConfig, upscale
from adcvsr_core.checkpoint import load_student, save_student
from adcvsr_core.cli import INTERRUPTED, main
from adcvsr_core.engine import plan_run
from adcvsr_core.streaming import TemporalBlock
from adcvsr_core.student import Student
from adcvsr_core.video import VideoWriter, read_image, read_video


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_config) -> str:
    """A fast model file with strong temporal weights."""
    config = dataclasses.replace(tiny_config, heads=(0, 0, 2, 0), norm="none", residual="bicubic", output_scale=0.1)
    path = tmp_path_factory.mktemp("model") / "fast.safetensors"
    torch.manual_seed(2)
    save_student(awaken(Student(config)), path)
    return str(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory, sample) -> Path:
    """The bundled clip at 80x46, with its sound."""
    path = tmp_path_factory.mktemp("clip") / "small.mp4"
    with read_video(sample) as reader, VideoWriter(path, width=80, height=46, source=reader) as writer:
        for frames in reader:
            planes = torch.nn.functional.interpolate(
                frames.permute(0, 3, 1, 2), size=(46, 80), antialias=True, mode="bicubic"
            )
            writer.write(planes.clamp(0, 1).permute(0, 2, 3, 1), reader.take_pts(len(frames)))
    return path


def packets(path, kind: str) -> list[bytes]:
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams if stream.type == kind]
        return [bytes(packet) for packet in container.demux(streams) if packet.size]


def read(path) -> torch.Tensor:
    with read_video(path) as reader:
        return torch.cat(list(reader))


def command(*arguments, **kwargs) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "adcvsr_core", *map(str, arguments)]
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(line, cwd=root, capture_output=True, text=True, env=environment, timeout=300, **kwargs)


def test_upscale_keeps_every_frame_and_the_sound(tmp_path, small, model):
    out = tmp_path / "out.mp4"
    result = command("upscale", small, out, "--model", model)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(out)
    assert "80x46 -> 320x184, 4 frames per step, float32 on cpu" in result.stderr and "56 frames" in result.stderr
    assert read(out).shape == (56, 184, 320, 3)
    assert packets(out, "audio") == packets(small, "audio") != []
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_the_command_line_gives_the_engines_frames(tmp_path, small, model):
    out = tmp_path / "out.mkv"
    options = ["--height", "100", "--detail", "0.5", "--color", "adain", "--chunk", "5", "--cuts", "0.3"]
    assert main(["upscale", str(small), str(out), "--model", model, "--codec", "ffv1", *options]) == 0
    config = UpscaleConfig(height=100, detail=0.5, color="adain", chunk=5, cuts=0.3)
    expected = torch.cat(list(upscale([read(small)], load_student(model), config)))
    assert (read(out) - expected).abs().max() < 0.51 / 255


def test_a_plan_is_told_and_nothing_written(tmp_path, small, model, capsys):
    out = tmp_path / "out.mp4"
    assert main(["upscale", str(small), str(out), "--model", model, "--plan", "--memory", "2"]) == 0
    told = capsys.readouterr().out
    for text in ("80x46 -> 320x184", "of the 1.86 GiB", "temporal state", "frames a second", "for 56 frames"):
        assert text in told, told
    assert not list(tmp_path.iterdir())


def test_a_small_memory_changes_no_frame(tmp_path, small, model, capsys):
    student, outs = load_student(model), [tmp_path / "whole.mkv", tmp_path / "less.mkv"]
    budgets = (f"{0.1 * 0.98**step:.5f}" for step in range(200))
    tight = next(
        m for m in budgets if plan_run(46, 80, student, UpscaleConfig(memory=float(m))).memory.footing.chunk == 1
    )
    for out, memory in zip(outs, ("0", tight), strict=True):
        options = ["--codec", "ffv1", "--memory", memory, "--cuts", "0", "--end", "0.9"]
        assert main(["upscale", str(small), str(out), "--model", model, *options]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "1 frame per step" in told and "tiles" not in told, told
    whole, less = map(read, outs)
    assert (whole - less).abs().max() < 1.01 / 255


def test_start_and_end_take_a_part(tmp_path, small, model):
    out = tmp_path / "part.mp4"
    assert main(["upscale", str(small), str(out), "--model", model, "--start", "0.5", "--end", "0:01"]) == 0
    with read_video(small, start=0.5, end=1) as reader:
        expected = sum(len(frames) for frames in reader)
    assert len(read(out)) == expected == 12


def test_pictures_in_and_pictures_out(tmp_path, model):
    pictures = tmp_path / "in"
    pictures.mkdir()
    with VideoWriter(f"{pictures}/", width=20, height=14, fps=24) as writer:
        writer.write(torch.rand(3, 14, 20, 3))
    assert main(["upscale", str(pictures), f"{tmp_path}/out/", "--model", model]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    one = sorted(pictures.iterdir())[0]
    assert main(["upscale", str(one), str(tmp_path / "one.png"), "--model", model]) == 0
    assert read_image(tmp_path / "one.png").shape == (56, 80, 3)


def test_an_existing_file_is_only_replaced_when_told_to(tmp_path, small, model, capsys):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"precious")
    assert main(["upscale", str(small), str(out), "--model", model, "--end", "0.2"]) == 1
    assert "overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"precious"
    assert main(["upscale", str(small), str(out), "--model", model, "--end", "0.2", "--overwrite"]) == 0
    assert len(read(out)) == 5


class _Hostile:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def _bad_inputs(folder: Path, small: Path) -> dict[str, Path]:
    files = {name: folder / name for name in ("text.mp4", "empty.mp4", "cut.mp4", "weights.safetensors", "net.pkl")}
    files["text.mp4"].write_text("this is no video")
    files["empty.mp4"].write_bytes(b"")
    files["cut.mp4"].write_bytes(small.read_bytes()[:900])
    files["weights.safetensors"].write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not json at all")
    files["net.pkl"].write_bytes(pickle.dumps(_Hostile(folder / "executed")))
    return files


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f, small, model, out: ["upscale", "absent.mp4", out, "--model", model], "absent.mp4 does not exist"),
        (lambda f, small, model, out: ["upscale", f["text.mp4"], out, "--model", model], "text.mp4"),
        (lambda f, small, model, out: ["upscale", f["empty.mp4"], out, "--model", model], "empty.mp4"),
        (lambda f, small, model, out: ["upscale", f["cut.mp4"], out, "--model", model], "cut.mp4"),
        (
            lambda f, small, model, out: ["upscale", small, out, "--model", f["weights.safetensors"]],
            "weights.safetensors",
        ),
        (lambda f, small, model, out: ["upscale", small, out, "--model", f["net.pkl"]], "net.pkl"),
        (lambda f, small, model, out: ["upscale", small, out, "--model", "huge"], "no bundled model 'huge'"),
        (lambda f, small, model, out: ["upscale", small, out, "--model", model, "--tile", "500"], "use 496 or 512"),
        (lambda f, small, model, out: ["upscale", small, out, "--model", model, "--detail", "9"], "detail 9.0"),
        (lambda f, small, model, out: ["upscale", small, out, "--model", model, "--device", "cuda:99"], "--device cpu"),
        (lambda f, small, model, out: ["upscale", small, "no/such/folder/x.mp4", "--model", model], "no/such/folder"),
        (lambda f, small, model, out: ["upscale", small, f"{out}.xyz", "--model", model], "xyz"),
        (lambda f, small, model, out: ["upscale", small, small, "--model", model, "--overwrite"], "small.mp4"),
        (lambda f, small, model, out: ["upscale", small, "/proc/x.mp4", "--model", model], "/proc/x"),
        (lambda f, small, model, out: ["convert", "--adcsr", f["net.pkl"], f["net.pkl"], "--out", out], "net.pkl"),
        (lambda f, small, model, out: ["convert", "--sd", f["net.pkl"].parent, "--out", out], "unet"),
        (lambda f, small, model, out: ["info", "nothing.mp4"], "nothing.mp4"),
        (lambda f, small, model, out: ["compare", small, "absent.mp4", "--out", f"{out}.png"], "absent.mp4"),
    ],
)
def test_a_fault_is_one_clear_line_and_leaves_nothing(tmp_path, small, model, capsys, make, message):
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    outputs.mkdir()
    before = small.read_bytes()
    arguments = make(_bad_inputs(inputs, small), small, model, outputs / "out.mp4")
    code = main([str(argument) for argument in arguments])
    told = capsys.readouterr().err
    assert code == 1
    lines = [line for line in told.splitlines() if "error:" in line]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in told, told
    assert not list(outputs.iterdir()) and not (inputs / "executed").exists()
    assert small.read_bytes() == before


def test_a_damaged_middle_is_told_and_the_rest_is_upscaled(tmp_path, small, model, capsys):
    damaged = tmp_path / "damaged.mp4"
    content = bytearray(small.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = bytes(600)
    damaged.write_bytes(content)
    code = main(["upscale", str(damaged), str(tmp_path / "out.mp4"), "--model", model])
    told = capsys.readouterr().err
    assert code == 0 and "warning:" in told
    assert len(read(tmp_path / "out.mp4")) >= 28


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are a POSIX thing")
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, small, model):
    import resource

    limit = (20_000, 20_000)
    result = command(
        "upscale", small, tmp_path / "out.mp4", "--model", model,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert result.returncode == 1 and "error:" in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="signals are a POSIX thing")
@pytest.mark.parametrize(
    "number, in_background",
    [
        pytest.param(signal.SIGINT, False, id="ctrl-c"),
        pytest.param(signal.SIGTERM, False, id="terminate"),
        pytest.param(signal.SIGTERM, True, id="terminate-in-background"),
    ],
)
def test_an_interrupt_leaves_a_playable_part(tmp_path, sample, model, number, in_background):
    out = tmp_path / "out.mov"
    # ProRes reaches the disk frame by frame, so that the file's size tells when to interrupt: after a few frames, for
    # where the first one is cut short there is nothing to keep.
    options = ["--model", model, "--chunk", "1", "--codec", "prores"]
    line = [sys.executable, "-m", "adcvsr_core", "upscale", str(sample), str(out), *options]
    root = Path(__file__).resolve().parent.parent

    def begin() -> None:
        # A shell ignores Ctrl-C for what it starts in the background, and that may be where these tests run.
        signal.signal(signal.SIGINT, signal.SIG_IGN if in_background else signal.default_int_handler)

    with subprocess.Popen(line, cwd=root, stderr=subprocess.PIPE, text=True, preexec_fn=begin) as process:
        while process.poll() is None and not any(path.stat().st_size > 1_000_000 for path in tmp_path.iterdir()):
            time.sleep(0.02)
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == INTERRUPTED and "Traceback" not in told, told
    kept = re.search(r"stopped after (\d+) frames; they are kept in (\S+)", " ".join(told.split()))
    assert kept and not out.exists(), told
    # The signal may come between a frame and its count.
    assert int(kept[1]) > 0 and len(read(kept[2])) - int(kept[1]) in (0, 1)


def test_info_tells_models_and_clips(small, model, capsys):
    for subject, expected in (
        (model, ["parameters", "look-ahead", "18 frames", "GFLOP a frame", "temporal state"]),
        ("adcvsr", ["487,190,163", "31,116,480 temporal", "2,666"]),
        (str(small), ["80x46", "h264", "BT.709 matrix, limited range", "sound", "yes"]),
    ):
        assert main(["info", subject]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert all(text in told for text in expected), told


def test_compare_writes_a_sheet_and_a_wipe(tmp_path, small, model):
    large = tmp_path / "large.mp4"
    assert main(["upscale", str(small), str(large), "--model", model]) == 0
    assert main(["compare", str(small), str(large), "--out", str(tmp_path / "sheet.png")]) == 0
    assert read_image(tmp_path / "sheet.png").shape[0] > 3 * 184
    assert main(["compare", str(small), str(large), "--out", str(tmp_path / "wipe.mp4")]) == 0
    frames = read(tmp_path / "wipe.mp4")
    assert frames.shape == (56, 184, 320, 3) and packets(tmp_path / "wipe.mp4", "audio") == packets(small, "audio")
    assert main(["compare", str(small), str(large), "--out", str(tmp_path / "sheet.png")]) == 1


LONG_RUN = """
import resource, sys
from adcvsr_core.cli import main
code = main(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read the POSIX way")
def test_memory_does_not_grow_with_the_clip(tmp_path, sample, model):
    """Over 500 real frames with sound: as many out, the same sound, and no more memory than for 100."""
    clip = tmp_path / "clip.mp4"
    frames = torch.nn.functional.interpolate(
        read(sample).permute(0, 3, 1, 2), size=(48, 80), antialias=True, mode="bilinear"
    )
    frames = frames.permute(0, 2, 3, 1)
    with VideoWriter(tmp_path / "mute.mp4", width=80, height=48, fps=24) as writer:
        for _ in range(9):
            writer.write(frames)
    _add_sound(tmp_path / "mute.mp4", clip)
    peaks = {}
    for name, options in (("short", ["--end", "4.166"]), ("long", [])):
        out = tmp_path / f"{name}.mp4"
        arguments = ["upscale", str(clip), str(out), "--model", model, *options]
        line = [sys.executable, "-c", LONG_RUN, *arguments]
        root = Path(__file__).resolve().parent.parent
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(line, cwd=root, capture_output=True, text=True, env=environment, timeout=300)
        code, peak = result.stdout.split()[-2:]
        assert code == "0", result.stderr
        with av.open(str(out)) as container:
            peaks[sum(1 for _ in container.decode(video=0))] = int(peak)
    assert sorted(peaks) == [100, 504]
    assert peaks[504] < 1.05 * peaks[100], peaks
    assert packets(tmp_path / "long.mp4", "audio") == packets(clip, "audio") != []


def _add_sound(mute: Path, clip: Path) -> None:
    with av.open(str(mute)) as source, av.open(str(clip), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        audio = target.add_stream("aac", rate=48_000)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        for index in range(950):
            tone = av.AudioFrame(format="fltp", layout="mono", samples=1024)
            tone.sample_rate = 48_000
            tone.pts = 1024 * index
            tone.planes[0].update((0.1 * torch.sin(torch.arange(1024) * (0.01 + index / 9000))).numpy().tobytes())
            target.mux(audio.encode(tone))
        target.mux(audio.encode(None))


def test_convert_adds_temporal_blocks_that_start_as_the_identity(tiny_config):
    from adcvsr_core.convert import with_temporal

    frame_model = Student(dataclasses.replace(tiny_config, temporal="none")).eval()
    clip_model = with_temporal(frame_model)
    assert sum(isinstance(module, TemporalBlock) for module in clip_model.modules()) == 9
    lr = torch.rand(1, 4, 3, 16, 16)
    with torch.no_grad():
        assert (clip_model(lr) - frame_model(lr)).abs().max() < 1e-5
