"""The full-size network beside the same built of diffusers' modules: `python -m benchmarks.speed.modules`.

The 2D network, 128x128 to 512x512 (a CPU: 64x64 to 256x256), frame by frame and all at once. Both hold the same
weights, and give the same frames within rounding before anything is timed. The published program of AdcSR is diffusers'
modules run one frame at a time.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from adcvsr_core.errors import AdcvsrError
from adcvsr_core.student import Student

from .command import Report, Setup, run
from .diffusers_twin import DiffusersTwin
from .measuring import in_turns, own_peak_bytes, prepare
from .networks import make_student, random_clip

_OURS, _THEIRS = "ours", "diffusers' modules"
_TOLERANCE = 1e-3  # of the output's deviation, in fp32


class UnequalNetworks(AdcvsrError):
    """Two networks that should be the same gave different frames, so that their times say nothing."""


@torch.no_grad()
def measure(setup: Setup) -> Report:
    """Compare both, frame by frame and batched."""
    prepare(setup.device)
    size = 16 if setup.tiny else 128 if setup.has_gpu else 64
    num_frames = 25 if setup.has_gpu and not setup.tiny else 2
    student = make_student("adcsr", setup, torch.float32)
    twin = DiffusersTwin(student)
    difference = check_equal(student, twin, random_clip(1, size, size, setup, torch.float32))
    for network in (student, twin):
        network.to(setup.dtype)
    lr = random_clip(num_frames, size, size, setup)
    report = Report(settings={"frames": num_frames, "LR size": size, "largest difference over deviation": difference})
    frames = lr[0].split(1)
    ways = {
        "frame by frame": {
            _OURS: lambda: [student(frame[None]) for frame in frames],
            _THEIRS: lambda: [twin(frame) for frame in frames],
        },
        "all at once": {_OURS: lambda: student(lr), _THEIRS: lambda: twin(lr[0])},
    }
    for way, calls in ways.items():
        best = in_turns(calls, setup.device, setup.rounds)
        peaks = {_OURS: own_peak_bytes(calls[_OURS], [student], setup.device)}
        peaks[_THEIRS] = own_peak_bytes(calls[_THEIRS], [twin], setup.device)
        report.figures[way] = {
            name: {
                "seconds a frame": best[name] / num_frames,
                "peak GB": None if peaks[name] is None else peaks[name] / 1e9,
            }
            for name in calls
        }
        report.ratios[f"{way}: diffusers' seconds over ours"] = best[_THEIRS] / best[_OURS]
    single = report.figures["frame by frame"][_THEIRS]["seconds a frame"]
    batched = report.figures["all at once"][_OURS]["seconds a frame"]
    report.ratios["diffusers' seconds frame by frame over ours all at once"] = single / batched
    return report


def check_equal(student: Student, twin: DiffusersTwin, lr: Tensor) -> float:
    """Return the largest difference of two networks' frames over the frames' deviation, of LR frames [1,T,3,H,W].

    Raises:
        UnequalNetworks: it is more than rounding.
    """
    with _exact_float32():
        ours, theirs = student(lr)[0], twin(lr[0])
    difference = float((ours - theirs).abs().max() / theirs.std())
    if not difference <= _TOLERANCE:
        raise UnequalNetworks(
            f"our frames and those of diffusers' modules differ by {difference:.2g} deviations at most; expected "
            f"{_TOLERANCE:g} or less: this version of diffusers may build other blocks; try another"
        )
    return difference


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Keep a GPU from rounding float32 convolutions to TF32."""
    usual = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = usual


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run("modules", __doc__, measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
