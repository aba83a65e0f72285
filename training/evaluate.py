"""`python -m training.evaluate`: a model on test sets, beside bicubic, by named metrics.

Reads published layouts (`training.testsets`), pairs of pictures, LR clips alone, and the held-out clips of the prepared
corpus. Prints one table a set; `--out` writes every clip's numbers and their means as JSON, with `--save` strips of
frames too. Which metrics there are and what they need is `training.measures`'s.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from adcvsr_core.errors import AdcvsrError, ConfigError
from adcvsr_core.lora import load_with_lora, parse_lora
from adcvsr_core.student import Student

from .clip_run import BICUBIC, FEEDINGS, MODEL, TRUTH, WITHOUT_TIME, ClipRun, EvaluationConfig
from .flow import ESTIMATORS
from .measures import DEFAULT, MEASURES, Scores, Setting, Shown, Step, Tally, make_default_steps, make_steps
from .optional_measures import FrechetDistance
from .testsets import ClipPair, open_testsets
from .validation import strip

FID = "fid"
_ARROWS = {"higher": " ↑", "lower": " ↓", "1": " →1", "": ""}
# What the comparison with and without time is told for.
_TEMPORAL = ("y_psnr", "stlpips_vgg", "flicker")


def evaluate(
    student: Student | None,
    pairs: list[ClipPair],
    steps: dict[str, Step],
    config: EvaluationConfig,
    setting: Setting,
    *,
    fid: bool = False,
    strips: Path | None = None,
    on_clip: Callable[[str], None] | None = None,
) -> dict:
    """Measure a student and bicubic on clips.

    Args:
        student: in eval mode; None = bicubic alone.
        pairs: the clips.
        steps: the metrics, from `training.measures`.
        config: what of the clips.
        setting: what the metrics were made with.
        fid: whether to measure it over every set that has ground truth.
        strips: folder for pictures LR | each method | ground truth, None = none are made.
        on_clip: gets a line after every clip.

    Returns:
        {"clips": {set: {clip: {method: scores}}}, "means": {set: {method: scores}}}, "fid": {set: {method: value}}
        where asked for, and "temporal": {set: differences} where the model was also run without time. What a clip does
        not allow to be measured is left out of it and of the mean.
    """
    result: dict = {"clips": {}, "means": {}}
    distances: dict[str, dict[str, FrechetDistance]] = {}
    for pair in pairs:
        run = ClipRun(pair, student, config, setting)
        tallies: dict[str, Tally] = {}
        for shown in run.shown():
            for method, frame in shown.items():
                tallies.setdefault(method, Tally(steps)).add(frame, is_truth=method == TRUTH)
            if fid and TRUTH in shown:
                _add_to_sets(shown, distances.setdefault(pair.group, {}), setting)
            if shown[BICUBIC].moment.index <= run.middle:
                seen = shown
        if strips is not None:
            _save_strip(strips / f"{pair.group}-{pair.name}.png".replace(" ", "-"), seen)
        scores = {method: tally.scores() for method, tally in tallies.items()}
        result["clips"].setdefault(pair.group, {})[pair.name] = scores
        if on_clip is not None:
            on_clip(f"{pair.group}/{pair.name}: {_summary(scores)}")
    result["means"] = {group: means(clips) for group, clips in result["clips"].items()}
    if fid:
        result[FID] = {
            group: {method: distance.score() for method, distance in methods.items()}
            for group, methods in distances.items()
        }
    if config.without_time and student is not None:
        result["temporal"] = {group: temporal_differences(clips) for group, clips in result["clips"].items()}
    return result


def _add_to_sets(shown: dict[str, Shown], distances: dict[str, FrechetDistance], setting: Setting) -> None:
    for method, frame in shown.items():
        if method != TRUTH:
            if method not in distances:
                distances[method] = FrechetDistance(setting.device)
            distances[method].add(frame.sr, shown[TRUTH].sr)


def means(clips: dict[str, dict[str, Scores]]) -> dict[str, Scores]:
    """Average {clip: {method: scores}} over the clips that have a score: {method: scores}."""
    averaged: dict[str, Scores] = {}
    for method in dict.fromkeys(method for scores in clips.values() for method in scores):
        rows = [scores[method] for scores in clips.values() if method in scores]
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row[name] for row in rows if name in row]
            averaged.setdefault(method, {})[name] = sum(values) / len(values)
    return averaged


def temporal_differences(clips: dict[str, dict[str, Scores]]) -> dict[str, dict[str, float]]:
    """With the temporal blocks minus without, clip by clip: {metric: {"mean", "standard_error"}}."""
    differences = {}
    for name in _TEMPORAL:
        pairs = [(scores[MODEL], scores[WITHOUT_TIME]) for scores in clips.values()]
        values = [a[name] - b[name] for a, b in pairs if name in a and name in b]
        values = torch.tensor(values, dtype=torch.float64)
        if len(values):
            error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
            differences[name] = {"mean": float(values.mean()), "standard_error": error}
    return differences


def make_table(group: str, methods: dict[str, Scores], fid: dict[str, float]) -> Table:
    """Return the means of one set, a row a metric and a column a method, as a table of the Markdown kind."""
    table = Table(title=group, title_justify="left", box=box.MARKDOWN)
    table.add_column("metric", no_wrap=True)
    for method in methods:
        table.add_column(method.replace("_", " "), justify="right", no_wrap=True)
    for name, measure in MEASURES.items():
        cells = [f"{scores[name]:.{measure.digits}f}" if name in scores else "" for scores in methods.values()]
        if any(cells):
            table.add_row(measure.title + _ARROWS[measure.better], *cells)
    if fid:
        table.add_row("FID ↓", *(f"{fid[method]:.2f}" if method in fid else "" for method in methods))
    return table


def to_json(result: dict) -> str:
    """Return valid JSON: what is not finite, such as the PSNR of equal pictures, becomes null."""

    def clean(value: object) -> object:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(result), indent=1, allow_nan=False)


def _summary(scores: dict[str, Scores]) -> str:
    """Say in a few words how a clip went."""
    first = scores[MODEL] if MODEL in scores else scores[BICUBIC]
    if "y_psnr" not in first:
        return "done"
    gain = f", {first['y_psnr'] - scores[BICUBIC]['y_psnr']:+.2f} against bicubic" if MODEL in scores else ""
    return f"{first['y_psnr']:.2f} dB{gain}"


def _save_strip(path: Path, shown: dict[str, Shown]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {method: frame.sr for method, frame in shown.items()}
    size = pictures[BICUBIC].shape[:2]
    lr = F.interpolate(shown[BICUBIC].moment.lr.permute(2, 0, 1)[None], size=size, mode="nearest")[0].permute(1, 2, 0)
    order = [pictures[method] for method in (BICUBIC, MODEL, WITHOUT_TIME, TRUTH) if method in pictures]
    Image.fromarray(strip([lr, *order])).save(path)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description="Measure a model on test sets.")
    parser.add_argument("--model", default="default", help='a student.safetensors, "default" (bundled) or "bicubic"')
    parser.add_argument("--lora", type=parse_lora, metavar="FILE[:STRENGTH]", help="a LoRA for this model (strength 1)")
    parser.add_argument("--data", type=Path, default=Path("bundled_data"), help="a test set or a folder of test sets")
    parser.add_argument("--out", type=Path, help="folder for evaluation.json")
    parser.add_argument("--save", action="store_true", help="also save a strip of each clip there: LR | methods | HR")
    parser.add_argument("--frames", type=int, default=0, help="only the first N frames of a clip (the paper: 25)")
    parser.add_argument("--crop", type=int, default=0, help="centre crop of the result in pixels (the paper: 512)")
    parser.add_argument(
        "--metrics", nargs="+", default=["default"], metavar="NAME",
        help=f"default (what this machine can of {', '.join(DEFAULT)}), or of {', '.join([*MEASURES, FID])}",
    )  # fmt: skip
    parser.add_argument("--flow", choices=ESTIMATORS, default="dis", help="who estimates the motion for ewarp")
    parser.add_argument(
        "--feeding", choices=FEEDINGS, default="downscale",
        help="sets whose LR is as large as the ground truth: a quarter of it goes in, or all of it (16 times the work)",
    )  # fmt: skip
    parser.add_argument(
        "--without-time", action="store_true",
        help="also run the model without its temporal blocks (always done on the prepared corpus)",
    )  # fmt: skip
    parser.add_argument(
        "--features", type=Path, help="folder with the ST-LPIPS weights: --data if it holds them, else bundled_data"
    )
    parser.add_argument("--download", action="store_true", help="allow pyiqa to fetch the weights of its metrics")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def run(options: argparse.Namespace, say: Callable[[str], None]) -> dict:
    """Do what the command line says; returns what `evaluate` does, with the settings.

    Raises:
        AdcvsrError: see what is called.
    """
    if options.save and options.out is None:
        raise ConfigError("--save needs --out: the folder for the strips")
    config = EvaluationConfig(
        frames=options.frames,
        crop=options.crop,
        feeding=options.feeding,
        without_time=options.without_time or (options.data / "corpus.json").exists(),
    )
    setting = Setting(
        features=options.features or _features_beside(options.data),
        device=torch.device(options.device),
        flow=options.flow,
        download=options.download,
    )
    steps = _make_steps(options.metrics, setting, say)
    if FID in options.metrics:
        FrechetDistance(setting.device)  # what is missing is told before hours of work
    pairs = open_testsets(options.data)
    student = _load(options, setting.device, say)
    fid, strips = FID in options.metrics, options.out if options.save else None
    result = evaluate(student, pairs, steps, config, setting, fid=fid, strips=strips, on_clip=say)
    settings = asdict(config) | {"flow": setting.flow, "lora": options.lora}
    return {"model": options.model, "settings": settings} | result


def _features_beside(data: Path) -> Path:
    return data if (data / "features").is_dir() else Path("bundled_data")


def _load(options: argparse.Namespace, device: torch.device, say: Callable[[str], None]) -> Student | None:
    if options.model == BICUBIC:
        if options.lora:
            raise ConfigError("--lora changes a model, and bicubic is none")
        return None
    student, warning = load_with_lora(options.model, *(options.lora or ()), device=device)
    if warning:
        say(f"warning: {warning}")
    return student


def _make_steps(names: list[str], setting: Setting, say: Callable[[str], None]) -> dict[str, Step]:
    steps: dict[str, Step] = {}
    if "default" in names:
        steps, missing = make_default_steps(setting)
        for line in missing:
            say(f"not measured: {line}")
    return steps | make_steps([name for name in names if name not in ("default", FID)], setting)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    try:
        result = run(options, lambda line: console.print(line, markup=False))
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for group, methods in result["means"].items():
        console.print(make_table(group, methods, result.get(FID, {}).get(group, {})))
    for group, differences in result.get("temporal", {}).items():
        parts = [f"{name} {d['mean']:+.4f} ± {d['standard_error']:.4f}" for name, d in differences.items()]
        console.print(f"temporal blocks on minus off, {group}: " + ", ".join(parts))
    console.print(f"{time.monotonic() - started:.0f} s")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "evaluation.json").write_text(to_json(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
