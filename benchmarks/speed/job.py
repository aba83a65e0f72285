"""The family's own job, 30 frames to 2048x2048: `python -m benchmarks.speed.job`.

Through the engine as it chooses its steps, by the full-size network on a GPU and the bundled one on a CPU, beside what
InstaVSR (arXiv 2603.26134) says of itself: under a minute within 7 GB, on another GPU and by another network. A GPU
does it twice, the second time told that 4 GB are all there is. Peaks are all that the process holds of a device,
weights included.
"""

import argparse
import sys

import torch

from adcvsr_core import Student, UpscaleConfig, upscale

from .command import Report, Setup, run
from .footage import moving_frames
from .measuring import PeakMemory, prepare, seconds
from .networks import make_student

_PUBLISHED_SECONDS, _PUBLISHED_GB = 60, 7


@torch.no_grad()
def measure(setup: Setup) -> Report:
    """Do the job within every limit, each once with two frames to warm up and once in earnest."""
    prepare(setup.device)
    name = setup.options.model or ("adcvsr" if setup.has_gpu and not setup.tiny else "default")
    size, num_frames = (16, 4) if setup.tiny else (512, 30)
    limits = setup.options.memory or ((0.0, 4.0) if setup.has_gpu or setup.tiny else (0.0,))
    student = make_student(name, setup)
    report = Report(settings={"model": name, "LR size": size, "frames": num_frames})
    rows = report.figures[f"{num_frames} frames to {4 * size}x{4 * size}"] = {}
    for limit in limits:
        within = f"{limit:g} GB" if limit else "free memory"
        config = UpscaleConfig(memory=limit, cuts=0)
        upscale_footage(student, config, 2, size)
        with PeakMemory(setup.device) as peak:
            taken = seconds(lambda config=config: upscale_footage(student, config, num_frames, size), setup.device)
        rows[within] = {"seconds": taken, "frames a second": num_frames / taken, "peak GB": None}
        report.ratios[f"{within}: seconds over InstaVSR's published minute"] = taken / _PUBLISHED_SECONDS
        if peak.bytes is not None:
            rows[within]["peak GB"] = peak.bytes / 1e9
            report.ratios[f"{within}: memory over InstaVSR's published 7 GB"] = peak.bytes / 1e9 / _PUBLISHED_GB
    return report


def upscale_footage(student: Student, config: UpscaleConfig, num_frames: int, size: int) -> None:
    """Upscale made-up footage of size x size, keeping nothing."""
    for _ in upscale(moving_frames(num_frames, size, size), student, config):
        pass


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a bundled model or preset; default on a CPU, adcvsr on a GPU")
    parser.add_argument("--memory", nargs="+", type=float, metavar="GB", help="limits to keep to, 0 = what is free")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run("job", __doc__, measure, arguments, _add_options)


if __name__ == "__main__":
    sys.exit(main())
