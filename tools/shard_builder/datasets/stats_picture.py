"""What a data set holds, as one picture; matplotlib, an extra, draws it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, LogLocator
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray

from grpo_stream.report.drawn_text import drawable
from shard_builder.datasets.measure import Measures
from shard_builder.datasets.streaming_quantiles import Spread

_INK, _PALE, _RULE, _GROUND = "#1f2328", "#5f6973", "#e2e4e6", "#f6f6f4"
_BLUE, _ORANGE = "#1d5fd1", "#f09600"
_NUM_BARS = 48
_MAX_ROWS = 7
_MAX_WORD_CHARS = 24
_WIDTH, _HEIGHT = 1256, 936  # in pixels of a plain screen, as all measures; drawn twice as large
_LOOKS: dict[Any, Any] = {
    "font.size": 8.5,
    "text.color": _INK,
    "text.parse_math": False,  # a folder's name may hold dollar signs
    "axes.edgecolor": _PALE,
    "axes.linewidth": 0.5,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "xtick.labelcolor": _PALE,
    "xtick.color": _PALE,
    "xtick.major.size": 3,
    "xtick.major.width": 0.5,
    "ytick.left": False,
    "ytick.labelleft": False,
}


def save_stats(path: Path, name: str, found: Measures) -> None:
    """Writes :func:`draw_stats` as a PNG of 2,512 x 1,872 pixels; equal ones give equal files."""
    draw_stats(name, found).savefig(path, format="png", metadata={"Software": None})


@mpl.rc_context(_LOOKS)
def draw_stats(name: str, found: Measures) -> Figure:
    """Sizes, places, lengths and causes, a panel each.

    Args:
        name: Of the data set, for the heading.
        found: From :func:`shard_builder.datasets.measure.measure`.
    """
    rule = found.rule
    lead = (
        f"{found.num_samples:,} samples in {found.num_shards:,} shards, "
        f"{found.num_bytes / 2**20:,.1f} MiB, {found.tokens.total:,.0f} visual tokens, "
        f"digest {found.digest[:12]}"
    )
    formats = ", ".join(f"{suffix} {count:,}" for suffix, count in found.formats.most_common())
    each = f"{rule.multiple}x{rule.multiple} pixels each"
    most = f"at most {rule.max_pixels // rule.multiple**2:,}"
    places = f"centres of {found.num_boxes + found.num_points:,} boxes and points, in the image"
    short = found.num_narrow_boxes / found.num_boxes if found.num_boxes else 0
    causes = [(f"rejected: {cause}", count) for cause, count in found.rejects.most_common()]
    causes += [(f"warned: {cause}", count) for cause, count in found.warnings.most_common()]
    sheet = _Sheet(f"Data set {drawable(name)}", lead)
    sheet.bars("Image sizes", formats, found.sizes.counts.most_common(), found.width.count)
    sheet.histogram("Width / height", found.aspect_ratio, ".2f")
    sheet.histogram(f"Visual tokens per image, {each}", found.tokens, ",.0f", most)
    # Square root: a few crowded places would leave all others white.
    sheet.heat_map("Where the places are", places, np.sqrt(found.centres))
    sheet.histogram("Box area / image area", found.box_share, ".2%")
    tiny = f"under a token: {short:.0%} in a side"
    sheet.histogram("Shorter side of the boxes, pixels", found.box_side, ",.0f", tiny)
    sheet.histogram("Prompt, characters", found.prompt_chars, ",.0f")
    sheet.histogram("Image file, bytes", found.image_bytes, ",.0f")
    sheet.bars("Rejected and warned of", "records by cause", causes, 0)
    return sheet.figure


class _Sheet:
    """Panels in rows of three under a heading."""

    def __init__(self, title: str, lead: str) -> None:
        size = (_WIDTH / 100, _HEIGHT / 100)
        self.figure = Figure(size, dpi=200, facecolor=_GROUND)
        self._text(14, 42, title, size=17)
        self._text(14, 66, lead, size=10, color=_PALE)

    def histogram(self, title: str, spread: Spread, spec: str, more: str = "") -> None:
        """Bars over a logarithmic axis and a line at the median; ``spec`` formats values."""
        counts, start, end = spread.bars(_NUM_BARS)
        if not counts:
            self._nothing(title, more)
            return
        median = spread.quantile(0.5)
        note = f"{spread.low:{spec}} to {spread.high:{spec}}, median {median:{spec}} (line)"
        axes = self._plot(title, f"{note}; {more}" if more else note)
        edges = np.geomspace(start, end, len(counts) + 1)
        widths = np.diff(edges)
        axes.bar(edges[:-1], counts, widths, align="edge", color=_BLUE, ec="white", lw=0.6)
        axes.axvline(median, color=_ORANGE, lw=1)
        axes.axhline(max(counts), color=_RULE, lw=0.5)
        axes.text(1, 1.02, f"{max(counts):,}", transform=axes.transAxes, ha="right", color=_PALE)
        axes.set(xscale="log", xlim=(start, end), ylim=(0, max(counts)))
        axes.minorticks_off()
        axes.xaxis.set_major_locator(LogLocator(subs=_steps(end / start)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))

    def bars(self, title: str, note: str, rows: Sequence[tuple[str, int]], total: int) -> None:
        """A bar for each of the first words, the largest first; the others are added up.

        Counts are told as shares of ``total``, too, unless that is 0.
        """
        if not rows:
            self._nothing(title, note)
            return
        shown = list(rows)
        if len(rows) > _MAX_ROWS:
            others = rows[_MAX_ROWS - 1 :]
            rest = (f"{len(others)} others", sum(count for _, count in others))
            shown = [*rows[: _MAX_ROWS - 1], rest]
        axes = self._plot(title, note)
        axes.axis("off")
        most = max(1, *(count for _, count in shown))
        for row, (word, count) in enumerate(shown):
            share = f"{count:,}  {count / total:.0%}" if total else f"{count:,}"
            axes.barh(row, max(count / most, 0.003), 0.56, left=0.75, color=_BLUE)
            axes.text(0, row, word[:_MAX_WORD_CHARS], va="center")
            axes.text(2.2, row, share, va="center", ha="right", color=_PALE)
        axes.set(xlim=(0, 2.2), ylim=(_MAX_ROWS - 0.8, -0.5))

    def heat_map(self, title: str, note: str, cells: NDArray[np.float64]) -> None:
        """Cells, the darker the larger; the first row is on top."""
        axes = self._plot(title, note)
        colours = LinearSegmentedColormap.from_list("white to blue", ["white", _BLUE])
        axes.imshow(cells, colours, aspect="auto", vmin=0, vmax=max(1, cells.max()))
        axes.set_xticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, color=_RULE)

    def _nothing(self, title: str, note: str) -> None:
        axes = self._plot(title, note)
        axes.axis("off")
        axes.text(0.5, 0.5, "none", ha="center", color=_PALE)

    def _plot(self, title: str, note: str) -> Axes:
        """The next panel's axes."""
        row, column = divmod(len(self.figure.axes), 3)
        left, top, width, height = 14 + 414 * column, 84 + 284 * row, 400, 270
        edge = (left, _HEIGHT - top - height)
        look = "round,pad=0,rounding_size=9"
        frame = FancyBboxPatch(edge, width, height, look, fc="white", ec=_RULE, lw=0.7, zorder=-1)
        frame.set_transform(Affine2D().scale(2))
        self.figure.add_artist(frame)
        self._text(left + 18, top + 29, title, size=10.8)
        self._text(left + 18, top + 47, note, color=_PALE)
        x, y = (left + 18) / _WIDTH, (edge[1] + 34) / _HEIGHT
        return self.figure.add_axes((x, y, (width - 36) / _WIDTH, (height - 96) / _HEIGHT))

    def _text(self, x: float, y: float, words: str, **look: Any) -> None:
        self.figure.text(x / _WIDTH, 1 - y / _HEIGHT, words, **look)


def _steps(ratio: float) -> Sequence[float]:
    """Of a power of ten, those that are named on an axis that spans ``ratio``."""
    if ratio < 6:
        return (1, 1.5, 2, 3, 4, 5, 6, 8)
    return (1, 2, 5) if ratio < 1000 else (1,)


def _short(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:g}"
