"""Curves and bars as SVG text: no script, no font, no file beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NewType

Svg = NewType("Svg", str)
"""SVG markup whose texts are escaped."""

# The page's own colours, light or dark; those behind the comma where a chart stands alone.
PALETTE = ("var(--line-1,#1d5fd1)", "var(--line-2,#c2571a)")
INK, PALE, GRID = "var(--ink,#1f2328)", "var(--pale,#667079)", "var(--rule,#e4e6e8)"
WIDTH, HEIGHT = 520, 280
"""Of a chart, in units that the page scales."""
_FONT = "font-family='system-ui,-apple-system,Segoe UI,Roboto,sans-serif'"
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 20, 46, 48


def line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1) -> str:
    """A straight stroke."""
    return (
        f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' "
        f"stroke='{colour}' stroke-width='{width}'/>"
    )


def text(
    x: float,
    y: float,
    words: str,
    anchor: str,
    *,
    size: int = 13,
    colour: str = PALE,
    bold: bool = False,
    more: str = "",
) -> str:
    """``words`` at a place; ``anchor`` is SVG's, ``more`` further attributes."""
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='{size}' "
        f"fill='{colour}'{weight} {more}>{escape(words)}</text>"
    )


def svg(title: str, description: str, body: str, height: float = HEIGHT) -> Svg:
    """A whole chart of :data:`WIDTH`: ``title`` above ``body``, ``description`` for readers."""
    heading = text(8, 24, title, "start", size=15, colour=INK, bold=True)
    return Svg(
        f"<svg viewBox='0 0 {WIDTH} {height:.0f}' role='img' {_FONT} "
        "xmlns='http://www.w3.org/2000/svg'>"
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{heading}{body}</svg>"
    )


@dataclass(frozen=True)
class Series:
    """A curve: ``ys`` over ``xs``, of equal length; NaN leaves a gap."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class Bar:
    """A share in [0, 1] and the ends of its interval."""

    label: str
    value: float
    low: float
    high: float


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    smooth: int = 1,
    y_range: tuple[float, float] | None = None,
) -> Svg:
    """One or two curves over common axes.

    Args:
        title: Said above the chart.
        series: One or two curves; points that are not finite are left out.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        smooth: Points averaged for the thick line (a centred mean, shorter at the ends); with more
            than 1 the points themselves are drawn pale under it.
        y_range: Values that the y axis spans at least.

    Raises:
        ValueError: not one or two series, or one with xs and ys of unequal length.
    """
    if not 1 <= len(series) <= len(PALETTE):
        raise ValueError(f"{len(series)} series: must be 1 or {len(PALETTE)}")
    curves = [_finite_points(one) for one in series]
    every = [point for curve in curves for point in curve]
    if not every:
        return svg(title, f"{title}: no data", text(WIDTH / 2, HEIGHT / 2, "no data", "middle"))
    x_ticks = ticks(min(x for x, _ in every), max(x for x, _ in every), 6)
    wanted = [*(y for _, y in every), *(y_range or ())]
    y_ticks = ticks(min(wanted), max(wanted), 6)
    axes = _Axes(
        (min(x for x, _ in every), max(x for x, _ in every)),
        (min(y_ticks[0], *wanted), max(y_ticks[-1], *wanted)),
    )
    body = [axes.frame(x_ticks, y_ticks, x_label, y_label)]
    said = []
    for one, curve, colour in zip(series, curves, PALETTE, strict=False):
        if not curve:
            continue
        mean = _moving_mean(curve, smooth)
        if smooth > 1:
            body.append(axes.path(curve, colour, "stroke-width='1.2' stroke-opacity='.32'"))
        body.append(axes.path(mean, colour, "stroke-width='2.4'"))
        if len(curve) == 1:
            x, y = axes.at(*curve[0])
            body.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{colour}'/>")
        said.append(f"{one.name} from {_number(mean[0][1])} to {_number(mean[-1][1])}")
    body.append(_legend([one.name for one in series]) if len(series) > 1 else "")
    return svg(title, f"{y_label} over {x_label}: {'; '.join(said)}", "".join(body))


def bar_chart(title: str, bars: Sequence[Bar], *, note: str = "") -> Svg:
    """Horizontal bars of shares, as percentages, each with its interval.

    Args:
        title: Said above the chart.
        bars: At least one; the last is drawn in full colour, those before it paler.
        note: What the intervals are, said below.

    Raises:
        ValueError: no bars.
    """
    if not bars:
        raise ValueError("no bars: must be at least 1")
    left, right, step = 104, WIDTH - 84, min(72, 180 // len(bars))
    top, thick = _TOP + 4, 0.55 * step
    bottom = top + step * len(bars)
    span = right - left
    body, said = [], []
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = left + span * share
        body.append(line(x, top - 4, x, bottom, GRID))
        body.append(text(x, bottom + 18, f"{share:.0%}", "middle", size=12))
    for index, bar in enumerate(bars):
        y = top + index * step + (step - thick) / 2
        middle = y + thick / 2
        opacity = 1 if index == len(bars) - 1 else 0.45
        body.append(
            f"<rect x='{left}' y='{y:.1f}' width='{max(0, span * bar.value):.1f}' "
            f"height='{thick:.1f}' rx='3' fill='{PALETTE[0]}' fill-opacity='{opacity}'/>"
        )
        low, high = left + span * bar.low, left + span * bar.high
        body.append(line(low, middle, high, middle, INK, width=1.6))
        body += [line(x, middle - 6, x, middle + 6, INK, width=1.6) for x in (low, high)]
        body.append(text(left - 12, middle + 5, bar.label, "end", size=14, colour=INK))
        value = f"{bar.value:.1%}"
        body.append(text(right + 12, middle + 6, value, "start", size=18, colour=INK, bold=True))
        said.append(f"{bar.label} {value} ({bar.low:.1%} to {bar.high:.1%})")
    body.append(text(left, bottom + 40, note, "start", size=12))
    return svg(title, "; ".join(said), "".join(body), height=bottom + (54 if note else 32))


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) that are on and between two values.

    The first is at or below ``low`` and the last at or above ``high``; at least two, and about
    ``count`` of them.
    """
    if high <= low:
        pad = abs(low) / 2 or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


class _Axes:
    """Data coordinates to places on the chart."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self.x_range = x_range if x_range[0] < x_range[1] else (x_range[0] - 1, x_range[1] + 1)
        self.y_range = y_range

    def at(self, x: float, y: float) -> tuple[float, float]:
        x_share = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        y_share = (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        return (
            _LEFT + x_share * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - y_share * (HEIGHT - _TOP - _BOTTOM),
        )

    def path(self, points: Sequence[tuple[float, float]], colour: str, style: str) -> str:
        places = (self.at(x, y) for x, y in points)
        steps = " L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        return (
            f"<path d='M{steps}' fill='none' stroke='{colour}' {style} "
            "stroke-linejoin='round' stroke-linecap='round'/>"
        )

    def frame(
        self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
    ) -> str:
        parts = []
        for value in y_ticks:
            _, y = self.at(self.x_range[0], value)
            parts.append(line(_LEFT, y, WIDTH - _RIGHT, y, GRID))
            parts.append(text(_LEFT - 9, y + 4, _number(value), "end", size=12))
        base = HEIGHT - _BOTTOM
        for value in x_ticks:
            if self.x_range[0] <= value <= self.x_range[1]:
                x, _ = self.at(value, self.y_range[0])
                parts.append(line(x, base, x, base + 5, PALE))
                parts.append(text(x, base + 19, _number(value), "middle", size=12))
        parts.append(line(_LEFT, base, WIDTH - _RIGHT, base, PALE))
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        parts.append(text(middle, HEIGHT - 8, x_label, "middle", size=12))
        y = (_TOP + base) / 2
        parts.append(
            text(14, y, y_label, "middle", size=12, more=f"transform='rotate(-90 14 {y:.1f})'")
        )
        return "".join(parts)


def _finite_points(series: Series) -> list[tuple[float, float]]:
    pairs = zip(series.xs, series.ys, strict=True)
    return [(float(x), float(y)) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def _moving_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    half = max(0, window // 2)
    means = []
    for index, (x, _) in enumerate(points):
        near = points[max(0, index - half) : index + half + 1]
        means.append((x, sum(y for _, y in near) / len(near)))
    return means


def _legend(names: Sequence[str]) -> str:
    # One text of many spans: the browser knows how wide the words are, we do not.
    spans = "".join(
        f"<tspan dx='18' fill='{colour}' font-weight='700'>\u2501\u2501</tspan>"
        f"<tspan dx='6'>{escape(name)}</tspan>"
        for name, colour in zip(names, PALETTE, strict=False)
    )
    x = WIDTH - _RIGHT
    return f"<text x='{x}' y='25' text-anchor='end' font-size='12' fill='{PALE}'>{spans}</text>"


def _number(value: float) -> str:
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
