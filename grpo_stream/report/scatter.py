"""Where answers fall, seen from the box they should have met: one dot each, as SVG text."""

from collections.abc import Sequence

from grpo_stream.report.svg import GRID, INK, PALE, Svg, line, svg, text

MAX_DOTS = 2000
"""More are thinned out evenly."""
_SIDE, _MARGIN, _TOP = 360, 80, 46
_REACH = 4.0  # the plot shows so many half-sides of the true box to each side


def target_plot(title: str, offsets: Sequence[tuple[float, float, bool]]) -> Svg:
    """Answers around a true box that is drawn as a square, whatever its shape.

    A cloud beside the square is a bias, a cloud on a slant towards one corner of the image a wrong
    frame or scale.

    Args:
        title: Said above the plot.
        offsets: For each answer x and y from the true centre, in halves of the true width and
            height (so -1 to 1 is inside), and whether it is a hit. Farther than 4 is drawn at the
            edge.
    """
    step = -(-len(offsets) // MAX_DOTS) or 1
    middle_x, middle_y = _MARGIN + _SIDE / 2, _TOP + _SIDE / 2
    unit = _SIDE / 2 / _REACH
    body = [
        (
            f"<rect x='{_MARGIN}' y='{_TOP}' width='{_SIDE}' height='{_SIDE}' fill='none' "
            f"stroke='{GRID}'/>"
        ),
        line(middle_x, _TOP, middle_x, _TOP + _SIDE, GRID),
        line(_MARGIN, middle_y, _MARGIN + _SIDE, middle_y, GRID),
    ]
    num_beyond = 0
    for x, y, is_hit in offsets[::step]:
        near_x, near_y = (min(_REACH, max(-_REACH, n)) for n in (x, y))
        is_beyond = (near_x, near_y) != (x, y)
        num_beyond += is_beyond
        colour = "var(--right,#145ae6)" if is_hit else "var(--wrong,#d72323)"
        body.append(
            f"<circle cx='{middle_x + unit * near_x:.1f}' cy='{middle_y + unit * near_y:.1f}' "
            f"r='{2 if is_beyond else 3}' fill='{colour}' fill-opacity='.5'/>"
        )
    body.append(
        f"<rect x='{middle_x - unit:.1f}' y='{middle_y - unit:.1f}' width='{2 * unit:.1f}' "
        f"height='{2 * unit:.1f}' fill='none' stroke='var(--truth,#009650)' stroke-width='2.5'/>"
    )
    shown = len(offsets[::step])
    beyond = f"{num_beyond / shown:.0%}" if shown else "0%"
    body.append(text(middle_x, middle_y - unit - 7, "true box", "middle", size=12, colour=INK))
    note = f"{shown:,} answers; {beyond} lie farther out and are drawn at the edge"
    body.append(text(middle_x, _TOP + _SIDE + 20, note, "middle", size=12, colour=PALE))
    return svg(title, note, "".join(body), height=_TOP + _SIDE + 34)
