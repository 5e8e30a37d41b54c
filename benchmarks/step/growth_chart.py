"""The points of ``benchmarks growth`` beside the prediction, as SVG."""

import math
from collections.abc import Sequence
from typing import Any

from grpo_stream.report.charts import GRID, INK, PALE, PALETTE, line, svg, text, ticks

_SIDE, _LEFT, _TOP = 420, 60, 62
_GOOD = 0.7


def growth_chart(rows: Sequence[dict[str, Any]]) -> str:
    """Measured ratio over predicted ratio, both on logarithmic axes; the larger P, the larger dot.

    Args:
        rows: From :func:`benchmarks.step.growth.measure`.
    """
    values = [row[name] for row in rows for name in ("ratio", "predicted")]
    low, high = math.log2(min(values)) - 0.2, math.log2(max(values)) + 0.2

    def x_of(value: float) -> float:
        return _LEFT + _SIDE * (math.log2(value) - low) / (high - low)

    def y_of(value: float) -> float:
        return _TOP + _SIDE * (high - math.log2(value)) / (high - low)

    body = []
    for power in ticks(math.ceil(low), math.floor(high), 6):
        value = 2**power
        if low <= power <= high:
            x, y = x_of(value), y_of(value)
            body += [line(x, _TOP, x, _TOP + _SIDE, GRID), line(_LEFT, y, _LEFT + _SIDE, y, GRID)]
            body.append(text(x, _TOP + _SIDE + 18, f"{value:g}", "middle", size=12))
            body.append(text(_LEFT - 8, y + 4, f"{value:g}", "end", size=12))
    first, last = 2**low, 2**high
    body.append(line(x_of(first), y_of(first), x_of(last), y_of(last), INK, width=1.2))
    from_, to = first / _GOOD, last
    body.append(line(x_of(from_), y_of(_GOOD * from_), x_of(to), y_of(_GOOD * to), PALE, width=0.8))
    lengths = sorted({row["P"] for row in rows})
    for row in rows:
        body.append(_dot(x_of(row["predicted"]), y_of(row["ratio"]), lengths.index(row["P"])))
    legend = _LEFT + 20  # above the diagonal, where no point lies
    for place, length in enumerate(lengths):
        y = _TOP + 26 + 24 * place
        words = text(legend + 14, y, f"P = {length:,}", "start", size=13)
        body += [_dot(legend, y - 4, place), words]
    y = _TOP + 26 + 24 * len(lengths)
    body.append(text(legend - 6, y, "dark line: as predicted", "start", size=13))
    body.append(text(legend - 6, y + 22, f"pale line: {_GOOD} of it", "start", size=13))
    label = "predicted: G (P + C) / (P + G C)"
    body.append(text(_LEFT + _SIDE / 2, _TOP + _SIDE + 40, label, "middle", size=13))
    body.append(text(_LEFT, _TOP - 10, "measured: trl's time over ours", "start", size=13))
    worst = min(row["ratio"] / row["predicted"] for row in rows)
    said = f"{len(rows)} points, each at least {worst:.2f} of its prediction"
    return svg("What the shared prefix saves", said, "".join(body), height=_TOP + _SIDE + 56)


def _dot(x: float, y: float, place: int) -> str:
    colour = PALETTE[place % 2]
    opacity = 0.9 if place < 2 else 0.55
    radius = 3.5 + 1.5 * place
    return (
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius}' fill='{colour}' fill-opacity='{opacity}'/>"
    )
