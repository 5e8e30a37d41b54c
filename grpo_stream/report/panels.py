"""Histograms, bars and heat maps as pixels: panels on one sheet, crisp on dense screens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from grpo_stream.report.style import GROUND, HINT, INK, LINE, PALE, PAPER, RULE
from grpo_stream.report.text import drawable, font, wrap

SCALE = 2
"""Pixels of a picture to one of a plain screen; all measures below are of the plain screen."""

_WIDTH, _HEIGHT, _GAP = 400, 270, 14
_LEFT, _RIGHT, _TOP, _BOTTOM = 18, 18, 62, 34  # around a panel's plot
_TITLE, _TEXT = 15, 12


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet."""

    title: str
    note: str
    """What is to be known of it, in a few words below the title."""
    draw: Callable[["Pen"], None]
    """Draws the plot into the pen's area."""


class Pen:
    """Draws into the plot area of one panel, in pixels of a plain screen from its corner."""

    def __init__(self, draw: ImageDraw.ImageDraw, left: float, top: float) -> None:
        self._draw = draw
        self._left, self._top = left, top
        self.width = _WIDTH - _LEFT - _RIGHT
        self.height = _HEIGHT - _TOP - _BOTTOM

    def rectangle(
        self, x1: float, y1: float, x2: float, y2: float, fill: tuple[int, int, int]
    ) -> None:
        """Fills an area, ends exclusive; at least a pixel of the picture."""
        left, top = (round(SCALE * n) for n in (self._left + x1, self._top + y1))
        right, bottom = (round(SCALE * n) for n in (self._left + x2, self._top + y2))
        self._draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        anchor: str = "la",
        fill: tuple[int, int, int] = PALE,
        size: int = _TEXT,
    ) -> None:
        """Writes ``words``; ``anchor`` is Pillow's (``la``: left, top of the line)."""
        at = (SCALE * (self._left + x), SCALE * (self._top + y))
        self._draw.text(at, drawable(words), fill, font(SCALE * size), anchor)


def sheet(title: str, lead: str, panels: Sequence[Panel], columns: int = 3) -> Image.Image:
    """``panels`` in rows under a heading, twice as large as on a plain screen."""
    rows = -(-len(panels) // columns)
    head = 84
    width = _GAP + columns * (_WIDTH + _GAP)
    image = Image.new("RGB", (SCALE * width, SCALE * (head + rows * (_HEIGHT + _GAP))), GROUND)
    draw = ImageDraw.Draw(image)
    for y, words, size, fill in ((18, title, 24, INK), (52, lead, 14, PALE)):
        (line,) = wrap(words, SCALE * size, SCALE * (width - 2 * _GAP), 1)
        draw.text((SCALE * _GAP, SCALE * y), line, fill, font(SCALE * size))
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        left, top = _GAP + column * (_WIDTH + _GAP), head + row * (_HEIGHT + _GAP)
        edge = (left, top, left + _WIDTH, top + _HEIGHT)
        draw.rounded_rectangle([SCALE * n for n in edge], SCALE * 9, PAPER, RULE, SCALE)
        pen = Pen(draw, left + _LEFT, top + _TOP)
        pen.text(0, 14 - _TOP, panel.title, fill=INK, size=_TITLE)
        (note,) = wrap(panel.note, SCALE * _TEXT, SCALE * pen.width, 1)
        pen.text(0, 35 - _TOP, note)
        panel.draw(pen)
    return image


def histogram(
    title: str,
    note: str,
    counts: Sequence[int],
    ends: tuple[float, float],
    mark: float | None = None,
) -> Panel:
    """Bars over a logarithmic axis.

    Args:
        title: What is counted.
        note: Below the title.
        counts: Of equal steps of the logarithm; empty for no data.
        ends: Values where the first step starts and the last one ends, above 0.
        mark: A value that a line points out.
    """

    def draw(pen: Pen) -> None:
        if not counts:
            pen.text(pen.width / 2, pen.height / 2, "none", "mm")
            return
        low, high = (math.log(end) for end in ends)
        pen.text(pen.width, -3, f"{max(counts):,}", "rb")
        pen.rectangle(0, 0, pen.width, 0.5, RULE)
        step = pen.width / len(counts)
        for number, count in enumerate(counts):
            tall = pen.height * count / max(counts)
            gap = min(1.0, step / 5)
            if count:
                top = pen.height - max(tall, 1)
                pen.rectangle(number * step, top, (number + 1) * step - gap, pen.height, LINE)
        pen.rectangle(0, pen.height, pen.width, pen.height + 1, PALE)
        for value in _log_ticks(*ends):
            x = pen.width * (math.log(value) - low) / (high - low)
            pen.rectangle(x, pen.height, x + 0.5, pen.height + 5, PALE)
            anchor = "la" if x < 12 else "ra" if x > pen.width - 12 else "ma"
            pen.text(x, pen.height + 8, _short(value), anchor)
        if mark is not None and ends[0] <= mark <= ends[1]:
            x = pen.width * (math.log(mark) - low) / (high - low)
            pen.rectangle(x - 0.5, -2, x + 1, pen.height, HINT)

    return Panel(title, note, draw)


def bars(title: str, note: str, rows: Sequence[tuple[str, int]], total: int) -> Panel:
    """Horizontal bars, one for each of at most seven words; further ones are added up.

    Args:
        title: What is counted.
        note: Below the title.
        rows: Word and count, the largest first.
        total: What the shares are of.
    """
    shown = list(rows[:7])
    if len(rows) > 7:
        rest = sum(count for _, count in rows[6:])
        shown = [*rows[:6], (f"{len(rows) - 6} others", rest)]

    def draw(pen: Pen) -> None:
        if not shown:
            pen.text(pen.width / 2, pen.height / 2, "none", "mm")
            return
        most = max(1, *(count for _, count in shown))
        step = min(28.0, (pen.height + 20) / len(shown))
        left, right = 128, pen.width - 92
        for number, (word, count) in enumerate(shown):
            y = number * step
            (label,) = wrap(word, SCALE * _TEXT, SCALE * (left - 8), 1)
            pen.text(0, y + step / 2, label, "lm", INK)
            end = left + (right - left) * count / most
            pen.rectangle(left, y + step * 0.22, max(end, left + 1), y + step * 0.78, LINE)
            share = f"{count:,}  {count / total:.0%}" if total else f"{count:,}"
            pen.text(pen.width, y + step / 2, share, "rm")

    return Panel(title, note, draw)


def heat_map(title: str, note: str, cells: NDArray[np.int64]) -> Panel:
    """Counts on a grid, the darker the more.

    Args:
        title: What is counted.
        note: Below the title.
        cells: Shape (rows, columns); the first row is on top.
    """

    def draw(pen: Pen) -> None:
        rows, columns = cells.shape
        most = max(1, int(cells.max()))
        height = pen.height + 18
        pen.rectangle(-1, -1, pen.width + 1, height + 1, RULE)
        for row in range(rows):
            for column in range(columns):
                # Square root: a few crowded places would leave all others white.
                depth = math.sqrt(cells[row, column] / most)
                fill = _blend(PAPER, LINE, depth)
                x, y = pen.width * column / columns, height * row / rows
                pen.rectangle(
                    x, y, pen.width * (column + 1) / columns, height * (row + 1) / rows, fill
                )

    return Panel(title, note, draw)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values between two, about six: 1, 2, 5 times powers of ten, or powers alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(found) <= 7:
            return found
    return found[:: -(-len(found) // 7)]


def _short(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:g}"


def _blend(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue
