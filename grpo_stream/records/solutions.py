"""A record's numbers: boxes, points and polygons of every format, to pixels inside the image."""

import math
from collections.abc import Mapping
from typing import Any

from grpo_stream.boxes import Box, Size
from grpo_stream.errors import RecordError
from grpo_stream.polygons import Polygon
from grpo_stream.records.formats.rules import BoxFormat, Coords, Rules
from grpo_stream.targets import WANTED_FIELD

Solution = tuple[float, ...]
Warnings = list[tuple[str, str]]

_MIN_SHARE_INSIDE = 0.5
_MAX_CORNERS = 1000  # of a polygon: work and memory of its area grow with their square
_NUM_DECIMALS = 3  # of a pixel: what arithmetic adds beyond them is noise
_SCALES: dict[Coords, float] = {"unit": 1.0, "per_mille": 1000.0}
_FOUR = "[x1, y1, x2, y2] or [x, y]"
_EXPECTED: dict[BoxFormat, str] = {
    "xyxy": f"expected {_FOUR}",
    "xywh": f"expected {_FOUR.replace('x2, y2', 'width, height')}",
    "cxcywh": "expected [centre x, centre y, width, height] or [x, y]",
    "point": "expected [x, y]",
    "yxyx": "expected [y1, x1, y2, x2] or [y, x]",
    "corners": f"expected {_FOUR}, corners in any order",
    "polygon": f"expected three to {_MAX_CORNERS} points, as [x, y, x, y, x, y] or [[x, y], ...]",
}


def read_solutions(record: Mapping[str, Any], rules: Rules) -> list[list[float]]:
    """The numbers of each box, point or polygon of a record, finite and of a fitting count.

    None where the record says by ``solution_wanted`` that nothing is there, beside an empty list;
    several where it says there which of them count, whatever ``rules.several`` is.

    Raises:
        RecordError: causes ``solution_missing``, ``solution_not_list``,
            ``solution_not_numbers``, ``solution_length``, ``solution_not_finite``,
            ``several_boxes``.
    """
    name = rules.solution_key
    if name not in record:
        raise RecordError("solution_missing", f"no field {name!r} in {short(list(record))}")
    value = record[name]
    if not isinstance(value, list):
        raise _error("solution_not_list", value, rules)
    if not value and record.get(WANTED_FIELD) == "none":
        return []
    if rules.box_format == "polygon":
        value = _flat_polygon(value)
    if value and isinstance(value[0], list) and all(isinstance(item, list) for item in value):
        if rules.several == "keep" or record.get(WANTED_FIELD) in ("any", "all"):
            if rules.box_format == "polygon":
                value = [_flat_polygon(item) for item in value]
            return [_checked(item, rules) for item in value]
        if len(value) > 1:
            detail = f"{name} holds {len(value)} boxes: use --several keep to keep them all"
            raise RecordError("several_boxes", detail)
    return [_checked(value, rules)]


def place_solution(numbers: list[float], size: Size, rules: Rules) -> tuple[Solution, Warnings]:
    """One box, point or polygon in pixels, inside an image.

    Args:
        numbers: As :func:`read_solutions` gave them.
        size: Upright size of the image in pixels.
        rules: How the numbers are written.

    Returns:
        ``(x1, y1, x2, y2)``, ends exclusive, or a polygon's corners ``(x, y, x, y, ...)``, both
        clipped to the image, or ``(x, y)``; and warnings as pairs (cause, detail).

    Raises:
        RecordError: causes ``solution_looks_like_unit``, ``solution_out_of_range``,
            ``point_outside``, ``box_reversed``, ``box_empty``, ``box_outside``,
            ``box_mostly_outside``.
    """
    if rules.box_format == "yxyx":
        numbers = _x_first(numbers)
    if rules.coords == "pixels":
        pixels = numbers
        if max(numbers) <= 1 and _looks_like_unit(numbers):
            detail = "looks like 0-1 coordinates"
            detail += "" if "coords" in rules.told else ": use --coords unit"
            raise RecordError("solution_looks_like_unit", f"{_found(numbers, rules)} {detail}")
    else:
        scale = _SCALES[rules.coords]
        if not all(0 <= number <= scale for number in numbers):
            detail = f"is not within 0 to {scale:g}, as --coords {rules.coords} says"
            raise RecordError(
                "solution_out_of_range", f"{rules.solution_key}={short(numbers)} {detail}"
            )
        pixels = [number * size[i % 2] / scale for i, number in enumerate(numbers)]
    outline = pixels
    if len(pixels) > 2:
        pixels = _corners(pixels, rules.box_format)
    if rules.coords != "pixels" or rules.box_format in ("xywh", "cxcywh"):
        pixels = [round(pixel, _NUM_DECIMALS) for pixel in pixels]
    if len(pixels) == 2:
        return _point(pixels, size, numbers, rules)
    solution, warnings = _box(pixels, size, numbers, rules)
    if rules.box_format == "polygon":
        solution = _outline(outline, size, numbers, rules)
    if rules.box_format == "corners" and not (
        numbers[0] <= numbers[2] and numbers[1] <= numbers[3]
    ):
        detail = f"{_found(numbers, rules)}: its corners stand in another order"
        warnings.append(("box_corners_swapped", detail))
    return solution, warnings


def scale_solution(solution: Solution, from_size: Size, to_size: Size) -> Solution:
    """A box, point or polygon of one image, in pixels of the same image in another size.

    Rounded to thousandths of a pixel, except where that would leave a box without area or move
    a point out of the image.

    Args:
        solution: As :func:`place_solution` gives it.
        from_size: Size of the image it is in.
        to_size: Size of the image as resized.
    """
    exact = [number * to_size[i % 2] / from_size[i % 2] for i, number in enumerate(solution)]
    rounded = [round(number, _NUM_DECIMALS) for number in exact]
    if len(exact) == 2:
        return tuple(
            near if near < side else min(number, math.nextafter(side, 0))
            for near, number, side in zip(rounded, exact, to_size, strict=True)
        )
    if len(exact) > 4:
        return tuple(rounded)
    x1, y1, x2, y2 = rounded
    if Box(x1, y1, x2, y2).is_valid:
        return (x1, y1, x2, y2)
    x1, y1, x2, y2 = exact
    return (x1, y1, max(x2, math.nextafter(x1, math.inf)), max(y2, math.nextafter(y1, math.inf)))


def short(value: object) -> str:
    """``value`` for a message; never long, never failing."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python prints
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _flat_polygon(value: list[Any]) -> list[Any]:
    """``[[x, y], [x, y], ...]`` and ``[[x, y, x, y, ...]]`` as ``[x, y, x, y, ...]``."""
    if all(isinstance(item, list) and len(item) == 2 for item in value):
        flat = [number for item in value for number in item]
        return value if any(isinstance(number, list) for number in flat) else flat
    if len(value) == 1 and isinstance(value[0], list) and len(value[0]) > 2:
        return _flat_polygon(value[0])
    return value


def _checked(value: list[Any], rules: Rules) -> list[float]:
    for number in value:
        kind = type(number)
        if kind is not float and kind is not int:
            raise _error("solution_not_numbers", value, rules)
    count = len(value)
    if rules.box_format == "polygon":
        is_fitting = count == 2 or (6 <= count <= 2 * _MAX_CORNERS and count % 2 == 0)
    else:
        is_fitting = count == 2 or (count == 4 and rules.box_format != "point")
    if not is_fitting:
        error = _error("solution_length", value, rules, f"{count} numbers, ")
        if rules.box_format != "polygon" and count > 4 and count % 2 == 0:
            raise RecordError(error.cause, f"{error.detail}; --box-format polygon reads outlines")
        raise error
    for number in value:
        # An int may be beyond what a float holds, so it is compared, not converted.
        if not -1e300 < number < 1e300:
            raise RecordError("solution_not_finite", _found(value, rules))
    return value


def _error(cause: str, value: object, rules: Rules, what: str = "") -> RecordError:
    return RecordError(cause, f"{_found(value, rules)}: {what}{_EXPECTED[rules.box_format]}")


def _found(value: object, rules: Rules) -> str:
    return f"{rules.solution_key}={short(value)}"


def _looks_like_unit(numbers: list[float]) -> bool:
    if min(numbers) < 0:
        return False
    return len(numbers) > 2 or not all(float(number).is_integer() for number in numbers)


def _x_first(numbers: list[float]) -> list[float]:
    return [number for i in range(0, len(numbers), 2) for number in (numbers[i + 1], numbers[i])]


def _corners(numbers: list[float], box_format: BoxFormat) -> list[float]:
    if box_format in ("polygon", "corners"):
        xs, ys = numbers[::2], numbers[1::2]
        return [min(xs), min(ys), max(xs), max(ys)]
    x, y, width, height = numbers
    if box_format == "xywh":
        return [x, y, x + width, y + height]
    if box_format == "cxcywh":
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return numbers


def _point(
    pixels: list[float], size: Size, numbers: list[float], rules: Rules
) -> tuple[Solution, Warnings]:
    x, y = pixels
    if not (0 <= x < size.width and 0 <= y < size.height):
        detail = f"is outside the image of {size.width}x{size.height}"
        raise RecordError("point_outside", f"{_found(numbers, rules)} {detail}")
    return (x, y), []


def _outline(pixels: list[float], size: Size, numbers: list[float], rules: Rules) -> Solution:
    """The corners of a polygon whose bounds are mostly inside the image."""
    polygon = Polygon(tuple(zip(pixels[::2], pixels[1::2], strict=True)))
    if polygon.bounds != polygon.bounds.clipped(size):
        polygon = polygon.clipped(size)
    if not polygon.is_valid:
        raise RecordError("box_empty", f"{_found(numbers, rules)} has no area")
    return tuple(number for corner in polygon.corners for number in corner)


def _box(
    pixels: list[float], size: Size, numbers: list[float], rules: Rules
) -> tuple[Solution, Warnings]:
    x1, y1, x2, y2 = pixels
    width, height = size
    if 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and (x2 - x1 < width or y2 - y1 < height):
        return (x1, y1, x2, y2), []  # most boxes
    found = _found(numbers, rules)
    box = Box(x1, y1, x2, y2)
    if x2 < x1 or y2 < y1:
        detail = f"{found}: x2 < x1 or y2 < y1"
        if "box_format" not in rules.told:
            detail += "; for x, y, width, height use --box-format xywh"
        raise RecordError("box_reversed", detail)
    if not box.is_valid:
        raise RecordError("box_empty", f"{found} has no area")
    inside = box.clipped(size)
    image = f"the image of {width}x{height}"
    if not inside.is_valid:
        raise RecordError("box_outside", f"{found} is outside {image}")
    # Side by side: the area of a huge box would overflow.
    share = (inside.width / box.width) * (inside.height / box.height)
    if share < _MIN_SHARE_INSIDE:
        detail = f"{found}: {share:.0%} of the box is inside {image}"
        raise RecordError("box_mostly_outside", detail)
    warnings = []
    if inside != box:
        detail = f"{found} reaches over {image} and was clipped; {share:.0%} is left"
        warnings.append(("box_clipped", detail))
    if inside == Box(0, 0, width, height):
        warnings.append(("box_whole_image", f"{found} is all of {image}: any answer is right"))
    return (inside.x1, inside.y1, inside.x2, inside.y2), warnings
