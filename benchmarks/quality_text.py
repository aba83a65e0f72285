"""How well a reader of characters reads an upscaled clip: 1 - edit distance / length, over lines whose place is known.

The reader is rapidocr's (PP-OCR v4, Apache-2.0), an optional package that brings its weights: `pip install
rapidocr-onnxruntime`. Knows nothing about methods.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from .quality_clips import Line

_EVERY = 3  # frames: neighbours read alike

Reader = Callable[[np.ndarray], str]


def make_reader() -> Reader | None:
    """Return a function from a picture [H,W,3] uint8 of one line to its text, or None where rapidocr is missing."""
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError:
        return None
    engine = RapidOCR()

    def read(picture: np.ndarray) -> str:
        found, _ = engine(picture[..., ::-1], use_det=False, use_cls=False, use_rec=True)
        return found[0][0] if found else ""

    return read


def accuracy(frames: Tensor, lines: tuple[Line, ...], read: Reader) -> float:
    """Read the lines in every third frame.

    Args:
        frames: [T,H,W,3] in 0..1.
        lines: what is written where.
        read: from `make_reader`.

    Returns:
        the share of characters that are right, 0 to 1; spaces do not count.
    """
    wrong = total = 0
    for t in range(0, len(frames), _EVERY):
        for line in lines:
            left, top, right, bottom = line.boxes[t]
            picture = frames[t, top:bottom, left:right].mul(255).round().byte().numpy()
            text = line.text.replace(" ", "")
            wrong += min(len(text), edit_distance(read(picture).replace(" ", ""), text))
            total += len(text)
    return 1 - wrong / total


def edit_distance(a: str, b: str) -> int:
    """Return how many characters must be put in, taken out or changed to turn one text into the other."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (letter != other))
    return row[-1]
