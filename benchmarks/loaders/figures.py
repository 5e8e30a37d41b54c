"""What the loaders' measurements print: medians of rounds as a table, or as one line of JSON."""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence

Row = Mapping[str, float | str | None]
Table = Mapping[str, Row]
"""Rows by name; all have the same columns."""


def median(values: Sequence[float]) -> float:
    """The median, to four digits."""
    return float(f"{statistics.median(values):.4g}")


def mean(values: Sequence[float]) -> float:
    """The mean, to four digits."""
    return float(f"{statistics.mean(values):.4g}")


def ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' ratios: what else the machine did in a round falls on both."""
    return median([own / other for own, other in zip(ours, others, strict=True)])


def ratio_in_all(ours: Sequence[float], others: Sequence[float]) -> float:
    """The ratio of two rates over all rounds together, which are of equally much work."""
    return median([statistics.harmonic_mean(ours) / statistics.harmonic_mean(others)])


def quartiles(ours: Sequence[float], others: Sequence[float]) -> str | None:
    """Between which half of the rounds' ratios lie; of fewer than four rounds nothing."""
    ratios = [own / other for own, other in zip(ours, others, strict=True)]
    if len(ratios) < 4:
        return None
    first, _, third = statistics.quantiles(ratios, n=4)
    return f"{first:.3f}-{third:.3f}"


def show(args: argparse.Namespace, title: str, tables: Mapping[str, Table]) -> None:
    """Prints the tables, or with ``--json`` one line of JSON with them and the settings."""
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "run"}
        print(json.dumps({**tables, "settings": settings}, default=str))
        return
    print(title)
    for name, table in tables.items():
        print(f"\n{name}")
        _print_table(table)


def _print_table(table: Table) -> None:
    columns = list(next(iter(table.values()), {}))
    widths = [max(12, len(column) + 2) for column in columns]
    first = max((len(name) for name in table), default=0) + 2
    heads = (
        f"{column.replace('_', ' '):>{width}}"
        for column, width in zip(columns, widths, strict=True)
    )
    print(" " * first + "".join(heads))
    for name, row in table.items():
        cells = (
            f"{_text(row.get(column)):>{width}}"
            for column, width in zip(columns, widths, strict=True)
        )
        print(f"{name:<{first}}" + "".join(cells))


def _text(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,.6g}"
