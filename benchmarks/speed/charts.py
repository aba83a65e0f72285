"""Line and bar charts as one PNG, drawn with Pillow alone. Knows nothing about what they show."""

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT = 560, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 64, 56  # margins around the plot
_COLORS = ("#1f6feb", "#d1570e", "#2e8b57", "#8250df", "#b02a37", "#6e7781")
_TICKS = 5
_BAR, _PITCH = 20, 34
_ROOM = 1.06


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Curves over one another; both axes begin at 0, or both are logarithmic.

    Attributes:
        title, x, y: texts.
        curves: name -> points (x, y), finite, above 0 where logarithmic.
        logarithmic: whether equal distances are equal ratios.
    """

    title: str
    x: str
    y: str
    curves: dict[str, list[tuple[float, float]]]
    logarithmic: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Horizontal bars, each with its number; `bars`: name -> value of at least 0."""

    title: str
    x: str
    bars: dict[str, float]


def draw_charts(charts: list[Lines | Bars], path: Path) -> None:
    """Draw charts side by side and save them."""
    height = max(_height(chart) for chart in charts)
    picture = Image.new("RGB", (_WIDTH * len(charts), height), "white")
    for index, chart in enumerate(charts):
        panel = Image.new("RGB", (_WIDTH, height), "white")
        (_draw_lines if isinstance(chart, Lines) else _draw_bars)(ImageDraw.Draw(panel), chart)
        picture.paste(panel, (_WIDTH * index, 0))
    picture.save(path, optimize=True)


def _height(chart: Lines | Bars) -> int:
    return _HEIGHT if isinstance(chart, Lines) else _TOP + _PITCH * len(chart.bars) + _BOTTOM


class _Axis:
    """Values to places between two pixels, with a little room beyond the last."""

    def __init__(self, values: list[float], begin: int, end: int, logarithmic: bool):
        self.begin, self.end, self.logarithmic = begin, end, logarithmic
        self.low = min(values) / _ROOM if logarithmic else 0.0
        self.high = max(values) * _ROOM if max(values) > self.low else self.low + 1
        self.ticks = _round_numbers(self.low, self.high) if logarithmic else _steps(self.high)

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.begin + (self.end - self.begin) * (value - low) / (high - low)


def _steps(high: float) -> list[float]:
    """Return round numbers from 0 to `high`."""
    rough = high / _TICKS
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    return [step * index for index in range(int(high / step + 1e-9) + 1)]


def _round_numbers(low: float, high: float) -> list[float]:
    """Return what lies between two values of ..., 0.1, 0.2, 0.5, 1, 2, 5, 10, ..."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    numbers = (factor * 10.0**power for power in powers for factor in (1, 2, 5))
    return [number for number in numbers if low <= number <= high]


def _draw_lines(draw: ImageDraw.ImageDraw, chart: Lines) -> None:
    font = ImageFont.load_default(12)
    points = [point for curve in chart.curves.values() for point in curve]
    across = _Axis([x for x, _ in points], _LEFT, _WIDTH - _RIGHT, chart.logarithmic)
    upwards = _Axis([y for _, y in points], _HEIGHT - _BOTTOM, _TOP, chart.logarithmic)
    for tick in dict.fromkeys(x for x, _ in points) if chart.logarithmic else across.ticks:
        draw.line([(across.place(tick), _TOP), (across.place(tick), _HEIGHT - _BOTTOM)], fill="#e6e6e6")
        draw.text((across.place(tick), _HEIGHT - _BOTTOM + 6), f"{tick:g}", fill="black", font=font, anchor="mt")
    for tick in upwards.ticks:
        draw.line([(_LEFT, upwards.place(tick)), (_WIDTH - _RIGHT, upwards.place(tick))], fill="#e6e6e6")
        draw.text((_LEFT - 6, upwards.place(tick)), f"{tick:g}", fill="black", font=font, anchor="rm")
    for index, (name, curve) in enumerate(chart.curves.items()):
        color, places = _COLORS[index % len(_COLORS)], [(across.place(x), upwards.place(y)) for x, y in curve]
        draw.line(places, fill=color, width=2)
        for x, y in places:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
        draw.text((_WIDTH - _RIGHT - 8, _TOP + 6 + 16 * index), name, fill=color, font=font, anchor="ra")
    _draw_texts(draw, chart, chart.y)


def _draw_bars(draw: ImageDraw.ImageDraw, chart: Bars) -> None:
    font = ImageFont.load_default(12)
    left = _LEFT + 110  # names are longer than numbers
    across = _Axis([*chart.bars.values(), 0.0], left, _WIDTH - _RIGHT - 60, False)
    for index, (name, value) in enumerate(chart.bars.items()):
        middle = _TOP + _PITCH * index + _PITCH // 2
        box = (left, middle - _BAR // 2, max(left + 1, across.place(value)), middle + _BAR // 2 - 1)
        draw.rectangle(box, fill=_COLORS[index % len(_COLORS)])
        draw.text((left - 8, middle), name, fill="black", font=font, anchor="rm")
        draw.text((box[2] + 6, middle), f"{value:.3g}", fill="black", font=font, anchor="lm")
    _draw_texts(draw, chart, "")


def _draw_texts(draw: ImageDraw.ImageDraw, chart: Lines | Bars, y: str) -> None:
    small = ImageFont.load_default(13)
    draw.text((_LEFT, 12), chart.title, fill="black", font=ImageFont.load_default(16))
    draw.text((_LEFT, _TOP - 20), y, fill="#555555", font=small)
    middle = ((_LEFT + _WIDTH - _RIGHT) / 2, _height(chart) - 24)
    draw.text(middle, chart.x, fill="#555555", font=small, anchor="mt")
