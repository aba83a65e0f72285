"""Time and memory over the size of frames, the length of a clip and the chunk: `python -m benchmarks.speed.scaling`.

    size      seconds, FLOPs and temporal state of one frame
    window    FLOPs of the full-size network where attention sees the whole frame, and where it sees windows: counted
    length    the peak of memory while one endless stream runs through `upscale`: it shall be flat
    way       chunks of several sizes, the clip as a whole, and windows with a halo, which see frames more than once

The model is the bundled one on a CPU and the full-size one on a GPU; `--model` takes any preset.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from adcvsr_core import StreamState, Student, UpscaleConfig, upscale
from adcvsr_core.config import StepConfig
from adcvsr_core.cost import count_flops, state_bytes
from adcvsr_core.errors import ConfigError
from adcvsr_core.windows import split, stitch

from .charts import Lines
from .command import Report, Setup, run
from .footage import moving_frames
from .measuring import Call, PeakMemory, in_turns, own_peak_bytes, prepare
from .networks import make_student, random_clip, student_config

_CHUNKS = (1, 2, 4, 8, 16)
_STREAMED, _WHOLE = "chunks of 8", "whole clip"
_CORE = 8  # frames that a window contributes
_PATIENCE = 10


@torch.no_grad()
def measure(setup: Setup) -> Report:
    """Measure the curves of one model, and count what windows save."""
    prepare(setup.device)
    name = setup.options.model or ("adcvsr" if setup.has_gpu else "default")
    student = make_student(name, setup)
    report = Report(settings={"model": name})
    _over_length(student, setup, report)
    _over_ways(student, setup, report)
    _over_size(student, setup, report)
    _over_windows(setup, report)
    return report


def _over_size(student: Student, setup: Setup, report: Report) -> None:
    sizes = setup.options.sizes or ((16, 32) if setup.tiny else (64, 128, 256, 512))
    if any(size % student.multiple_of for size in sizes):
        raise ConfigError(f"sizes {sizes} must be multiples of {student.multiple_of}")
    frames = 4 if setup.has_gpu else 2
    clips = {f"{size}x{size}": random_clip(frames, size, size, setup) for size in sizes}
    calls: dict[str, Call] = {name: partial(student, lr) for name, lr in clips.items()}
    best = in_turns(calls, setup.device, setup.rounds, _PATIENCE)
    rows = report.figures["size"] = {}
    for size, (name, call) in zip(sizes, calls.items()):
        taken, flops = best[name] / frames, count_flops(student.config, size, size)
        rows[name] = {
            "LR size": size,
            "seconds a frame": taken,
            "GFLOP a frame": flops / 1e9,
            "GFLOP a second": flops / taken / 1e9,
            "state MiB in fp16": state_bytes(student.config, size, size, torch.float16) / 2**20,
            "peak GB": _gigabytes(own_peak_bytes(call, [student], setup.device)),
        }
    small, large = rows[f"{min(sizes)}x{min(sizes)}"], rows[f"{max(sizes)}x{max(sizes)}"]
    pixels = (max(sizes) / min(sizes)) ** 2
    ratio = large["seconds a frame"] / small["seconds a frame"] / pixels
    report.ratios[f"seconds a pixel, LR {max(sizes)} over LR {min(sizes)}"] = ratio
    points = [(row["LR size"], row["seconds a frame"]) for row in rows.values()]
    title = f"{report.settings['model']}, {setup.where}"
    report.charts.append(
        Lines(title=title, x="LR pixels along an edge", y="seconds a frame", curves={"": points}, logarithmic=True)
    )


def _over_windows(setup: Setup, report: Report) -> None:
    config = student_config("adcvsr", tiny=setup.tiny)
    how = StepConfig(attention_window=32 if setup.tiny else 128)
    rows = report.figures["window"] = {}
    for width, height in ((64, 48),) if setup.tiny else ((832, 480), (1280, 720), (1920, 1088)):
        whole, windows = count_flops(config, height, width), count_flops(config, height, width, how=how)
        rows[f"{width}x{height}"] = {
            "TFLOP a frame, whole frames": whole / 1e12,
            f"TFLOP a frame, windows of {how.attention_window}": windows / 1e12,
        }
        report.ratios[f"adcvsr, LR {width}x{height}: FLOPs of whole frames over windows"] = whole / windows


def _over_length(student: Student, setup: Setup, report: Report) -> None:
    """Run one stream and ask, from mark to mark, for the most memory held since the mark before."""
    size = 16 if setup.tiny else 128 if setup.has_gpu else 32
    marks = (1, 4, 12) if setup.tiny else (1, 50, 200, 500, 1000, 1500, 2000)
    config = UpscaleConfig(chunk=4, cuts=0)
    stream = upscale(moving_frames(marks[-1], size, size), student, config)
    rows = report.figures["length"] = {}
    done, pending = 0, iter(stream)
    for _, mark in pairwise((0, *marks)):
        with PeakMemory(setup.device) as peak:
            done = _run_until(pending, done, mark)
        rows[f"{done} frames"] = {"frames": done, "peak MiB": None if peak.bytes is None else peak.bytes / 2**20}
    report.settings["length: LR size"] = size
    early, late = list(rows.values())[1], list(rows.values())[-1]
    if late["peak MiB"] is None:
        report.not_measured["length"] = "this system does not tell a process's peak of memory"
        return
    ratio = late["peak MiB"] / early["peak MiB"]
    report.ratios[f"peak memory, at {late['frames']} frames over at {early['frames']}"] = ratio
    points = [(row["frames"], row["peak MiB"]) for row in rows.values()]
    report.charts.append(Lines(title=f"LR {size}x{size}", x="frames so far", y="peak memory, MiB", curves={"": points}))


def _run_until(stream: Iterator[Tensor], done: int, mark: int) -> int:
    while done < mark:
        done += len(next(stream))
    return done


def _over_ways(student: Student, setup: Setup, report: Report) -> None:
    size = 16 if setup.tiny else 128 if setup.has_gpu else 64
    num_frames = 8 if setup.tiny else 40
    lr = random_clip(num_frames, size, size, setup)
    calls: dict[str, Call] = {f"chunks of {chunk}": partial(run_chunks, student, lr, chunk) for chunk in _CHUNKS}
    calls[_WHOLE] = partial(student, lr)
    seen = dict.fromkeys(calls, num_frames)
    if student.halo is not None:
        name = f"windows of {_CORE} with a halo of {student.halo}"
        calls[name] = partial(run_windows, student, lr)
        seen[name] = sum(window.num_frames for _, window in split(lr[0], _CORE, student.halo))
    best = in_turns(calls, setup.device, setup.rounds, _PATIENCE)
    rows = report.figures["way"] = {
        name: {
            "seconds a frame": best[name] / num_frames,
            "frames seen": seen[name],
            "peak GB": _gigabytes(own_peak_bytes(call, [student], setup.device)),
        }
        for name, call in calls.items()
    }
    report.settings |= {"way: LR size": size, "way: frames": num_frames}
    streamed = rows[_STREAMED]["seconds a frame"]
    report.ratios[f"speed in {_STREAMED} over the {_WHOLE}"] = rows[_WHOLE]["seconds a frame"] / streamed
    if student.halo is not None:
        report.ratios[f"seconds in windows with a halo over {_STREAMED}"] = rows[name]["seconds a frame"] / streamed
    curve = [(chunk, rows[f"chunks of {chunk}"]["seconds a frame"]) for chunk in _CHUNKS]
    whole = [(chunk, rows[_WHOLE]["seconds a frame"]) for chunk in _CHUNKS]
    curves = {"in chunks": curve, _WHOLE: whole}
    report.charts.append(
        Lines(title=f"LR {size}x{size}, {num_frames} frames", x="frames a chunk", y="seconds a frame", curves=curves)
    )


def run_chunks(student: Student, lr: Tensor, chunk: int) -> Tensor:
    """Push a clip [1,T,3,H,W] through one stream, `chunk` frames at a time: [1,T,3,4H,4W]."""
    state, pieces = StreamState(), lr.split(chunk, dim=1)
    return torch.cat([student(piece, state, index == len(pieces) - 1) for index, piece in enumerate(pieces)], dim=1)


def run_windows(student: Student, lr: Tensor) -> Tensor:
    """Run a clip [1,T,3,H,W] in windows with the student's halo and join their cores: [T,3,4H,4W]."""
    parts = [(student(frames[None])[0], window) for frames, window in split(lr[0], _CORE, student.halo)]
    return stitch([part for part, _ in parts], [window for _, window in parts], fade=False)


def _gigabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e9


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a bundled model or preset; default on a CPU, adcvsr on a GPU")
    parser.add_argument("--sizes", nargs="+", type=int, help="LR edges, multiples of 16; fewer is quicker")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run("scaling", __doc__, measure, arguments, _add_options)


if __name__ == "__main__":
    sys.exit(main())
