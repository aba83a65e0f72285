"""Pages of text to train on: words in many faces, sizes and colours, on flat ground and over photographs.

Networks that saw only pictures mangle letters. Pages are drawn at twice their size and halved, as photographs are, and
serve as photographs: a camera moves over them. Knows nothing about files but the fonts it is given.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = (720, 1280)  # height and width of a page
_FINE = 2
# Letters about as often as in English.
_LETTERS = "eeeeeeeeeeeetttttttttaaaaaaaaooooooooiiiiiiinnnnnnnsssssshhhhhhrrrrrrddddllllcccuuummmwwffggyyppbbvkjxqz"
_ENDS = ("", "", "", "", ",", ".", "!", "?", ":", "-", ";", "%", ")", "\N{RIGHT DOUBLE QUOTATION MARK}")


def draw_page(seed: int, fonts: Sequence[Path], backgrounds: Sequence[np.ndarray]) -> np.ndarray:
    """Draw one page.

    Args:
        seed: all randomness.
        fonts: TrueType files.
        backgrounds: photographs [H,W,3] uint8; a third of the pages lie over a piece of one.

    Returns:
        [720,1280,3] uint8.
    """
    rng = np.random.default_rng(seed)
    height, width = (_FINE * edge for edge in SIZE)
    page = Image.new("RGB", (width, height), _color(rng))
    if len(backgrounds) and rng.random() < 1 / 3:
        photo = Image.fromarray(backgrounds[int(rng.integers(len(backgrounds)))])
        page = photo.resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(_FINE * 2))
    top = 0
    while top < height:
        # 18 to 84 pixels high: at a quarter of that, smaller ones are past reading. Large lines fill more of a page: by
        # 1 / size^2 each octave of sizes gets as much of it.
        size = round(_FINE / rng.uniform(1 / 84, 1 / 18))
        font = ImageFont.truetype(str(fonts[int(rng.integers(len(fonts)))]), size)
        top += _draw_line(page, rng, font, top)
    return np.asarray(page.reduce(_FINE))


def _draw_line(page: Image.Image, rng: np.random.Generator, font: ImageFont.FreeTypeFont, top: int) -> int:
    """Draw words from the left to the right edge; returns the line's height."""
    draw, width = ImageDraw.Draw(page), page.width
    height = round(font.size * rng.uniform(1.15, 1.5))
    if rng.random() < 0.5:  # a ground of its own
        draw.rectangle((0, top, width, top + height), _color(rng))
    under = np.asarray(page.crop((0, top, width, top + height))).mean((0, 1))
    color = _apart(rng, under)
    outline = {"stroke_width": max(1, font.size // 24), "stroke_fill": _apart(rng, np.array(color))}
    style = outline if rng.random() < 0.25 else {}
    x = int(rng.integers(0, 2 * font.size))
    while x < width:
        word = _word(rng)
        draw.text((x, top), word, font=font, fill=color, **style)
        x += round(draw.textlength(f"{word} ", font))
        if rng.random() < 0.1:
            color = _apart(rng, under)
    return height


def _word(rng: np.random.Generator) -> str:
    if rng.random() < 0.2:
        return str(int(10 ** rng.uniform(0, 6)))
    word = "".join(rng.choice(list(_LETTERS), int(rng.integers(1, 11))))
    word = word.upper() if rng.random() < 0.2 else word.capitalize() if rng.random() < 0.3 else word
    return word + _ENDS[int(rng.integers(len(_ENDS)))]


def _color(rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw a colour; a third of them are grey, and most are rather light or dark."""
    value = rng.beta(0.6, 0.6) * 255
    spread = 0.0 if rng.random() < 1 / 3 else 70.0
    return tuple(int(v) for v in np.clip(value + rng.normal(0, 1, 3) * spread, 0, 255))


def _apart(rng: np.random.Generator, under: np.ndarray) -> tuple[int, int, int]:
    """Draw a colour that can be told from another."""
    for _ in range(50):
        color = _color(rng)
        if abs(float(np.mean(np.array(color) - under))) > 60:
            return color
    return (255, 255, 255) if under.mean() < 128 else (0, 0, 0)
