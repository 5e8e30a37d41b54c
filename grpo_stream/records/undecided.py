"""What is said where several readings fit: one record drawn in each, and the flag for each."""

from collections.abc import Sequence

from grpo_stream.boxes import Size
from grpo_stream.records.evidence import Looked
from grpo_stream.records.fits import Fit, Reading
from grpo_stream.records.readings import Decision, in_words

_COLUMNS = 40
_MAX_ROWS = 16
_MIN_ROWS = 6


def undecided_text(decision: Decision, *, can_accept: bool = False) -> str:
    """The readings that fit, with counts, flags and a drawing of one record."""
    fits = decision.fits[:4]
    num = len(decision.looked)
    form = decision.form
    ways = (
        f"{form.reader}: {form.fields} can be read in {len(fits)} ways, which its {num} boxes and"
    )
    lines = [f"{ways} points do not decide; nothing was written. Say which it is:"]
    for one in fits:
        flags = flags_of(one.reading, [other.reading for other in fits])
        lines.append(f"  {flags:<42} {in_words(one.reading)}: {one.num_fitting} of {num} fit")
    if can_accept:
        lines.append(f"  (or --accept-reading NAME, as in --accept-reading {fits[0].reading.name})")
    where = _most_telling(fits)
    item = decision.looked[where]
    size = f"{item.size.width}x{item.size.height}"
    lines.append(
        f"For example record {item.record}, {item.prompt[:80]!r} in {item.image[:120]} ({size}), "
        f"{list(item.numbers)}:"
    )
    for one in fits[:3]:
        x1, y1, x2, y2 = one.corners[where].tolist()
        lines.append(f"  {one.reading.name}: x {x1:.0f} to {x2:.0f}, y {y1:.0f} to {y2:.0f}")
        lines += [f"    {row}" for row in drawn(item, (x1, y1, x2, y2))]
    return "\n".join(lines)


def flags_of(reading: Reading, readings: Sequence[Reading]) -> str:
    """The flags that tell a reading from the others in question."""
    flags = []
    if len({one.box_format for one in readings}) > 1:
        flags.append(f"--box-format {reading.box_format}")
    if len({one.coords for one in readings}) > 1:
        flags.append(f"--coords {reading.coords}")
    return " ".join(flags)


def drawn(item: Looked, box: tuple[float, float, float, float]) -> list[str]:
    """A frame of the image's shape with the box in it."""
    rows = _num_rows(item.size)
    columns = (
        _COLUMNS if rows < _MAX_ROWS else max(10, 2 * rows * item.size.width // item.size.height)
    )
    x1, x2 = (_cell(value, item.size.width, columns) for value in (box[0], box[2]))
    y1, y2 = (_cell(value, item.size.height, rows) for value in (box[1], box[3]))
    edge = f"+{'-' * columns}+"
    inner = [
        "|" + "".join("#" if x1 <= x <= x2 and y1 <= y <= y2 else " " for x in range(columns)) + "|"
        for y in range(rows)
    ]
    return [edge, *inner, edge]


def _num_rows(size: Size) -> int:
    rows = round(_COLUMNS / 2 * size.height / size.width)
    return max(_MIN_ROWS, min(_MAX_ROWS, rows))


def _cell(value: float, side: int, num_cells: int) -> int:
    return max(0, min(num_cells - 1, int(value / side * num_cells)))


def _most_telling(fits: Sequence[Fit]) -> int:
    """The number of the box that the first two readings place furthest apart."""
    first, second = fits[:2]
    both = first.is_fitting & second.is_fitting
    gap = abs(first.corners - second.corners).sum(axis=1)
    gap[~both] -= 1e12  # only where there is no other
    return int(gap.argmax())
