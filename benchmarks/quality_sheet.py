"""Crops of what `benchmarks.quality` drew, side by side under names: the picture in docs/quality.md.

    python -m benchmarks.quality_sheet runs/quality --out docs/images/quality.jpg

Reads the strips of a run with four models of ours, both ends of `default` and of `nano` in this order; knows nothing
about how they were made.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# The strips' columns, in their order; None = not shown.
COLUMNS = (
    "low resolution",
    "bicubic",
    None,
    "animevideov3",
    "x4plus",
    "RealSR-DF2K",
    "fidelity 1",
    "fidelity 0",
    "nano, fidelity 1",
    None,
    "truth",
)
# strip -> top and left of the crop. Where ours does well and where it does not; the film and our own text alone, for
# the other sources' licences do not let their frames be shown here.
ROWS = {
    "clean-film-bird": (20, 60),
    "clean-film-butterfly": (70, 60),
    "clean-text": (20, 20),
    "clean-film-grass": (90, 60),
    "h264_crf30-film-squirrel": (40, 60),
}
_EDGE, _GAP, _LINE, _HEAD = 128, 3, 4, 18


def sheet(strips: Path) -> Image.Image:
    """Return the picture; strips that are not there are left out."""
    rows = {strips / f"{name}.png": place for name, place in ROWS.items() if (strips / f"{name}.png").exists()}
    shown = [index for index, name in enumerate(COLUMNS) if name]
    step = _EDGE + _GAP
    picture = Image.new("RGB", (len(shown) * step - _GAP, _HEAD + len(rows) * step - _GAP), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for column, index in enumerate(shown):
        draw.text((column * step + 2, 1), COLUMNS[index], "black", font)
    for row, (path, (top, left)) in enumerate(rows.items()):
        strip = Image.open(path)
        width = (strip.width - (len(COLUMNS) - 1) * _LINE) // len(COLUMNS)
        for column, index in enumerate(shown):
            x = index * (width + _LINE) + left
            picture.paste(strip.crop((x, top, x + _EDGE, top + _EDGE)), (column * step, _HEAD + row * step))
    return picture


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality_sheet", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="what benchmarks.quality wrote")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    options = parser.parse_args(arguments)
    strips = options.run / "strips"
    if not strips.is_dir():
        print(f"error: {strips} is no folder; expected the output of benchmarks.quality", file=sys.stderr)
        return 1
    sheet(strips).save(options.out, quality=92, subsampling=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
