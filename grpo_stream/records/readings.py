"""How the numbers of each form are read: told, defined by its format, or decided by evidence.

What a format defines is taken as long as the records do not speak against it. What it leaves open
is decided by how each reading fits (``evidence``). Where two readings fit, nothing is decided:
``undecided`` says so, and the user does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from grpo_stream.records.evidence import Looked
from grpo_stream.records.fits import Fit, Places, Reading, fit
from grpo_stream.records.formats.forms import Form
from grpo_stream.records.formats.open_inputs import RuleFlags
from grpo_stream.records.formats.rules import BoxFormat, Coords

_COORDS: tuple[Coords, ...] = get_args(Coords)
READING_NAMES = tuple(
    f"{box_format}-{unit}" for box_format in get_args(BoxFormat) for unit in _COORDS
)
"""What a reading may be called."""

_OF_ONE_KIND = ("polygon", "point", "corners")
_OTHERS: tuple[BoxFormat, ...] = ("xyxy", "xywh", "cxcywh", "yxyx")

_MIN_ODDS = 30.0
"""Natural logarithm of the odds at which a unit is taken though another fits as well: no number is
above 1000 though images are larger, or none above a small image's sides."""
_ODDS_AGAINST_DEFINED = 40.0
_DOUBTFUL_ODDS, _DOUBTFUL_ODDS_ALONG_ONE_SIDE = 5.0, 15.0
_MIN_REACH, _DOUBTFUL_REACH = 0.8, 0.6
"""Places must go so far right and down for odds to count: all in one corner say nothing."""
_MIN_SHARE_OF_SIDES = 0.75
"""Of the boxes whose corners would be swapped so many fit as x, y, width, height: they may be."""
_PERCENT = (60.0, 100.0)
"""The largest number of percents, which are no unit that is read."""
_MIN_OF_ANOTHER_UNIT, _SHARE_OF_ANOTHER_UNIT = 4, 0.1
"""So many boxes that only fit in another unit speak of a file of both."""
_MIN_TALL, _WIDE_SHARE = 12, 0.85
_CORNER_SHARE, _MIN_IN_CORNER = 0.35, 12
"""So many places that all are in such a corner are in doubt, where another unit fits them too."""


@dataclass(frozen=True)
class Decision:
    """What was decided for one form of one input."""

    form: Form
    reading: Reading
    how: str
    """``told``, ``defined``, ``evidence``, ``accepted``; ``none``: there was nothing to go by."""
    looked: Sequence[Looked]
    num_records: int
    """Of this form in the input."""
    fits: tuple[Fit, ...] = ()
    """That of the reading first, then of the others in question."""
    is_decided: bool = True

    def line(self) -> str:
        """The reading and its evidence, for people."""
        if self.form.is_refusal:
            return f"{self.form.reader}: {self.num_records} records of what is not there"
        words = f"{self.form.reader}: {self.form.fields}: {in_words(self.reading)}"
        return f"{words} ({self._why()})"

    def facts(self) -> dict[str, object]:
        """The same for programs."""
        mine = self.fits[0] if self.fits else None
        is_refusal = self.form.is_refusal
        return {
            "format": self.form.reader,
            "fields": self.form.fields,
            "box_format": None if is_refusal else self.reading.box_format,
            "coords": None if is_refusal else self.reading.coords,
            "decided_by": self.how,
            "num_records": self.num_records,
            "num_looked_at": len(self.looked),
            "num_fitting": mine.num_fitting if mine else 0,
        }

    def _why(self) -> str:
        reasons = {
            "told": "as the flags say",
            "defined": "as the format defines",
            "evidence": "the one that fits",
            "accepted": "as accepted",
            "none": "nothing to go by",
        }
        if not self.fits:
            return reasons[self.how]
        num = len(self.looked)
        seen = f"{self.fits[0].num_fitting} of {num} boxes and points fit"
        if self.how == "evidence" and len(self.fits) > 1:
            other = self.fits[1]
            seen += f", {other.num_fitting} as {in_words(other.reading)}"
        return f"{reasons[self.how]}; {seen}"


def in_words(reading: Reading) -> str:
    """A reading for people."""
    boxes = {
        "xyxy": "x1, y1, x2, y2",
        "xywh": "x, y, width, height",
        "cxcywh": "centre x, centre y, width, height",
        "yxyx": "y1, x1, y2, x2",
        "corners": "two opposite corners",
        "point": "x, y",
        "polygon": "polygons",
    }[reading.box_format]
    unit = {"pixels": "in pixels", "unit": "in 0-1", "per_mille": "in 0-1000"}[reading.coords]
    return f"{boxes} {unit}"


def decide(
    form: Form,
    looked: Sequence[Looked],
    num_records: int,
    told: RuleFlags | None = None,
    accepted: str | None = None,
) -> Decision:
    """Decides how a form is read.

    Args:
        form: With what its format defines.
        looked: What was looked at.
        num_records: Of this form.
        told: What the user said.
        accepted: The name of the reading that is taken where the records do not decide.

    Returns:
        A decision, of which ``is_decided`` is False where several readings fit; ``fits`` then
        holds them, the likeliest first.
    """
    told = told or RuleFlags()
    defined = _defined(form, told)
    default = defined or Reading(form.box_formats[0], told.coords or form.coords or "pixels")
    if told.box_format is not None and told.coords is not None:
        reading = Reading(told.box_format, told.coords)
        return Decision(form, reading, "told", looked, num_records, _only(reading, looked))
    if not looked:
        return Decision(
            form, default, "none" if defined is None else "defined", looked, num_records
        )
    usual, others = _candidates(form, told, Places.of(looked))
    if defined is not None:
        chosen, rivals, how = _against_defined(defined, usual, others)
    else:
        chosen, rivals, how = _among(usual, others)
    if rivals and accepted is not None:
        found = next((f for f in (chosen, *rivals) if f.reading.name == accepted), None)
        if found is not None:
            chosen, rivals, how = found, [], "accepted"
    reading = chosen.reading
    if not rivals:
        reading = _corners_if_swapped(chosen, usual, defined, told)
    runner_up = _runner_up(chosen, usual)
    fits = (chosen, *(rivals or runner_up))
    return Decision(form, reading, how, looked, num_records, fits, is_decided=not rivals)


def _defined(form: Form, told: RuleFlags) -> Reading | None:
    box_format = told.box_format or form.box_format
    coords = told.coords or form.coords
    return Reading(box_format, coords) if box_format and coords else None


def _only(reading: Reading, looked: Sequence[Looked]) -> tuple[Fit, ...]:
    return (fit(reading, Places.of(looked)),) if looked else ()


def _candidates(form: Form, told: RuleFlags, places: Places) -> tuple[list[Fit], list[Fit]]:
    """The readings that are usual for the form, and those that nobody would expect."""
    if told.box_format is not None:
        usual: tuple[BoxFormat, ...] = (told.box_format,)
        others: tuple[BoxFormat, ...] = ()
    elif form.box_format is not None and (form.coords is None or form.box_format in _OF_ONE_KIND):
        usual, others = (form.box_format,), ()
    else:
        own = (form.box_format,) if form.box_format else ()
        usual = tuple(dict.fromkeys((*own, *form.box_formats)))
        others = tuple(one for one in _OTHERS if one not in usual)
    units = (told.coords,) if told.coords is not None else _COORDS
    found: list[list[Fit]] = []
    for box_formats in (usual, others):
        readings = [Reading(one, unit) for one in box_formats for unit in units]
        found.append([fit(one, places) for one in readings])
    if form.box_format is None and told.box_format is None:
        # Centres are usual for 0-1 alone, as YOLO has them.
        found[1] += [one for one in found[0] if _are_odd_centres(one.reading)]
        found[0] = [one for one in found[0] if not _are_odd_centres(one.reading)]
    return found[0], found[1]


def _are_odd_centres(reading: Reading) -> bool:
    return reading.box_format == "cxcywh" and reading.coords != "unit"


def _against_defined(
    defined: Reading, usual: list[Fit], others: list[Fit]
) -> tuple[Fit, list[Fit], str]:
    """The reading that a format defines, or what the records hold against it."""
    mine = next(one for one in usual if one.reading == defined)
    num = len(mine.is_fitting)
    rivals = [one for one in usual if one is not mine and one.differs_from(mine)]
    clear, unusual = (
        [
            one for one in fits
            if _clearly_beats(one, mine, num) or _odds(one, mine) >= _ODDS_AGAINST_DEFINED
        ]
        for fits in (rivals, others)
    )  # fmt: skip
    if clear:
        best, _, _ = _among(clear, unusual)
        return _among([best, *(one for one in rivals if one is not best)], [])
    if unusual:
        return _among(unusual, [])
    doubtful = [
        one for one in rivals
        if _beats(one, mine, num)
        or _has_odds(one, mine)
        or _explains_misfits(one, mine, num)
        or ((_is_in_corner(mine) or _looks_like_percent(mine)) and _fits_as_well(one, mine))
    ]  # fmt: skip
    if doubtful:
        doubtful.sort(key=lambda one: one.num_misfits)
        return mine, doubtful[:3], "defined"
    return mine, [], "defined"


def _among(usual: list[Fit], others: list[Fit]) -> tuple[Fit, list[Fit], str]:
    """The best of several readings, and those that fit as well."""
    num = len(usual[0].is_fitting)
    best = min(usual, key=_cost)
    better = [one for one in others if _is_clearly_worse(best, one, num)]
    pool = [*usual, *better]
    best = min(pool, key=_cost)
    rivals = [
        one for one in pool
        if one is not best
        and one.num_fitting
        and one.differs_from(best)
        and not _is_clearly_worse(one, best, num)
        and not _odds(best, one) >= _MIN_ODDS
    ]  # fmt: skip
    if best.num_reversed_only:  # what fits those the right way round is in question, too
        rivals += [
            one for one in (*usual, *others)
            if one.reading.box_format != "xyxy" and one.num_misfits < best.num_misfits
            and one not in (best, *rivals)
        ]  # fmt: skip
    rivals += [one for one in others if one not in pool and _is_y_first_rather(one, best)]
    rivals.sort(key=_cost)
    return best, rivals, "evidence"


def _cost(one: Fit) -> tuple[float, float]:
    return _misfits(one), one.log_area


def _misfits(one: Fit) -> float:
    """Misfits; corners in another order count half, as boxes of an editor may have them."""
    return one.num_misfits - 0.5 * one.num_reversed_only


def _is_other_unit(one: Fit, other: Fit) -> bool:
    return one.reading.box_format == other.reading.box_format


def _fits_as_well(one: Fit, other: Fit) -> bool:
    return _is_other_unit(one, other) and one.num_misfits <= other.num_misfits


def _is_in_corner(one: Fit) -> bool:
    return one.num_fitting >= _MIN_IN_CORNER and max(one.reach) <= _CORNER_SHARE


def _looks_like_percent(one: Fit) -> bool:
    """Whether pixels are never above 100, and go as far, though images are much larger."""
    if one.reading.coords != "pixels" or not one.num_fitting:
        return False
    is_to_100 = _PERCENT[0] <= float(one.corners[one.is_fitting].max()) <= _PERCENT[1]
    odds = one.log_area - 2 * one.num_fitting * math.log(_PERCENT[1])
    return is_to_100 and odds >= _MIN_ODDS


def _explains_misfits(one: Fit, mine: Fit, num: int) -> bool:
    """Whether another unit fits what does not: a file of both."""
    is_misfit = ~mine.is_fitting
    fitting = int((one.is_fitting & is_misfit).sum())
    is_many = mine.num_misfits >= max(_MIN_OF_ANOTHER_UNIT, _SHARE_OF_ANOTHER_UNIT * num)
    return _is_other_unit(one, mine) and is_many and fitting >= 0.95 * mine.num_misfits


def _is_y_first_rather(one: Fit, best: Fit) -> bool:
    """Whether boxes over their images' sides are tall x first, and wide y first.

    Inside their images they are either way; what is pointed at, words above all, is wide.
    """
    readings = (one.reading, best.reading)
    if readings != (("yxyx", best.reading.coords), ("xyxy", best.reading.coords)):
        return False
    share, wide = (
        float(((c[:, 2] - c[:, 0]) > (c[:, 3] - c[:, 1])).mean() if len(c) else 0.0)
        for c in (best.corners[best.is_fitting], one.corners[one.is_fitting])
    )
    return best.num_fitting >= _MIN_TALL and share <= 1 - _WIDE_SHARE and wide >= _WIDE_SHARE


def _has_odds(one: Fit, other: Fit) -> bool:
    """Whether another unit is likelier, along the sides that the places go far enough on."""
    if not _fits_as_well(one, other):
        return False
    both = one.is_fitting & other.is_fitting
    along = (other.log_places - one.log_places)[both].sum(axis=0)
    is_filled = [reach >= _DOUBTFUL_REACH for reach in one.reach]
    least = _DOUBTFUL_ODDS if all(is_filled) else _DOUBTFUL_ODDS_ALONG_ONE_SIDE
    return bool(along[is_filled].sum() >= least)


def _odds(one: Fit, other: Fit) -> float:
    """How much likelier a unit is than another that fits as well: natural logarithm.

    Places are taken to lie anywhere in their images. Where ``one`` offers them fewer pixels to lie
    in, and they fill it, that they all are in it would be chance to ``other``.
    """
    if not (_fits_as_well(one, other) and min(one.reach) >= _MIN_REACH):
        return -math.inf
    both = one.is_fitting & other.is_fitting
    return float((other.log_places - one.log_places)[both].sum())


def _beats(one: Fit, other: Fit, num: int) -> bool:
    mine, theirs = one.num_misfits, other.num_misfits
    fills = mine == 0 and _is_other_unit(one, other) and min(one.reach) >= _DOUBTFUL_REACH
    is_many = theirs - mine >= 2 or theirs >= 0.1 * num or fills
    return mine < theirs and 2 * mine <= theirs and is_many


def _clearly_beats(one: Fit, other: Fit, num: int) -> bool:
    mine, theirs = one.num_misfits, other.num_misfits
    return theirs - mine >= 4 and theirs >= 0.2 * num and 4 * mine <= theirs


def _is_clearly_worse(one: Fit, best: Fit, num: int) -> bool:
    mine, theirs = _misfits(one), _misfits(best)
    return mine - theirs >= 2 and mine >= 3 * theirs + 2 and mine >= 0.02 * num


def _runner_up(chosen: Fit, usual: list[Fit]) -> list[Fit]:
    rest = [one for one in usual if one is not chosen and one.differs_from(chosen)]
    return sorted(rest, key=_cost)[:1]


def _corners_if_swapped(
    chosen: Fit, usual: Sequence[Fit], defined: Reading | None, told: RuleFlags
) -> Reading:
    """``corners`` where some boxes only fit so, and nobody said what they are."""
    reading, num = chosen.reading, len(chosen.is_fitting)
    num_swapped = chosen.num_reversed_only
    if reading.box_format != "xyxy" or told.box_format is not None or num_swapped > 0.4 * num:
        return reading
    if chosen.num_fitting + num_swapped < 0.9 * num:
        return reading  # whatever they are, corners of images they are not
    for one in usual:  # a few rows of widths and heights among the others: the judge refuses them
        if one.reading == ("xywh", reading.coords):
            num_sides = int((one.is_fitting & ~chosen.is_fitting).sum())
            if num_sides >= _MIN_SHARE_OF_SIDES * num_swapped:
                return reading
    is_usual = defined is None or (num_swapped >= 2 and num_swapped >= 0.05 * num)
    return Reading("corners", reading.coords) if num_swapped and is_usual else reading
