"""A smoke test of the adversarial stage: does each part of it do what it is for, from one regression checkpoint?

    python -m benchmarks.adversary --data bundled_data --out runs/adversary [--steps N]

Trains the bundled student on by `bundled_stage2`, shortened, in four ways: without an adversary, with a single head,
with both heads, and with both heads but without shuffled videos. Then measures all of them and their start on the
held-out clips of the prepared data, and draws strips, x-t slices and the discriminators' logits. One seed and minutes
of training: it shows that the parts work and in which direction they push, not how far the method goes. Runs that are
there already are not run again; an interrupted one goes on.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from adcvsr_core.checkpoint import load_student
from adcvsr_core.degradation import degrade
from adcvsr_core.student import Student
from training import evaluate
from training.config import TrainConfig, override
from training.export import read_weights
from training.progress import TrainingProgress
from training.recipes import get_recipe
from training.sources import open_source
from training.trainer import Trainer
from training.validation import bicubic_frames, nearest_frames, run_student, strip, time_slice

VARIANTS = {
    "no adversary": ["stage1.adversary=null"],
    "single head": ["stage1.adversary.heads=single"],
    "dual head": [],
    "dual head, nothing shuffled": ["stage1.adversary.shuffled=0"],
}
METRICS = ["y_psnr", "ssim", "stlpips_vgg", "flicker", "shimmer", "motion_energy", "high_pass", "warping_error"]
# What a CPU takes in minutes: 64-pixel crops, five frames.
SMALL = ["stage.lr_size=16", "stage1.num_frames=5", "stage0.steps=150", "validate_every=100000", "checkpoint_every=100"]
_COLORS = {"student": "red", "real": "green", "shuffled": "orange", "still": "blue", "stacked": "purple"}
_PLOT = (520, 220)


def configure(settings: list[str], steps: int, seed: int) -> TrainConfig:
    """Return the run of one variant."""
    return override(get_recipe("bundled_stage2"), [*SMALL, f"stage1.steps={steps}", f"seed={seed}", *settings])


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


def measure(model: str, data: Path, output: Path) -> dict:
    """Evaluate a model on the held-out clips, or read what was measured; returns evaluation.json."""
    path = output / "evaluation.json"
    if not path.exists():
        evaluate.main(["--model", model, "--data", str(data), "--out", str(output), "--metrics", *METRICS])
    return json.loads(path.read_text())


def table(results: dict[str, dict]) -> str:
    """Return one Markdown table per test set, a row a model."""
    lines = []
    for group in next(iter(results.values()))["means"]:
        lines += [f"**{group}**", "", "| | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
        rows = {"bicubic": next(iter(results.values()))["means"][group]["bicubic"]}
        rows |= {name: result["means"][group]["model"] for name, result in results.items()}
        for name, scores in rows.items():
            lines.append(f"| {name} | " + " | ".join(_number(scores.get(metric)) for metric in METRICS) + " |")
        lines.append("")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"


def draw_strips(students: dict[str, Student], data: Path, path: Path, num_clips: int = 4) -> None:
    """Draw LR | bicubic | each student | HR, a row a clip, and below each row the same as x-t slices."""
    config = get_recipe("bundled_stage2")
    source = open_source(data, config.data, "heldout")
    rows = []
    for index in range(num_clips):
        clip = source.draw_clip(np.random.default_rng(index), 9, 192, video=bool(index % 2))
        lr = degrade(clip.frames, ("clean", "h264")[index // 2 % 2], index)
        columns = [nearest_frames(lr), bicubic_frames(lr), *(run_student(s, lr, 1.0) for s in students.values())]
        columns.append(clip.frames)
        rows += [strip([frames[4] for frames in columns]), strip([time_slice(frames) for frames in columns])]
    height = sum(row.shape[0] + 4 for row in rows)
    picture = Image.new("RGB", (rows[0].shape[1], height), "white")
    top = 0
    for row in rows:
        picture.paste(Image.fromarray(row), (0, top))
        top += row.shape[0] + 4
    picture.save(path)


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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="train only these")
    options = parser.parse_args(arguments)
    folders = {name: options.out / name.replace(",", "").replace(" ", "-") for name in options.only}
    models = {"the start": options.init}
    for name, folder in folders.items():
        config = configure(VARIANTS[name], options.steps, options.seed)
        models[name] = str(train(config, options.init, options.data, folder))
    measured = {"the start": options.out / "start", **folders}
    results = {name: measure(model, options.data, measured[name]) for name, model in models.items()}
    text = table(results)
    (options.out / "table.md").write_text(text)
    print(text)
    draw_strips({name: load_student(model) for name, model in models.items()}, options.data, options.out / "strips.png")
    adversarial = {name: folder for name, folder in folders.items() if name != "no adversary"}
    draw_curves(adversarial, options.out / "curves.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
