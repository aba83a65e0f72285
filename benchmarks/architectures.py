"""Which small network? `python -m benchmarks.architectures --data bundled_data --out DIR`: one short training each.

Every candidate is the bundled `default` or `nano` with one thing changed. All see the same samples in the same order
for the same number of steps of `bundled_2d` (a third of them clean, the rest its mixture), single frames, so temporal
blocks play no part. Then each enlarges the same held-out frames. Time is the processor's on one thread, which other
programs do not lengthen much. A network that learns slowly is judged by what it reached here, not by what it may reach:
that is what a machine of this size can train. Candidates that are finished are not run again; an interrupted one goes
on.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from adcvsr_core import metrics
from adcvsr_core.checkpoint import load_student
from adcvsr_core.config import PRESETS, StudentConfig
from adcvsr_core.cost import count_flops, count_parameters
from adcvsr_core.degradation import degrade
from adcvsr_core.errors import AdcvsrError
from adcvsr_core.student import Student
from training.config import TrainConfig
from training.progress import TrainingProgress
from training.recipes import get_recipe
from training.sources import Source, open_source
from training.trainer import Trainer
from training.validation import bicubic_frames, run_student

from .tables import markdown

_DEFAULT = PRESETS["default"]
CANDIDATES: dict[str, StudentConfig] = {
    "default": _DEFAULT,
    "group norm": replace(_DEFAULT, norm="group", norm_groups=8),
    "no bicubic residual": replace(_DEFAULT, residual="none", output_scale=1.0),
    "no attention": replace(_DEFAULT, heads=(0, 0, 0, 0), mid_heads=0),
    "one block a level": replace(_DEFAULT, layers=1),
    "wider UNet": replace(_DEFAULT, channels=(48, 72, 96, 96)),
    "narrower UNet": replace(_DEFAULT, channels=(16, 32, 48, 64)),
    "wider decoder": replace(_DEFAULT, decoder_channels=(16, 32, 48, 64)),
    "wide fine decoder": replace(_DEFAULT, decoder_channels=(24, 32, 32, 32)),
    "deeper decoder": replace(_DEFAULT, decoder_layers=1),
    "nano": PRESETS["nano"],
    "nano, coarse UNet": replace(PRESETS["nano"], channels=(16, 32, 64, 96)),
    "nano, wider UNet": replace(PRESETS["nano"], channels=(32, 48, 64, 64)),
}
KINDS = ("clean", "h264_crf30")
_NUM_FRAMES, _HR_SIZE, _SPEED_SIZE = 24, 256, 128


def configure(student: StudentConfig, steps: int, seed: int) -> TrainConfig:
    """Return the run of one candidate: a third of its steps clean, the rest the recipe's mixture."""
    recipe = get_recipe("bundled_2d")
    clean, mixed = recipe.stages[:2]
    stages = (replace(clean, steps=steps // 3), replace(mixed, steps=steps - steps // 3))
    return replace(
        recipe,
        recipe="architectures",
        student=student,
        stages=stages,
        seed=seed,
        dead_after=0,
        checkpoint_every=200,
        validate_every=10**6,
        keep_checkpoints=1,
    )


def train(config: TrainConfig, data: Path, folder: Path) -> Path:
    """Train one candidate, or go on with it; returns the student's file."""
    result = folder / "student.safetensors"
    if not result.exists():
        trainer = Trainer(config, folder, data, resume=any((folder / "checkpoints").glob("step-*")))
        with TrainingProgress(config.total_steps) as watch:
            if not trainer.run(watch):
                sys.exit(f"stopped after step {trainer.step}; the same command goes on")
    return result


@torch.no_grad()
def look(student: Student | None, source: Source) -> dict[str, float]:
    """Return the mean Y-PSNR of each kind of input over the same held-out frames; None = bicubic."""
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for index in range(_NUM_FRAMES):
        # Eight frames through the codec: one alone would be a key frame, which is hardly damaged.
        clip = source.draw_clip(np.random.default_rng(index), 8, _HR_SIZE, video=bool(index % 2)).frames
        for kind in KINDS:
            lr = degrade(clip, kind, index)[4:5]
            sr = bicubic_frames(lr) if student is None else run_student(student, lr, 0.0)
            scores[kind].append(metrics.psnr(sr, clip[4:5]).mean().item())
    return {kind: float(np.mean(values)) for kind, values in scores.items()}


@torch.no_grad()
def processor_seconds(student: Student, frames: int = 4, repeats: int = 3) -> float:
    """Return the processor's seconds a frame on one thread; the best of some repeats."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lr = torch.zeros(1, frames, 3, _SPEED_SIZE, _SPEED_SIZE)
        student(lr)
        best = float("inf")
        for _ in range(repeats):
            started = time.process_time()
            student(lr)
            best = min(best, (time.process_time() - started) / frames)
        return best
    finally:
        torch.set_num_threads(threads)


def measure(path: Path, source: Source, folder: Path) -> dict[str, float]:
    """Return everything that the table says of one trained candidate."""
    student = load_student(path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "million parameters": count_parameters(student.config)[0] / 1e6,
        "GFLOP a frame": count_flops(student.config, _SPEED_SIZE, _SPEED_SIZE) / 1e9,
        "seconds a frame": processor_seconds(student),
        "seconds a step": float(np.median([line["seconds"] for line in lines])),
        "loss over bicubic's": float(np.mean([line["ratio"] for line in lines[-100:]])),
        **{f"{kind}, dB": value for kind, value in look(student, source).items()},
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table, a row a candidate; what a row lacks stays empty."""
    names = list(next(iter(results.values())))
    rows = {
        candidate: [f"{values[name]:.3f}" if name in values else "" for name in names]
        for candidate, values in results.items()
    }
    return markdown(names, rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("bundled_data"), help="made by prepare_bundled_data")
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    options = parser.parse_args(arguments)
    source = open_source(options.data, get_recipe("bundled_2d").data, "heldout")
    results: dict[str, dict[str, float]] = {}
    try:
        for name in options.only:
            folder = options.out / name.replace(",", "").replace(" ", "-")
            path = train(configure(CANDIDATES[name], options.steps, options.seed), options.data, folder)
            results[name] = measure(path, source, folder)
            results_and_bicubic = results | {
                "bicubic": {f"{kind}, dB": value for kind, value in look(None, source).items()}
            }
            (options.out / "table.md").write_text(table(results_and_bicubic))
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(results_and_bicubic))
    return 0


if __name__ == "__main__":
    sys.exit(main())
