"""A smoke test of the adversarial stage: does each part of it do what it is for, from one regression checkpoint?

    python -m benchmarks.adversary --data bundled_data --out runs/adversary [--steps N]

Trains a student on by `bundled_stage2`, shortened, in several ways: without an adversary, with a single head, with both
heads, with both but without shuffled videos, in one domain alone, and without time. Then measures all of them and their
start on the held-out clips of the prepared data, and draws strips, x-t slices and the discriminators' logits. Minutes
of training: it shows that the parts work and in which direction they push, not how far the method goes. With several
`--seeds` the table has means and deviations. Runs that are there already are not run again; an interrupted one goes on.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from adcvsr_core import metrics
from adcvsr_core.checkpoint import load_student, read_config
from adcvsr_core.config import StudentConfig
from adcvsr_core.degradation import degrade
from adcvsr_core.student import Student
from training.config import TrainConfig
from training.export import read_weights
from training.measures import fine_energy
from training.overrides import override
from training.perceptual import make_distance
from training.progress import TrainingProgress
from training.recipes import get_recipe
from training.sampling import to_network
from training.sources import open_source
from training.trainer import Trainer
from training.validation import bicubic_frames, nearest_frames, run_student, strip, time_slice

from .tables import markdown

VARIANTS = {
    "no adversary": ["stage1.adversary=null"],
    "single head": ["stage1.adversary.heads=single"],
    "dual head": [],
    "dual head, nothing shuffled": ["stage1.adversary.shuffled=0"],
    "dual head, pixels only": ['stage1.adversary.domains=["pixel"]', "stage1.loss.feature=0.0"],
    "dual head, features only": ['stage1.adversary.domains=["feature"]'],
    "dual head, no time": ["stage.temporal_strength=0.0", "stage.bypass_every=0", "stage.strength_every=0"],
}
NO_TIME = "dual head, no time"
# What a CPU takes in minutes: 64-pixel crops, five frames.
SMALL = ["stage.lr_size=16", "stage1.num_frames=5", "stage0.steps=150", "validate_every=100000", "checkpoint_every=100"]
_SEED = ", seed "
_NUM_CLIPS = 8
_COLORS = {"student": "red", "real": "green", "shuffled": "orange", "still": "blue", "stacked": "purple"}
_PLOT = (520, 220)


def configure(student: StudentConfig, settings: list[str], steps: int, seed: int) -> TrainConfig:
    """Return the run of one variant."""
    recipe = replace(get_recipe("bundled_stage2"), student=student)
    return override(recipe, [*SMALL, f"stage1.steps={steps}", f"seed={seed}", *settings])


def train(config: TrainConfig, init: str, data: Path, output: Path) -> Path:
    """Train one variant, or go on with it; returns the student's file."""
    result = output / "student.safetensors"
    if not result.exists():
        resume = any((output / "checkpoints").glob("step-*")) if output.exists() else False
        trainer = Trainer(config, output, data, init=read_weights(init, config.student), resume=resume)
        with TrainingProgress(config.total_steps) as watch:
            if not trainer.run(watch):
                sys.exit(f"stopped after step {trainer.step}; the same command goes on")
    return result


@torch.no_grad()
def look(students: dict[str, Student], data: Path, picture: Path) -> dict[str, dict[str, float]]:
    """Run bicubic and every student on held-out clips, half of them through H.264.

    Returns:
        the mean of each metric, by model. The first clips are drawn to `picture`: LR | bicubic | students | HR, and
        below them the same as x-t slices.
    """
    source = open_source(data, get_recipe("bundled_stage2").data, "heldout")
    distance = make_distance("st-lpips-vgg", data)
    scores: dict[str, list[dict[str, float]]] = {}
    rows = []
    for index in range(_NUM_CLIPS):
        clip = source.draw_clip(np.random.default_rng(index), 9, 192, video=bool(index % 2))
        lr = degrade(clip.frames, ("clean", "h264")[index // 2 % 2], index)
        made = {"bicubic": bicubic_frames(lr)}
        made |= {name: run_student(student, lr, 0.0 if NO_TIME in name else 1.0) for name, student in students.items()}
        for name, sr in made.items():
            scores.setdefault(name, []).append(measure(sr, clip.frames, distance))
        columns = [nearest_frames(lr), *made.values(), clip.frames]
        rows += [strip([frames[4] for frames in columns]), strip([time_slice(frames) for frames in columns])]
    Image.fromarray(np.concatenate(rows[:8])).save(picture)
    return {
        name: {key: float(np.mean([each[key] for each in values])) for key in values[0]}
        for name, values in scores.items()
    }


def measure(sr: Tensor, hr: Tensor, distance: nn.Module) -> dict[str, float]:
    """Compare clips [T,H,W,3]: distance to the truth, its fine detail and its change over time, each as a ratio."""
    middle = [to_network(frames[4:5]) for frames in (sr, hr)]
    return {
        "y_psnr": metrics.psnr(sr, hr).mean().item(),
        "st_lpips_vgg": distance(*middle).item(),
        "high_pass_ratio": sum(map(fine_energy, sr)) / sum(map(fine_energy, hr)),
        "flicker": metrics.flicker(sr, hr).item(),
        "motion_energy_ratio": metrics.motion_energy_ratio(sr, hr).item(),
        "shimmer_ratio": metrics.shimmer(sr) / metrics.shimmer(hr),
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table, a row a variant: means over its seeds, and their deviation where there are several."""
    names = list(next(iter(results.values())))
    rows: dict[str, list[dict[str, float]]] = {}
    for model, scores in results.items():
        rows.setdefault(model.split(_SEED)[0], []).append(scores)
    cells = {variant: [_cell([each[name] for each in seeds]) for name in names] for variant, seeds in rows.items()}
    return markdown(names, cells)


def _cell(values: list[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def draw_curves(runs: dict[str, Path], path: Path) -> None:
    """Draw mean logits over the steps: a row a run, a column a domain and head, a line a kind of clip."""
    panels = [(domain, head) for domain in ("pixel", "feature") for head in ("detail", "consistency")]
    width, height = _PLOT
    picture = Image.new("RGB", (width * len(panels), height * len(runs)), "white")
    draw = ImageDraw.Draw(picture)
    for row, (name, folder) in enumerate(runs.items()):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines = [line for line in lines if "adversary_loss" in line]
        for column, (domain, head) in enumerate(panels):
            curves = {
                kind: _smooth([line[f"logit_{domain}_{kind}_{head}"] for line in lines])
                for kind in _COLORS
                if lines and f"logit_{domain}_{kind}_{head}" in lines[0]
            }
            _draw_panel(draw, (column * width, row * height), f"{name}: {domain}, {head}", curves)
    picture.save(path)


def _smooth(values: list[float], window: int = 15) -> list[float]:
    parts = [values[max(0, i - window + 1) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _draw_panel(draw: ImageDraw.ImageDraw, at: tuple[int, int], title: str, curves: dict[str, list[float]]) -> None:
    left, top = at
    width, height = _PLOT
    draw.rectangle((left, top, left + width - 1, top + height - 1), outline="lightgray")
    draw.text((left + 6, top + 4), title, fill="black")
    values = [value for curve in curves.values() for value in curve]
    if not values:
        draw.text((left + 6, top + 40), "not there", fill="gray")
        return
    low, high = min([*values, -0.1]), max([*values, 0.1])

    def place(step: int, value: float, length: int) -> tuple[float, float]:
        x = left + 10 + (width - 20) * step / max(1, length - 1)
        return x, top + 22 + (height - 44) * (1 - (value - low) / (high - low))

    draw.line([place(0, 0.0, 2), place(1, 0.0, 2)], fill="lightgray")
    for index, (kind, curve) in enumerate(curves.items()):
        if len(curve) > 1:
            draw.line([place(i, value, len(curve)) for i, value in enumerate(curve)], fill=_COLORS[kind], width=2)
        draw.text((left + 6 + 90 * index, top + height - 16), kind, fill=_COLORS[kind])
    draw.text((left + width - 110, top + 4), f"{low:.2f} to {high:.2f}", fill="gray")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adversary", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("bundled_data"), help="made by prepare_bundled_data")
    parser.add_argument("--out", type=Path, default=Path("runs/adversary"))
    parser.add_argument("--init", default="default", help="the regression checkpoint")
    parser.add_argument("--steps", type=int, default=240, help="of each variant's adversarial stage")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="train only these")
    options = parser.parse_args(arguments)
    student = read_config(options.init)
    folders, models = {}, {"the start": options.init}
    for seed in options.seeds:
        for variant in options.only:
            name = f"{variant}{_SEED}{seed}"
            folders[name] = options.out / name.replace(",", "").replace(" ", "-")
            config = configure(student, VARIANTS[variant], options.steps, seed)
            models[name] = str(train(config, options.init, options.data, folders[name]))
    students = {name: load_student(model) for name, model in models.items()}
    text = table(look(students, options.data, options.out / "strips.png"))
    (options.out / "table.md").write_text(text)
    print(text)
    adversarial = {name: folder for name, folder in folders.items() if not name.startswith("no adversary")}
    draw_curves(adversarial, options.out / "curves.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
