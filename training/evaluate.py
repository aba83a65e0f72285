"""`python -m training.evaluate`: a model on the held-out clips, against bicubic and against itself without time.

Twelve fixed clips of 12 frames, 256x256: six shots of the film and six photographs in motion, none of them ever
trained on. The clips are listed in heldout.json and do not change. Prints a table, writes JSON and strips.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adcvsr_core import metrics
from adcvsr_core.checkpoint import load_student
from adcvsr_core.degradation import degrade
from adcvsr_core.errors import AdcvsrError
from adcvsr_core.student import Student

from .data import HELD_OUT_FILE, Corpus, draw_motion, render_motion, to_network
from .perceptual import STLPIPS, load_stlpips
from .validation import bicubic_frames, nearest_frames, run_student, strip

KINDS = ("clean", "h264_crf30", "noise10")
METHODS = ("bicubic", "model", "model_without_time")
# Of every clip these frames are compared by the (slow) perceptual network.
PERCEPTUAL_FRAMES = (1, 6, 10)


@dataclass(frozen=True)
class Clip:
    """One held-out clip.

    Attributes:
        name: for the table.
        hr: [T,H,W,3] in 0..1, on 8-bit levels.
        flow: [T-1,H,W,2] exact motion in pixels, None for the film.
    """

    name: str
    hr: Tensor
    flow: Tensor | None


def held_out_clips(data: Path) -> list[Clip]:
    """Return the fixed clips: the film's, then the photographs'."""
    listed = json.loads(HELD_OUT_FILE.read_text())
    chosen = listed["evaluation"]
    corpus = Corpus(data, "heldout")
    num_frames, size, (y, x) = chosen["num_frames"], chosen["size"], chosen["film_corner"]
    clips = []
    for name, start in chosen["film"].items():
        frames = corpus.film[start : start + num_frames, y : y + size, x : x + size]
        clips.append(Clip(f"film {name}", torch.from_numpy(np.ascontiguousarray(frames)).float() / 255, None))
    for index, name in enumerate(listed["photographs"]):
        photo = corpus.photographs[name]
        # Of six paths the one with most detail: the others show sky or blur, where every method is alike.
        rng = np.random.default_rng((chosen["photograph_seed"], index, chosen["photograph_paths"][name]))
        motion = draw_motion(rng, num_frames, (size, size), photo.shape[:2])
        hr = render_motion(photo, motion).mul(255).round() / 255
        flow = torch.from_numpy(np.stack([motion.flow(t) for t in range(num_frames - 1)]))
        clips.append(Clip(f"photograph {name}", hr, flow))
    return clips


@torch.no_grad()
def measure(sr: Tensor, clip: Clip, distance: STLPIPS) -> dict[str, float]:
    """Return every metric of one result [T,H,W,3] in 0..1."""
    frames = list(PERCEPTUAL_FRAMES)
    scores = {
        "y_psnr": metrics.psnr(sr, clip.hr).mean().item(),
        "ssim": metrics.ssim(sr, clip.hr).mean().item(),
        "stlpips_vgg": torch.stack([distance(to_network(sr[[f]]), to_network(clip.hr[[f]])) for f in frames])
        .mean()
        .item(),
        "flicker": metrics.flicker(sr, clip.hr).item(),
        "motion_energy": metrics.motion_energy_ratio(sr, clip.hr).item(),
    }
    if clip.flow is not None:
        scores["warping_error"] = metrics.warping_error(sr, clip.flow).item()
    return scores


def evaluate(
    student: Student, data: Path, out: Path | None = None, on_clip: Callable[[str], None] | None = None
) -> dict:
    """Measure a student on all clips.

    Args:
        student: float32, in eval mode.
        data: the prepared folder.
        out: folder for strips, None = none are made.
        on_clip: gets a line after every clip.

    Returns:
        {"clips": {kind: {clip: {method: scores}}}, "means": {kind: {method: scores}}, "temporal": {kind: differences}}
    """
    distance = load_stlpips(data, "vgg")
    clips = held_out_clips(data)
    result: dict = {"clips": {kind: {} for kind in KINDS}}
    for kind in KINDS:
        for index, clip in enumerate(clips):
            lr = degrade(clip.hr, kind, index)
            outputs = {
                "bicubic": bicubic_frames(lr),
                "model": run_student(student, lr, temporal_strength=1.0),
                "model_without_time": run_student(student, lr, temporal_strength=0.0),
            }
            scores = {method: measure(sr, clip, distance) for method, sr in outputs.items()}
            result["clips"][kind][clip.name] = scores
            if out is not None:
                _save_strip(out, kind, clip, lr, outputs)
            if on_clip is not None:
                gain = scores["model"]["y_psnr"] - scores["bicubic"]["y_psnr"]
                on_clip(f"{kind:11s} {clip.name:24s} {gain:+.2f} dB")
    result["means"] = {kind: _means(scores) for kind, scores in result["clips"].items()}
    result["temporal"] = {kind: _temporal_differences(scores) for kind, scores in result["clips"].items()}
    return result


def _means(scores: dict) -> dict[str, dict[str, float]]:
    means = {}
    for method in METHODS:
        rows = [clip[method] for clip in scores.values()]
        names = {name for row in rows for name in row}
        means[method] = {name: float(np.mean([row[name] for row in rows if name in row])) for name in sorted(names)}
    return means


def _temporal_differences(scores: dict) -> dict[str, dict[str, float]]:
    """With the temporal blocks minus without, clip by clip: mean and standard error."""
    differences = {}
    for name in ("y_psnr", "stlpips_vgg", "flicker"):
        values = np.array([clip["model"][name] - clip["model_without_time"][name] for clip in scores.values()])
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
        differences[name] = {"mean": float(values.mean()), "standard_error": error}
    return differences


def table(result: dict) -> str:
    """Return the means as a Markdown table."""
    lines = [
        "| input | method | Y-PSNR | SSIM | ST-LPIPS(VGG) | flicker | motion energy | warping error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, methods in result["means"].items():
        for method, row in methods.items():
            lines.append(
                f"| {kind} | {method.replace('_', ' ')} | {row['y_psnr']:.2f} | {row['ssim']:.4f} | "
                f"{row['stlpips_vgg']:.4f} | {row['flicker']:.3f} | {row['motion_energy']:.3f} | "
                f"{row.get('warping_error', float('nan')):.3f} |"
            )
    for kind, differences in result["temporal"].items():
        parts = [f"{name} {d['mean']:+.4f} ± {d['standard_error']:.4f}" for name, d in differences.items()]
        lines.append(f"\ntemporal blocks on minus off, {kind}: " + ", ".join(parts))
    return "\n".join(lines)


def _save_strip(out: Path, kind: str, clip: Clip, lr: Tensor, outputs: dict[str, Tensor]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    middle = lr.shape[0] // 2
    pictures = [nearest_frames(lr)[middle], outputs["bicubic"][middle], outputs["model"][middle], clip.hr[middle]]
    Image.fromarray(strip(pictures)).save(out / f"{kind}-{clip.name.replace(' ', '-')}.png")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description="Measure a model on held-out clips."
    )
    parser.add_argument("--model", default="default", help='a student.safetensors, or "default" for the bundled one')
    parser.add_argument("--data", type=Path, default=Path("bundled_data"), help="folder made by prepare_bundled_data")
    parser.add_argument("--out", type=Path, help="folder for evaluation.json and strips (LR | bicubic | model | HR)")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        student = load_student(options.model)
        result = evaluate(student, options.data, options.out, on_clip=lambda line: print(line, flush=True))
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(result))
    print(f"{time.monotonic() - started:.0f} s")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "evaluation.json").write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
