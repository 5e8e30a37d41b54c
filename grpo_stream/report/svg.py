"""The strokes and words that charts are made of, as SVG text: no script, no font, no file."""

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
