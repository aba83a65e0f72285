"""How good are the pictures? `python -m benchmarks.quality --data bundled_data --out runs/quality [--model NAME=FILE]`.

Every method enlarges the same ten damaged clips (`quality_clips`), one condition after the other, in one run; every
number comes from `training.measures` or `quality_text`. Tables show means over sources, not clips, with the film (whose
other shots were trained on) apart. Writes quality.json (every clip), tables.md, and strips and x-t slices as PNG to
look at. What the peers make is kept in the output folder, so that a second run is quick.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adcvsr_core.degradation import degrade
from adcvsr_core.errors import AdcvsrError
from training.clip_run import TRUTH
from training.evaluate import to_json
from training.measures import MEASURES, Moment, Scores, Setting, Shown, Step, Tally, make_steps
from training.peers import PEERS
from training.validation import nearest_frames, strip, time_slice

from .quality_clips import CONDITIONS, NUM_FRAMES, QualityClip, quality_clips
from .quality_methods import WITHOUT_TIME, Method, make_methods
from .quality_text import Reader, accuracy, make_reader
from .tables import markdown

METRICS = ("y_psnr", "ssim", "stlpips_vgg", "judge", "niqe", "flicker", "motion_energy", "high_pass", "sharpness",
           "warping_error", "crawl")  # fmt: skip
TEXT = "text"
FILM = "film"
_PERCEPTUAL = frozenset((6,))  # frames that slow networks look at
_SPEED_SIZE, _SPEED_FRAMES = 128, 4
# method -> metric -> value
Table = dict[str, Scores]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every condition is measured with."""

    steps: dict[str, Step]
    setting: Setting
    read: Reader | None
    out: Path


def measure_clip(clip: QualityClip, made: dict[str, Tensor], lr: Tensor, bench: Bench) -> Table:
    """Measure what every method made of a clip, and the clip itself."""
    scores: Table = {}
    for method, sr in {**made, TRUTH: clip.hr}.items():
        tally, past = Tally(bench.steps), ()
        for t in range(len(sr)):
            moment = Moment(
                index=t,
                lr=lr[t],
                reference=clip.hr[t],
                before=clip.hr[t - 1] if t else None,
                has_truth=True,
                motion=clip.flow[t - 1] if t and clip.flow is not None else None,
                perceptual=t in _PERCEPTUAL,
                setting=bench.setting,
            )
            tally.add(Shown(sr[t], past, moment), is_truth=method == TRUTH)
            past = (sr[t], *past)[:2]
        scores[method] = tally.scores()
        if clip.lines and bench.read is not None:
            scores[method][TEXT] = accuracy(sr, clip.lines, bench.read)
    return scores


def over_sources(clips: dict[str, tuple[str, Table]], sources: set[str]) -> Table:
    """Average over the clips of each source, then over the sources that have a score."""
    averaged: Table = {}
    for method in next(iter(clips.values()))[1]:
        for name in (*METRICS, TEXT):
            by_source: dict[str, list[float]] = {}
            for source, table in clips.values():
                value = table[method].get(name)
                if source in sources and value is not None and math.isfinite(value):
                    by_source.setdefault(source, []).append(value)
            if by_source:
                means = [sum(values) / len(values) for values in by_source.values()]
                averaged.setdefault(method, {})[name] = sum(means) / len(means)
    return averaged


def temporal_gain(clips: dict[str, tuple[str, Table]], model: str) -> dict[str, dict[str, float]]:
    """With temporal blocks against without, over clips: name -> {"mean", "half": of a 95 % interval}.

    "flicker" is the share that they take away, "y_psnr" and "stlpips_vgg" are differences.
    """
    gains: dict[str, list[float]] = {"flicker": [], "y_psnr": [], "stlpips_vgg": []}
    for _, table in clips.values():
        on, off = table[model], table[model + WITHOUT_TIME]
        gains["flicker"].append(1 - on["flicker"] / off["flicker"])
        for name in ("y_psnr", "stlpips_vgg"):
            gains[name].append(on[name] - off[name])
    return {
        name: {"mean": float(np.mean(values)), "half": float(1.96 * np.std(values, ddof=1) / math.sqrt(len(values)))}
        for name, values in gains.items()
    }


def to_markdown(title: str, table: Table) -> str:
    """Return a Markdown table, a row a method."""
    names = [name for name in (*METRICS, TEXT) if any(name in scores for scores in table.values())]
    titles = [MEASURES[name].title if name in MEASURES else "characters read" for name in names]
    rows = {method: [_cell(name, scores) for name in names] for method, scores in table.items()}
    return f"### {title}\n\n{markdown(titles, rows)}"


def _cell(name: str, scores: Scores) -> str:
    digits = MEASURES[name].digits if name in MEASURES else 3
    return f"{scores[name]:.{digits}f}" if name in scores else ""


def draw(folder: Path, condition: str, clip: QualityClip, lr: Tensor, made: dict[str, Tensor]) -> None:
    """Save a clip's middle frame and its x-t slice by every method: LR | methods | HR."""
    shown = [frames for method, frames in made.items() if not method.endswith(WITHOUT_TIME)]
    columns = [nearest_frames(lr), *shown, clip.hr]
    rows = [strip([frames[NUM_FRAMES // 2] for frames in columns]), strip([time_slice(frames) for frames in columns])]
    path = folder / f"{condition}-{clip.name}.png".replace(" ", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def seconds_a_frame(methods: dict[str, Method]) -> dict[str, float]:
    """Time every method on frames of 128x128 to 512x512, several times in turn; the best of each."""
    lr = torch.from_numpy(np.random.default_rng(0).random((_SPEED_FRAMES, _SPEED_SIZE, _SPEED_SIZE, 3), np.float32))
    best = dict.fromkeys(methods, math.inf)
    for repeat in range(3):
        for name, method in methods.items():
            if repeat == 2 and best[name] > 2:  # too slow for chance to matter
                continue
            started = time.perf_counter()
            method(lr)
            best[name] = min(best[name], (time.perf_counter() - started) / _SPEED_FRAMES)
    return best


def measure_condition(
    condition: str, clips: list[QualityClip], methods: dict[str, Method], bench: Bench
) -> dict[str, tuple[str, Table]]:
    """Let every method enlarge every clip under one condition; returns name -> (source, scores)."""
    measured = {}
    for index, clip in enumerate(clips):
        lr = degrade(clip.hr, condition, index)
        made = {name: method(lr) for name, method in methods.items()}
        measured[clip.name] = clip.source, measure_clip(clip, made, lr, bench)
        draw(bench.out / "strips", condition, clip, lr, made)
        print(f"{condition} {clip.name}", flush=True)
    return measured


def run(options: argparse.Namespace) -> dict:
    """Measure everything; returns what quality.json holds."""
    models = dict(model.split("=", 1) if "=" in model else (model, model) for model in options.model)
    setting, read = Setting(features=options.data, device=torch.device("cpu")), make_reader()
    if read is None:
        print("not measured: characters read, which needs `pip install rapidocr-onnxruntime`", flush=True)
    bench = Bench(steps=make_steps(list(METRICS), setting), setting=setting, read=read, out=options.out)
    methods = make_methods(options.data, models, options.out / "made", options.peers)
    clips = quality_clips(options.data)
    result: dict = {"clips": {}, "means": {}, "temporal": {}, "seconds_a_frame": {}}
    tables: list[str] = []
    for condition in options.conditions:
        measured = measure_condition(condition, clips, methods, bench)
        others = {clip.source for clip in clips} - {FILM}
        means = {", ".join(sorted(others)): over_sources(measured, others), FILM: over_sources(measured, {FILM})}
        result["clips"][condition] = {name: scores for name, (_, scores) in measured.items()}
        result["means"][condition] = means
        tables += [to_markdown(f"{condition}: {sources}", table) for sources, table in means.items()]
        for model in (model for model in models if model + WITHOUT_TIME in methods):
            gain = temporal_gain(measured, model)
            result["temporal"].setdefault(model, {})[condition] = gain
            parts = (f"{name} {each['mean']:+.4f} ± {each['half']:.4f}" for name, each in gain.items())
            tables.append(f"{model}, temporal blocks on against off, {condition}: {', '.join(parts)}\n")
        _write(options.out, result, tables)
    if options.speed:
        result["seconds_a_frame"] = seconds_a_frame(make_methods(options.data, models, None, options.peers))
        tables.append(speed_table(result["seconds_a_frame"]))
        _write(options.out, result, tables)
    return result


def speed_table(seconds: dict[str, float]) -> str:
    """Return what `seconds_a_frame` found, as Markdown."""
    title = f"### Seconds a frame, 128x128 to 512x512, {torch.get_num_threads()} threads"
    return f"{title}\n\n{markdown(['seconds'], {name: [f'{value:.3f}'] for name, value in seconds.items()})}"


def _write(folder: Path, result: dict, tables: list[str]) -> None:
    (folder / "quality.json").write_text(to_json(result))
    (folder / "tables.md").write_text("\n".join(tables))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("bundled_data"), help="made by both prepare_ commands")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--model", nargs="+", default=["default"], metavar="NAME[=FILE[@DETAIL]]", help="ours")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="other upscalers")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--no-speed", dest="speed", action="store_false", help="do not time the methods")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        run(options)
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print((options.out / "tables.md").read_text())
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
