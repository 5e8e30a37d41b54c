"""An evaluation's figures in words: one table for the terminal and for the page."""

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {
    "point_accuracy": "point accuracy",
    "mean_iou": "mean IoU",
    "acc_50": "Acc@0.5",
    "with_refusals": "with refusals",
    "refusal_accuracy": "refusals",
    "false_refusals": "false refusals",
    "set_f1": "set F1",
    "parse_failures": "unreadable",
    "mean_distance": "mean distance",
    "outside_image": "outside image",
}
"""Figure -> what it is called."""

_AT_K = "pass_"

WITH_INTERVAL = ("point_accuracy", "mean_iou", "acc_50", "with_refusals", "refusal_accuracy")
"""Figures whose intervals are said in tables; ``results.json`` has all of them."""

_PLAIN = ("mean_iou", "set_f1")  # a number from 0 to 1; all others are percentages
_GAP = "  "


def figure_title(name: str) -> str:
    """What a figure is called: one of :data:`TITLES`, or ``pass@k``."""
    return TITLES.get(name) or name.replace("_", "@")


def figure_text(name: str, figure: Mapping[str, Any] | None, *, with_interval: bool = True) -> str:
    """A figure and its 95 % interval, such as ``42.6% (33.1-52.0)``; ``-`` where it does not apply.

    Args:
        name: One of :data:`TITLES`.
        figure: ``value``, ``low`` and ``high``; the latter may be None.
        with_interval: Say it, if there is one.
    """
    if figure is None:
        return "-"
    value, low, high = (figure[end] for end in ("value", "low", "high"))
    scale, digits, unit = (1, 3, "") if name in _PLAIN else (100, 1, "%")
    said = f"{scale * value:.{digits}f}{unit}"
    if not with_interval or low is None or high is None:
        return said
    return f"{said} ({scale * low:.{digits}f}-{scale * high:.{digits}f})"


def cell_text(name: str, figure: Mapping[str, Any] | None) -> str:
    """A figure as it is in a table: with its interval if it is of :data:`WITH_INTERVAL`."""
    return figure_text(name, figure, with_interval=name in WITH_INTERVAL or name.startswith(_AT_K))


def difference_text(name: str, figure: Mapping[str, Any]) -> str:
    """A difference and its interval with their signs, such as ``+4.2 (+1.0 to +7.5)``."""
    scale, digits = (1, 3) if name in _PLAIN else (100, 1)
    value, low, high = (figure[end] for end in ("value", "low", "high"))
    said = f"{scale * value:+.{digits}f}"
    if low is None or high is None:
        return said
    return f"{said} ({scale * low:+.{digits}f} to {scale * high:+.{digits}f})"


def shown_figures(results: Mapping[str, Any]) -> list[str]:
    """The figures that a table of ``results`` has columns for."""
    whole = results["figures"]
    names = [name for name in TITLES if whole.get(name) is not None and name != "outside_image"]
    return names + [name for name in whole if name.startswith(_AT_K) and whole[name] is not None]


def figure_rows(results: Mapping[str, Any]) -> list[tuple[str | None, Mapping[str, Any]]]:
    """Slice and its figures, in the order of the table; a None before figures begins a field.

    Of those beginnings the mapping holds the field's ``name`` alone.
    """
    rows: list[tuple[str | None, Mapping[str, Any]]] = [("all", results["figures"])]
    for name, parts in results["slices"].items():
        rows.append((None, {"name": name}))
        rows += [(part.get("label", part["name"]), part) for part in parts]
    return rows


def figure_table(results: Mapping[str, Any]) -> str:
    """The figures as text in columns, for a terminal."""
    names = shown_figures(results)
    lines = [["", "samples", "images", *(figure_title(name) for name in names)]]
    for label, figures in figure_rows(results):
        if label is None:
            lines.append([figures["name"]])
            continue
        counts = [f"{figures[count]:,}" for count in ("num_samples", "num_images")]
        indent = "" if label == "all" else "  "
        lines.append([indent + label, *counts, *(cell_text(n, figures[n]) for n in names)])
    return _columns(lines)


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """What one comparison says, as text in columns."""
    return _columns(
        [["", "here", "there", "difference"]]
        + [
            [
                figure_title(name),
                figure_text(name, here, with_interval=False),
                figure_text(name, there, with_interval=False),
                difference_text(name, difference),
            ]
            for name, here, there, difference in compared_figures(comparison)
        ]
    )


def compared_figures(
    comparison: Mapping[str, Any],
) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]]:
    """Name, figure here, figure there and difference, where both evaluations have it."""
    found = []
    for name, difference in comparison["differences"].items():
        if not isinstance(difference, Mapping):
            continue
        here, there = comparison["here"].get(name), comparison["there"].get(name)
        if here is not None and there is not None:
            found.append((name, here, there, difference))
    return found


def _columns(lines: Sequence[Sequence[str]]) -> str:
    """Cells below each other: the first column on the left, all others on the right."""
    width = max(map(len, lines))
    # A line of one cell is a heading and makes no column wider.
    cells = [line for line in lines if len(line) == width]
    widths = [max(len(line[place]) for line in cells) for place in range(width)]
    text = []
    for first, *others in lines:
        padded = [cell.rjust(size) for cell, size in zip(others, widths[1:], strict=False)]
        text.append(_GAP.join([first.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(text)
