"""Draws docs/images/lanes.svg: an epoch of a small data set as the real plan orders it.

python -m docs.images.draw_lanes docs/images/lanes.svg
"""

import colorsys
import sys
from pathlib import Path

import numpy as np

from grpo_stream.order.epoch_plan import EpochPlan

_CELL = 26  # pixels
_LEFT, _TOP = 190, 196
_NUM_RANKS = 2
_BATCH = 5  # the one that is framed
_FONT = 'font-family="Helvetica, Arial, sans-serif"'


def draw() -> str:
    """The picture as SVG."""
    counts = np.array([13, 12, 13, 11, 13, 13, 12, 13, 13, 12, 13, 18])
    plan = EpochPlan(counts, num_lanes=8, seed=3, epoch=0, block_shards=2)
    num_lanes, num_batches = 8, plan.num_batches
    shards, _ = plan.locate(np.arange(plan.num_samples))
    width = _LEFT + num_batches * _CELL + 30
    height = _TOP + num_lanes * _CELL + 112
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {_FONT}>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *_sequence(plan, shards, width),
    ]
    parts.append(_text(_LEFT, _TOP - 28, "The same sequence, cut into 8 lanes of equal length:"))
    for lane in range(num_lanes):
        y = _TOP + lane * _CELL
        for batch in range(num_batches):
            colour = _colour(int(shards[lane * num_batches + batch]))
            parts.append(_cell(_LEFT + batch * _CELL, y, _CELL, colour))
        parts.append(_text(_LEFT - 8, y + 18, f"slot {lane}", anchor="end"))
    per_rank = num_lanes // _NUM_RANKS
    for rank in range(_NUM_RANKS):
        y, tall = _TOP + rank * per_rank * _CELL + 3, per_rank * _CELL - 6
        parts.append(f'<path d="M118 {y} h-8 v{tall} h8" fill="none" stroke="#333"/>')
        parts.append(_text(102, y + tall / 2 + 5, f"rank {rank}", anchor="end", weight="bold"))
    x = _LEFT + _BATCH * _CELL
    parts.append(
        f'<rect x="{x - 1}" y="{_TOP - 5}" width="{_CELL + 2}" height="{num_lanes * _CELL + 10}" '
        'fill="none" stroke="#111" stroke-width="3" rx="4"/>'
    )
    below = _TOP + num_lanes * _CELL + 26
    parts.append(_text(x + _CELL / 2, below, f"generation batch {_BATCH}", "middle", "bold"))
    parts.append(
        _text(_LEFT, below + 26, "Down a column: one batch, from 8 distant places of the epoch.")
    )
    parts.append(
        _text(_LEFT, below + 46, "Along a row: one reader, from few shards (colours) at a time.")
    )
    parts.append(
        _text(_LEFT, below + 66, "Ranks only say who reads which rows. The order is the picture.")
    )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _sequence(
    plan: EpochPlan, shards: "np.ndarray[tuple[int], np.dtype[np.int64]]", width: int
) -> list[str]:
    num_samples = plan.num_samples
    step = (width - 60) / num_samples
    parts = [
        _text(30, 30, f"An epoch: {num_samples} samples of 12 shards (colours), as the seed lays"),
        _text(30, 50, "them end to end; samples are mixed inside blocks of 2 shards:"),
    ]
    for ordinal, shard in enumerate(shards.tolist()):
        parts.append(
            f'<rect x="{30 + ordinal * step:.2f}" y="66" width="{step + 0.2:.2f}" height="34" '
            f'fill="{_colour(shard)}"/>'
        )
    for lane in range(9):
        x = 30 + lane * plan.num_batches * step
        parts.append(f'<path d="M{x:.2f} 60 v46" stroke="#111" stroke-width="2"/>')
        if lane < 8:
            middle = x + plan.num_batches * step / 2
            parts.append(_text(middle, 124, f"lane {lane}", "middle"))
    parts.append(_text(width - 30, 144, f"reserve: {plan.num_reserve}", "end"))
    return parts


def _cell(x: float, y: float, size: float, colour: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="{colour}" stroke="#fff" '
        'stroke-width="1.5"/>'
    )


def _text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="15" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="#222">{words}</text>'
    )


def _colour(shard: int) -> str:
    # Neighbouring numbers far apart on the colour circle.
    red, green, blue = colorsys.hls_to_rgb(shard * 5 % 12 / 12, 0.62 if shard % 2 else 0.74, 0.6)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw())
