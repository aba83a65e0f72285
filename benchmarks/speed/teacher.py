"""The full-size network beside its teachers: `python -m benchmarks.speed.teacher`.

    clip     DOVE-shaped, 25 frames to 512x512         frame    OSEDiff-shaped, one frame 128x128 to 512x512

Parameters, bytes of weights in bf16 and FLOPs are counted, the least time on an H200 modelled (`roofline`). Seconds and
a GPU's peak memory are measured, everybody at its fastest: bf16, torch's own choice of attention (flash where there is
one), no tiling of a VAE; `--compile` compiles both. DOVE's shape takes 11.6 GB of weights, so a CPU measures the frame
alone. A published number of parameters may count networks that never run here: DOVE's text encoder, whose one embedding
is a constant; OSEDiff's text encoder and the network that finds words for it.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from adcvsr_core.compiled import compile_layers

from .command import Report, Setup, run
from .measuring import Call, in_turns, num_parameters, own_peak_bytes, prepare, weight_bytes
from .networks import make_student, random_clip
from .random_teachers import RandomDove, RandomOSEDiff
from .roofline import H200, least_seconds

Teacher = RandomDove | RandomOSEDiff
_META = torch.device("meta")
# T5 v1.1 XXL's encoder; and the 1,775 M that OSEDiff's paper (arXiv 2406.08177) counts, less the UNet and VAE that run.
_DOVE_TEXT, _OSEDIFF_TEXT = 4_762_310_656, 825_435_413
_LEAST = "modelled least ms on an H200"
_PATIENCE = 30
_PUBLISHED_FPS = 34.79  # AdcSR at this size, on an A100: its own README


@dataclass(frozen=True, kw_only=True)
class Case:
    """One teacher and the student that it is compared with.

    Attributes:
        title: of its tables.
        teacher: builds it.
        student: name of ours.
        frames, size: of the clip, LR pixels along an edge.
        never_run: parameters that the teacher's published number counts in addition.
        measurable: whether this machine can run it.
    """

    title: str
    teacher: Callable[..., Teacher]
    student: str
    frames: int
    size: int
    never_run: int
    measurable: bool


def cases(setup: Setup) -> list[Case]:
    """Return both comparisons at the sizes of the setup."""
    frames, size = (9, 16) if setup.tiny else (25, 128)
    clip = Case(
        title="clip",
        teacher=RandomDove,
        student="adcvsr",
        frames=frames,
        size=size,
        never_run=_DOVE_TEXT,
        measurable=setup.tiny or setup.has_gpu,
    )
    frame = Case(
        title="frame",
        teacher=RandomOSEDiff,
        student="adcsr",
        frames=1,
        size=size,
        never_run=_OSEDIFF_TEXT,
        measurable=True,
    )
    return [clip, frame]


@torch.no_grad()
def measure(setup: Setup) -> Report:
    """Compare ours with both teachers."""
    prepare(setup.device)
    options = setup.options
    compiled = "as graphs" if options.cuda_graphs else "yes" if options.compile else "no"
    report = Report(settings={"compiled": compiled, "tiled": options.tiled, "weights": "random"})
    for case in cases(setup):
        if options.only in (None, case.title):
            _count(case, setup, report)
            if case.measurable:
                _measure(case, setup, report)
            else:
                report.not_measured[f"{case.title}: seconds and memory"] = "5.8 billion parameters take a GPU"
    return report


def _count(case: Case, setup: Setup, report: Report) -> None:
    teacher = case.teacher(_META, torch.bfloat16, tiny=setup.tiny)
    # In training mode nobody looks for NaN, which takes values.
    student = make_student(case.student, replace(setup, device=_META), torch.bfloat16).train()
    lr = torch.empty(1, case.frames, 3, case.size, case.size, device=_META)
    rows = {
        "teacher": _counted(teacher.networks, lambda: teacher.super_resolve(lr, ["clip"])),
        case.student: _counted([student], lambda: student(lr.bfloat16())),
    }
    report.figures[f"{case.title}: counted"] = rows
    theirs, ours = rows["teacher"], rows[case.student]
    published = theirs["parameters"] + case.never_run
    report.ratios |= {
        f"{case.title}: parameters that run, teacher over ours": theirs["parameters"] / ours["parameters"],
        f"{case.title}: share of parameters saved, of those that run": 1 - ours["parameters"] / theirs["parameters"],
        f"{case.title}: share of parameters saved, of the published number": 1 - ours["parameters"] / published,
        f"{case.title}: weight bytes, teacher over ours": theirs["weight MB"] / ours["weight MB"],
        f"{case.title}: FLOPs, teacher over ours": theirs["TFLOP"] / ours["TFLOP"],
        f"{case.title}: modelled seconds, teacher over ours": theirs[_LEAST] / ours[_LEAST],
    }


def _counted(networks: list[torch.nn.Module], call: Call) -> dict[str, float]:
    with FlopCounterMode(display=False) as counter:
        call()
    return {
        "parameters": num_parameters(networks),
        "weight MB": weight_bytes(networks) / 1e6,
        "TFLOP": counter.get_total_flops() / 1e12,
        _LEAST: 1000 * least_seconds(call, H200),
    }


def _measure(case: Case, setup: Setup, report: Report) -> None:
    teacher = case.teacher(setup.device, setup.dtype, tiny=setup.tiny)
    student = make_student(case.student, setup)
    if setup.options.tiled:
        teacher.vae.enable_tiling()
        teacher.vae.enable_slicing()
    if setup.options.compile or setup.options.cuda_graphs:
        teacher.compile()
        reason = compile_layers(student, graphs=setup.options.cuda_graphs)
        if reason:
            report.not_measured[f"{case.title}: ours compiled"] = reason
    lr = random_clip(case.frames, case.size, case.size, setup, torch.float32)
    calls = {"teacher": lambda: teacher.super_resolve(lr, ["clip"]), case.student: lambda: student(lr)}
    networks = {"teacher": teacher.networks, case.student: [student]}
    best = in_turns(calls, setup.device, setup.rounds, _PATIENCE)
    peaks = {name: own_peak_bytes(calls[name], networks[name], setup.device) for name in calls}
    report.figures[f"{case.title}: measured"] = {
        name: {
            "seconds": best[name],
            "frames a second": case.frames / best[name],
            "peak GB": None if peaks[name] is None else peaks[name] / 1e9,
        }
        for name in calls
    }
    report.ratios[f"{case.title}: seconds, teacher over ours"] = best["teacher"] / best[case.student]
    if peaks["teacher"]:
        report.ratios[f"{case.title}: peak memory, teacher over ours"] = peaks["teacher"] / peaks[case.student]
    if setup.has_gpu:
        _judge_gpu(case, best[case.student], setup, report)


def _judge_gpu(case: Case, taken: float, setup: Setup, report: Report) -> None:
    """Put our seconds beside the modelled least of the GPU, where it is known, and beside a published speed."""
    gpu = torch.cuda.get_device_name(setup.device)
    if "H200" in gpu:
        least = report.figures[f"{case.title}: counted"][case.student][_LEAST] / 1000
        report.ratios[f"{case.title}: our seconds over the modelled least"] = taken / least
    if case.frames == 1:
        published = f"{case.title}: frames a second, ours over AdcSR's published {_PUBLISHED_FPS} (A100)"
        report.ratios[published] = 1 / taken / _PUBLISHED_FPS


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=("clip", "frame"), help="one of the two comparisons")
    parser.add_argument("--compile", action="store_true", help="torch.compile for teachers and ours, minutes at first")
    parser.add_argument("--cuda-graphs", action="store_true", help="compile, and replay ours as CUDA graphs")
    parser.add_argument("--tiled", action="store_true", help="tile the teachers' VAEs, as DOVE's script does")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run("teacher", __doc__, measure, arguments, _add_options)


if __name__ == "__main__":
    sys.exit(main())
