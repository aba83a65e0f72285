"""Attention in windows against whole frames and tiles: `python -m benchmarks.attention_windows --data bundled_data`.

Trained weights on held-out frames, larger than any that they were trained on: fidelity, visible edges, FLOPs. The seam
score is how much more the error jumps across the lines where windows or tiles meet than elsewhere, over the same of the
whole frame, which has no lines there: 1 = no seam.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adcvsr_core import UpscaleConfig, load_student, metrics, upscale
from adcvsr_core.attention import plan_windows
from adcvsr_core.config import StepConfig, StudentConfig
from adcvsr_core.cost import count_flops
from adcvsr_core.degradation import degrade
from adcvsr_core.errors import AdcvsrError
from adcvsr_core.tiling import plan_tiles
from training.recipes import get_recipe
from training.sources import open_source

from .tables import markdown

_COLUMNS = ["Y-PSNR clean", "Y-PSNR H.264", "difference from whole, levels", "seam score", "GFLOP a frame"]


def seam_score(error: Tensor, rows: list[int], columns: list[int]) -> float:
    """Return the mean jump of an error [T,H,W,3] across the given lines over the mean jump across all others.

    Args:
        error: SR minus HR.
        rows, columns: y and x of the first pixels behind each line; none at all gives NaN.
    """
    inside, outside = [], []
    for lines, dim in ((rows, 1), (columns, 2)):
        jumps = error.diff(dim=dim).abs().mean(dim=[d for d in range(4) if d != dim])
        at = torch.zeros(len(jumps), dtype=torch.bool)
        at[[line - 1 for line in lines]] = True
        inside.append(jumps[at])
        outside.append(jumps[~at])
    return (torch.cat(inside).mean() / torch.cat(outside).mean()).item()


def window_lines(size: int, window: int) -> list[int]:
    """Return where blocks of queries meet along an edge, in pixels of the output; levels below share these lines."""
    return [4 * queries[0] for queries, _ in plan_windows(size, window)[1:]]


def tile_lines(spans: tuple[tuple[int, int], ...]) -> list[int]:
    """Return where tiles begin and end along an edge, in pixels of the output."""
    return sorted({4 * edge for span in spans for edge in span} - {0, 4 * spans[-1][1]})


def variants(size: int) -> Iterator[tuple[str, UpscaleConfig, list[int]]]:
    """Yield names, settings and lines of everything that is compared, for square frames of `size` LR pixels."""
    alone = {"temporal_strength": 0.0, "cuts": 0.0}
    yield "whole frame", UpscaleConfig(attention_window=-1, **alone), []
    for edge in (128, 64, 32):
        if edge < size:
            yield (
                f"windows of {edge}",
                UpscaleConfig(attention_window=edge, **alone),
                window_lines(size, edge),
            )
    for edge in (128, 64, 32):
        if edge < size:
            grid = plan_tiles(size, size, edge, 0, 16)
            yield f"tiles of {edge}", UpscaleConfig(tile=edge, attention_window=-1, **alone), tile_lines(grid.row_spans)


def flops(config: StudentConfig, settings: UpscaleConfig, size: int) -> float:
    """Return the GFLOP of one frame."""
    if settings.tile:
        grid = plan_tiles(size, size, settings.tile, 0, 16)
        return len(grid.tiles) * count_flops(config, settings.tile, settings.tile, 0.0) / 1e9
    how = StepConfig(attention_window=max(0, settings.attention_window))
    return count_flops(config, size, size, 0.0, how) / 1e9


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_windows", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("bundled_data"), help="made by prepare_bundled_data")
    parser.add_argument("--model", default="default")
    parser.add_argument("--size", type=int, default=192, help="edge of the frames in LR pixels, a multiple of 16")
    parser.add_argument("--frames", type=int, default=8)
    options = parser.parse_args(arguments)
    try:
        student = load_student(options.model)
        source = open_source(options.data, get_recipe("bundled_2d").data, "heldout")
        clips = [
            source.draw_clip(np.random.default_rng(index), 1, 4 * options.size, video=False).frames
            for index in range(options.frames)
        ]
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows, wholes = {}, []
    for name, settings, lines in variants(options.size):
        scores = {"clean": [], "h264_crf30": []}
        differences, seams = [], []
        for index, hr in enumerate(clips):
            for kind, found in scores.items():
                sr = torch.cat(list(upscale([degrade(hr, kind, index)], student, settings)))
                found.append(metrics.psnr(sr, hr).mean().item())
                if kind == "clean":
                    if settings.attention_window == -1 and not settings.tile:
                        wholes.append(sr)
                    differences.append(255 * (sr - wholes[index]).abs().mean().item())
                    own, free = (seam_score(each - hr, lines, lines) for each in (sr, wholes[index]))
                    seams.append(own / free if lines else 1.0)
        values = [*(np.mean(found) for found in scores.values()), np.mean(differences), np.mean(seams)]
        values.append(flops(student.config, settings, options.size))
        rows[name] = [f"{value:.3f}" for value in values]
        print(name, *rows[name], flush=True, file=sys.stderr)
    print(f"model {options.model}, {options.frames} held-out frames of {options.size}x{options.size}")
    print(markdown(_COLUMNS, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
