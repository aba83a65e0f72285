"""The drawn pages that a prepared folder holds: which there are, and the drawing of those that are missing.

    fonts/*.ttf                                    the faces that text is drawn with
    photographs/page-NNN.npy, lines-NN.npy         the pages

Knows nothing about where fonts and photographs come from.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .array_files import save_array
from .pages import draw_line_page, draw_page

_TEXT = {f"page-{number:03d}": number for number in range(108)}
_LINES = {f"lines-{number:02d}": 1000 + number for number in range(36)}
# Names by the seeds that they are drawn from.
PAGES = {**_TEXT, **_LINES}


def draw_missing_pages(data: Path, pages: Sequence[str], photographs: Sequence[str]) -> None:
    """Draw those of these pages that the folder does not hold yet.

    Args:
        data: the folder, with fonts and photographs.
        pages: names out of `PAGES`.
        photographs: names of those that pages may lie over; none that is held out.
    """
    folder = data / "photographs"
    fonts = sorted((data / "fonts").glob("*.ttf"))
    backgrounds = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in sorted(photographs)]
    for name in pages:
        path = folder / f"{name}.npy"
        if not path.exists():
            seed = PAGES[name]
            page = draw_page(seed, fonts, backgrounds) if name in _TEXT else draw_line_page(seed, backgrounds)
            save_array(path, page)
