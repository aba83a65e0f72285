"""The clips of the quality benchmark: ten of 12 frames from five sources, and how they are damaged.

    film           four shots of the film, held out          text     lines of words that drift over the frame
    photographs    three in known motion, held out           carphone, bikes    two short films, never trained on

Of the first two, other shots and photographs were trained on; of the rest nothing was. Knows nothing about methods.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from adcvsr_core.errors import InputError
from adcvsr_core.video import read_video
from training.sources import HELD_OUT_FILE
from training.testsets import HELD_OUT_KINDS, held_out_pairs

NUM_FRAMES = 12
CONDITIONS = ("clean", "h264_crf30", "light", "noise10", "realbasicvsr", "film", "aigen")
UNSEEN = ("carphone", "bikes", "text")
_FILM = ("bird", "butterfly", "squirrel", "grass")
_PHOTOGRAPHS = ("Bridge", "Kleiber", "ColorfulCups")
# name -> (first frame, times smaller, (top, left), (height, width)); frames lie in the middle of each film.
_FILES = {"carphone": (40, 1, (0, 8), (144, 160)), "bikes": (100, 2, (4, 64), (128, 192))}
_FONT_SIZES = (24, 28, 34, 42, 54)  # HR pixels: 6 to 13 LR pixels from the top of an f to the foot of a g
_WORDS = ("Quartz", "jumps", "over", "lazy", "frozen", "wagons", "while", "4817", "boxes", "GLIDE", "past", "Kyoto")
_FINE = 4  # the text moves in quarters of a pixel
_DRIFT = (3, 1)  # of those, x and y, a frame


@dataclass(frozen=True)
class Line:
    """A line of text in every frame.

    Attributes:
        text: what it says.
        boxes: (left, top, right, bottom) in HR pixels, a frame each.
    """

    text: str
    boxes: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, eq=False)
class QualityClip:
    """One clip as it should be.

    Attributes:
        source: one of the five.
        name: of the clip in its source.
        hr: [T,H,W,3] in 0..1 on 8-bit levels.
        flow: exact motion [T-1,H,W,2] in pixels, None = not known.
        lines: text to read in it.
    """

    source: str
    name: str
    hr: Tensor
    flow: Tensor | None = None
    lines: tuple[Line, ...] = ()


def quality_clips(data: Path) -> list[QualityClip]:
    """Return the ten clips.

    Args:
        data: folder of `prepare_bundled_data` and `prepare_benchmark_data`.

    Raises:
        InputError: something is missing there.
    """
    first = HELD_OUT_KINDS[0]
    held_out = {pair.name: pair for pair in held_out_pairs(data) if pair.group == first}
    wanted = [("film", f"film {name}") for name in _FILM]
    wanted += [("photographs", f"photograph {name}") for name in _PHOTOGRAPHS]
    clips = [QualityClip(source, name, held_out[name].hr, held_out[name].flow) for source, name in wanted]
    return [*clips, *(_read_file(data, name) for name in _FILES), text_clip()]


def frame_size() -> int:
    """Return the edge of the held-out clips."""
    return json.loads(HELD_OUT_FILE.read_text())["evaluation"]["size"]


def _read_file(data: Path, name: str) -> QualityClip:
    path = data / "clips" / f"{name}.mp4"
    if not path.exists():
        raise InputError(f"{path} is missing; fetch it with `python -m training.prepare_benchmark_data`")
    start, smaller, (top, left), (height, width) = _FILES[name]
    with read_video(path, chunk=1) as reader:
        frames = torch.cat(list(itertools.islice(reader, start, start + NUM_FRAMES)))
    if smaller > 1:  # which takes most of the file's own compression away
        frames = torch.nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2), smaller).permute(0, 2, 3, 1)
    frames = frames[:, top : top + height, left : left + width]
    return QualityClip(name, name, frames.mul(255).round() / 255)


def text_clip() -> QualityClip:
    """Draw lines of several sizes, dark on light and light on dark, that drift by fractions of a pixel a frame."""
    size = frame_size()
    room = [size + -(-NUM_FRAMES * step // _FINE) for step in _DRIFT]
    canvas = Image.new("RGB", tuple(_FINE * edge for edge in room), (236, 232, 222))
    draw = ImageDraw.Draw(canvas)
    words, places, top = list(_WORDS), [], 4
    for index, font_size in enumerate(_FONT_SIZES):
        font = ImageFont.load_default(_FINE * font_size)
        text = words.pop(0)
        while words and draw.textlength(f"{text} {words[0]}", font) < _FINE * (size - 16):
            text += f" {words.pop(0)}"
        height = round(1.2 * font_size)
        if index % 2:
            draw.rectangle((0, _FINE * top, canvas.width, _FINE * (top + height)), (38, 44, 66))
        draw.text((_FINE * 12, _FINE * top), text, (240, 236, 200) if index % 2 else (30, 26, 34), font)
        places.append((text, draw.textbbox((_FINE * 12, _FINE * top), text, font)))
        top += height + 4
    frames, corners = [], []
    for t in range(NUM_FRAMES):
        x, y = (t * step for step in _DRIFT)
        picture = canvas.crop((x, y, x + _FINE * size, y + _FINE * size)).reduce(_FINE)
        frames.append(torch.from_numpy(np.array(picture)))
        corners.append((x, y))
    lines = tuple(Line(text, tuple(_placed(box, corner, size) for corner in corners)) for text, box in places)
    flow = torch.tensor([-step / _FINE for step in _DRIFT]).expand(NUM_FRAMES - 1, size, size, 2)
    return QualityClip("text", "text", torch.stack(frames).float() / 255, flow, lines)


def _placed(box: tuple[float, ...], corner: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    """Return where a box of the canvas is in a frame, with a margin of three pixels."""
    left, top, right, bottom = (round((value - corner[i % 2]) / _FINE) for i, value in enumerate(box))
    return max(0, left - 3), max(0, top - 3), min(size, right + 3), min(size, bottom + 3)
