"""Pages to train on: text in many faces, sizes and colours, and thin lines, on flat ground and over photographs.

Networks that saw only pictures mangle letters, and draw two cables as a rope. Pages are drawn larger than they are and
reduced, as photographs are, and serve as photographs: a camera moves over them. Knows nothing about files but the fonts
it is given.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = (720, 1280)  # height and width of a page
# How many times as large as the page it is drawn; lines, unlike letters, are drawn with hard edges.
_FINE, _FINE_LINES = 2, 4
# Letters about as often as in English.
_LETTERS = "eeeeeeeeeeeetttttttttaaaaaaaaooooooooiiiiiiinnnnnnnsssssshhhhhhrrrrrrddddllllcccuuummmwwffggyyppbbvkjxqz"
_ENDS = ("", "", "", "", ",", ".", "!", "?", ":", "-", ";", "%", ")", "\N{RIGHT DOUBLE QUOTATION MARK}")


def draw_page(seed: int, fonts: Sequence[Path], backgrounds: Sequence[np.ndarray]) -> np.ndarray:
    """Draw a page of text.

    Args:
        seed: all randomness.
        fonts: TrueType files.
        backgrounds: photographs [H,W,3] uint8; a third of the pages lie over a piece of one.

    Returns:
        [720,1280,3] uint8.
    """
    rng = np.random.default_rng(seed)
    page = _ground(rng, backgrounds, _FINE)
    height = page.height
    top = 0
    while top < height:
        # 18 to 84 pixels high: at a quarter of that, smaller ones are past reading. Large lines fill more of a page: by
        # 1 / size^2 each octave of sizes gets as much of it.
        size = round(_FINE / rng.uniform(1 / 84, 1 / 18))
        font = ImageFont.truetype(str(fonts[int(rng.integers(len(fonts)))]), size)
        top += _draw_line(page, rng, font, top)
    return np.asarray(page.reduce(_FINE))


def draw_line_page(seed: int, backgrounds: Sequence[np.ndarray]) -> np.ndarray:
    """Draw a page of thin lines side by side, straight or bent: cables, fences, blinds, masts.

    Args:
        seed: all randomness.
        backgrounds: photographs [H,W,3] uint8; a third of the pages lie over a piece of one.

    Returns:
        [720,1280,3] uint8.
    """
    rng = np.random.default_rng(seed)
    page = _ground(rng, backgrounds, _FINE_LINES)
    for _ in range(40):
        _draw_bundle(page, rng)
    return np.asarray(page.reduce(_FINE_LINES))


def _ground(rng: np.random.Generator, backgrounds: Sequence[np.ndarray], fine: int) -> Image.Image:
    """Return one colour, or a piece of a photograph out of focus, `fine` times as large as a page."""
    height, width = (fine * edge for edge in SIZE)
    page = Image.new("RGB", (width, height), _color(rng))
    if len(backgrounds) and rng.random() < 1 / 3:
        photo = Image.fromarray(backgrounds[int(rng.integers(len(backgrounds)))])
        page = photo.resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(fine * 2))
    return page


def _draw_bundle(page: Image.Image, rng: np.random.Generator) -> None:
    """Draw up to a dozen equal lines side by side in any direction, 1 to 6 pixels wide, 5 or more apart."""
    draw = ImageDraw.Draw(page)
    # Closer ones are past telling apart at a quarter of the size.
    line = np.exp(rng.uniform(0, np.log(6)))
    pitch = max(2 * line, 5) * np.exp(rng.uniform(0, np.log(4))) * _FINE_LINES
    angle, bend = rng.uniform(0, np.pi), float(rng.normal(0, 0.15)) * (rng.random() < 0.5)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    start = rng.uniform((0, 0), page.size)
    length = page.width * rng.uniform(0.1, 0.6)
    x = np.linspace(-0.5, 0.5, 24)[:, None]
    curve = start + length * (x * along + bend * (4 * x**2 - 1) * across)
    left, top = np.clip(curve.min(0), 0, np.array(page.size) - 1)
    right, bottom = np.clip(curve.max(0) + 1, np.array((left, top)) + 1, page.size)
    color = _apart(rng, np.asarray(page.crop((int(left), int(top), int(right), int(bottom)))).mean((0, 1)))
    for number in range(int(rng.integers(1, 13))):
        points = [tuple(point) for point in curve + number * pitch * across]
        draw.line(points, fill=color, width=round(line * _FINE_LINES), joint="curve")


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
