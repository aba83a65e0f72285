"""Tiles that share their GroupNorms' statistics against tiles that do not: `python -m benchmarks.tiling`.

Frames of the bundled clip through a network with GroupNorms, whole and in tiles: alone, with statistics from a sample
of the frame, as the engine does it, from the frame shrunk into a tile, and, as a bound that no tiled run can afford,
with those of the whole frame.
What then is left is what attention and convolutions miss beyond a tile. The random network shows the mechanism and says
nothing about pictures; nobody has published weights with norms for this family, so a model has to be trained for more
(`python -m benchmarks.architectures --only "group norm"` makes a small one).

- error: mean |tiled - whole|, in levels of 255.
- colour shift: mean over tiles and channels of |mean of (tiled - whole) over the tile|, in levels of 255.
- seam score: the mean step between neighbouring pixels across the lines where tiles begin or end, over the mean step 2
  to 4 pixels beside them, divided by the same ratio of the whole frame, which has no lines there: 1 = no seam. Steps at
  and beside block borders are how Wang, Sheikh and Bovik measure blocking ("No-reference perceptual quality assessment
  of JPEG compressed images", ICIP 2002); the division takes the picture's own edges out.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from adcvsr_core import Student, StudentConfig, load_student
from adcvsr_core.color import resize
from adcvsr_core.errors import AdcvsrError, ConfigError
from adcvsr_core.norms import NormStatistics, lending, noting
from adcvsr_core.tiling import TileGrid, plan_tiles
from adcvsr_core.video import read_video

from .attention_windows import tile_lines
from .tables import markdown

_CLIP = Path(__file__).resolve().parent.parent / "adcvsr_core" / "samples" / "demo.mp4"
_COLUMNS = ["error", "colour shift", "seam score", "seconds"]
_RANDOM = StudentConfig(
    channels=(16, 32, 32, 32),
    layers=1,
    heads=(0, 2, 4, 0),
    mid_heads=4,
    decoder_channels=(16, 16, 32, 32),
    decoder_layers=1,
    decoder_attention=False,
    norm_groups=8,
)


def seam_score(frames: Tensor, rows: list[int], columns: list[int]) -> float:
    """Return the mean step across lines over the mean step beside them.

    Args:
        frames: [T,H,W,3].
        rows, columns: y and x of the first pixels behind each line, 4 or more from the frame's edges; at least one.
    """
    at, beside = [], []
    for lines, dim in ((rows, 1), (columns, 2)):
        steps = frames.diff(dim=dim).abs().mean(dim=[d for d in range(4) if d != dim])
        for line in lines:
            at.append(steps[line - 1])
            beside += [steps[line - 1 + offset] for offset in (-4, -3, -2, 2, 3, 4)]
    return float(torch.stack(at).mean() / torch.stack(beside).mean())


def colour_shift(error: Tensor, grid: TileGrid, scale: int) -> float:
    """Return the mean over tiles, frames and channels of |mean error over the tile|, for an error [T,H,W,3]."""
    parts = (error[:, slice(*_scaled(t.rows, scale)), slice(*_scaled(t.columns, scale))] for t in grid.tiles)
    return float(torch.stack([part.mean(dim=(1, 2)).abs() for part in parts]).mean())


def run_tiles(student: Student, lr: Tensor, grid: TileGrid, noted: NormStatistics | None) -> Tensor:
    """Upscale a clip [1,T,3,H,W] in tiles, with lent statistics or each tile alone; returns [T,4H,4W,3] in 0..1."""
    canvas = torch.zeros(lr.shape[1], 3, *(student.scale * size for size in lr.shape[3:]))
    for tile in grid.tiles:
        if noted is None:
            part = student(tile.of(lr))
        else:
            with lending(student, noted):
                part = student(tile.of(lr))
        grid.add(canvas, tile, part[0], student.scale)
    return _pictures(canvas)


def shrunk(lr: Tensor, grid: TileGrid) -> Tensor:
    """Return a clip [1,T,3,H,W] so small that it fits into a tile, its edges multiples of 16."""
    factor = min(edge / size for edge, size in zip(grid.tile_size, lr.shape[3:], strict=True))
    return resize(lr[0], *(max(16, round(size * factor / 16) * 16) for size in lr.shape[3:]))[None]


@torch.no_grad()
def compare(student: Student, lr: Tensor, tile: int) -> dict[str, list[str]]:
    """Return a row of `_COLUMNS` for every way to tile a clip [1,T,3,H,W] in [-1, 1]."""
    grid = plan_tiles(*lr.shape[3:], tile, 0, student.multiple_of)
    if len(grid.tiles) == 1:
        raise ConfigError(f"tile {tile} covers frames of {lr.shape[4]}x{lr.shape[3]}; choose a smaller tile")
    with noting(student) as exact:
        whole = _pictures(student(lr)[0])
    lenders = {
        "alone": None,
        "from a sample": grid.sample(lr, student.multiple_of),
        "from the shrunk frame": shrunk(lr, grid),
    }
    rows, columns = (tile_lines(spans) for spans in (grid.row_spans, grid.column_spans))
    own = seam_score(whole, rows, columns)
    table = {}
    for name, lender in (lenders | {"from the whole frame": lr}).items():
        started, noted = time.perf_counter(), None
        if lender is lr:
            noted = exact
        elif lender is not None:
            with noting(student) as noted:
                student(lender)
        made = run_tiles(student, lr, grid, noted)
        taken, error = time.perf_counter() - started, 255 * (made - whole)
        values = [error.abs().mean(), colour_shift(error, grid, student.scale), seam_score(made, rows, columns) / own]
        table[name] = [*(f"{float(value):.4f}" for value in values), f"{taken:.2f}"]
    return table


def _pictures(sr: Tensor) -> Tensor:
    return ((sr + 1) / 2).permute(0, 2, 3, 1)


def _scaled(span: tuple[int, int], scale: int) -> tuple[int, int]:
    return span[0] * scale, span[1] * scale


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiling", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="weights with GroupNorms; a small random network without")
    parser.add_argument("--tiles", type=int, nargs="+", default=[96, 64], help="edges in LR pixels")
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="try the command in seconds; its figures mean nothing")
    options = parser.parse_args(arguments)
    height, width = (32, 48) if options.tiny else (144, 192)
    tiles = [32] if options.tiny else options.tiles
    try:
        torch.manual_seed(0)
        student = load_student(options.model) if options.model else Student(_RANDOM).eval()
        if student.config.norm != "group":
            raise ConfigError(f"{options.model} has no GroupNorm, so its tiles have nothing to share")
        with read_video(_CLIP, chunk=options.frames) as reader:
            clip = next(iter(reader))[:, :height, :width]
        results = {tile: compare(student, clip.permute(0, 3, 1, 2)[None] * 2 - 1, tile) for tile in tiles}
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.model or 'random weights'}, {options.frames} frames of {width}x{height}")
    for tile, rows in results.items():
        print(f"\ntiles of {tile}\n")
        print(markdown(_COLUMNS, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
