"""One raw record: a sample, or the reason why it is none."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from grpo_stream.boxes import Box, Size
from grpo_stream.errors import RecordError, ShardFormatError
from grpo_stream.shards.sample import Sample, encode_meta, make_meta
from tools.shard_builder.pictures import Picture

BoxFormat = Literal["xyxy", "xywh", "point"]
Coords = Literal["pixels", "unit", "per_mille"]

_LONG_PROMPT_CHARS = 8_000
_MIN_SHARE_INSIDE = 0.5
_CONTROL_TOKENS = re.compile(r"<\|[a-z_]+\|>|<image>|<video>")
_SCALES: dict[Coords, float] = {"unit": 1.0, "per_mille": 1000.0}
_EXPECTED_SOLUTION = "expected [x1, y1, x2, y2] or [x, y]"


@dataclass(frozen=True)
class Rules:
    """How raw records are written."""

    image_key: str = "image"
    """Field with the image's path, relative to the images' folder."""
    prompt_key: str = "prompt"
    solution_key: str = "solution"
    box_format: BoxFormat = "xyxy"
    """What four numbers mean; two numbers are a point in every format."""
    coords: Coords = "pixels"
    """Unit of the numbers: pixels of the upright image, 0-1 or 0-1000 over its sides."""


@dataclass(frozen=True)
class Verdict:
    """A record that was taken, and what the user should know of it."""

    sample: Sample
    warnings: list[tuple[str, str]] = field(default_factory=list)
    """Pairs (cause, detail)."""


def judge(
    record: object, key: str, rules: Rules, load_picture: Callable[[str], Picture]
) -> Verdict:
    """Turns a raw record, any JSON value, into a sample.

    Args:
        record: The parsed JSON value.
        key: The key that the sample gets.
        rules: How the record is written.
        load_picture: Gives the decoded picture of a record's image path, or raises.

    Raises:
        RecordError: the record is no sample; ``cause`` says why in a word. Causes of text and
            structure come first, so that an image is only decoded for a record that is sound.
        ImageError: from ``load_picture``.
    """
    if not isinstance(record, dict):
        raise RecordError("record_not_object", f"expected an object, found {_short(record)}")
    path = _text(record, rules.image_key, "image")
    prompt = _text(record, rules.prompt_key, "prompt")
    if not prompt.strip():
        raise RecordError("prompt_blank", f"{rules.prompt_key}={_short(prompt)}")
    numbers = _numbers(record, rules)
    picture = load_picture(path)
    size = picture.size
    _check_declared_size(record, size)
    solution, warnings = _solution(numbers, size, rules)
    taken = {rules.prompt_key, rules.solution_key}
    extra = {name: value for name, value in record.items() if name not in taken}
    try:
        meta = make_meta(prompt, solution, size, size, extra)
        encode_meta(meta)
    except ShardFormatError as error:
        raise RecordError("fields_not_json", error.detail) from error
    warnings = [*picture.warnings, *_path_warnings(path), *_prompt_warnings(prompt), *warnings]
    return Verdict(Sample(key, picture.data, picture.suffix, meta), warnings)


def _text(record: Mapping[str, Any], name: str, what: str) -> str:
    if name not in record:
        raise RecordError(f"{what}_missing", f"no field {name!r} in {_short(list(record))}")
    value = record[name]
    if not isinstance(value, str):
        raise RecordError(f"{what}_not_text", f"{name}={_short(value)}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RecordError(f"{what}_not_unicode", f"{name} holds half of a surrogate pair")
    return value


def _numbers(record: Mapping[str, Any], rules: Rules) -> list[float]:
    name = rules.solution_key
    if name not in record:
        raise RecordError("solution_missing", f"no field {name!r} in {_short(list(record))}")
    value = record[name]
    found = f"{name}={_short(value)}"
    if not isinstance(value, list):
        raise RecordError("solution_not_list", f"{found}: {_EXPECTED_SOLUTION}")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise RecordError("solution_not_numbers", f"{found}: {_EXPECTED_SOLUTION}")
    lengths = (2,) if rules.box_format == "point" else (2, 4)
    if len(value) not in lengths:
        raise RecordError("solution_length", f"{found}: {len(value)} numbers, {_EXPECTED_SOLUTION}")
    # An int may be beyond what a float holds, so it is compared, not converted.
    if not all(-1e300 < number < 1e300 for number in value):
        raise RecordError("solution_not_finite", found)
    return value


def _check_declared_size(record: Mapping[str, Any], size: Size) -> None:
    for name, actual in (("width", size.width), ("height", size.height)):
        declared = record.get(name)
        if declared is not None and (isinstance(declared, bool) or declared != actual):
            raise RecordError(
                "size_mismatch",
                f"{name}={_short(declared)}, the upright image is {size.width}x{size.height}",
            )


def _solution(
    numbers: list[float], size: Size, rules: Rules
) -> tuple[tuple[float, ...], list[tuple[str, str]]]:
    found = f"{rules.solution_key}={_short(numbers)}"
    if rules.coords == "pixels":
        is_fraction = all(0 <= number <= 1 for number in numbers)
        if is_fraction and (len(numbers) == 4 or not all(map(_is_whole, numbers))):
            detail = f"{found} looks like 0-1 coordinates: use --coords unit"
            raise RecordError("solution_looks_like_unit", detail)
        pixels = list(numbers)
    else:
        scale = _SCALES[rules.coords]
        if not all(0 <= number <= scale for number in numbers):
            detail = f"{found} is not within 0 to {scale:g}, as --coords {rules.coords} says"
            raise RecordError("solution_out_of_range", detail)
        sides = (*size, *size)
        pixels = [n * side / scale for n, side in zip(numbers, sides, strict=False)]
    if len(pixels) == 4 and rules.box_format == "xywh":
        x, y, width, height = pixels
        pixels = [x, y, x + width, y + height]
    if (rules.coords, rules.box_format) != ("pixels", "xyxy"):
        pixels = [round(pixel, 3) for pixel in pixels]  # not the noise of the arithmetic
    return _point(pixels, size, found) if len(pixels) == 2 else _box(pixels, size, found)


def _point(
    pixels: list[float], size: Size, found: str
) -> tuple[tuple[float, ...], list[tuple[str, str]]]:
    x, y = pixels
    if not (0 <= x < size.width and 0 <= y < size.height):
        detail = f"{found} is outside the image of {size.width}x{size.height}"
        raise RecordError("point_outside", detail)
    return (x, y), []


def _box(
    pixels: list[float], size: Size, found: str
) -> tuple[tuple[float, ...], list[tuple[str, str]]]:
    x1, y1, x2, y2 = pixels
    box = Box(x1, y1, x2, y2)
    if x2 < x1 or y2 < y1:
        detail = f"{found}: x2 < x1 or y2 < y1; for x, y, width, height use --box-format xywh"
        raise RecordError("box_reversed", detail)
    if not box.is_valid:
        raise RecordError("box_empty", f"{found} has no area")
    inside = box.clipped(size)
    image = f"the image of {size.width}x{size.height}"
    if not inside.is_valid:
        raise RecordError("box_outside", f"{found} is outside {image}")
    share = _share(inside, box)
    if share < _MIN_SHARE_INSIDE:
        detail = f"{found}: {share:.0%} of the box is inside {image}"
        raise RecordError("box_mostly_outside", detail)
    warnings = []
    if inside != box:
        detail = f"{found} reaches over {image} and was clipped; {share:.0%} is left"
        warnings.append(("box_clipped", detail))
    if inside == Box(0, 0, size.width, size.height):
        warnings.append(("box_whole_image", f"{found} is all of {image}: any answer is right"))
    return (inside.x1, inside.y1, inside.x2, inside.y2), warnings


def _share(inside: Box, box: Box) -> float:
    # Side by side: the area of a huge box would overflow.
    return (inside.width / box.width) * (inside.height / box.height)


def _path_warnings(path: str) -> list[tuple[str, str]]:
    if ".." in path.split("/"):
        return [("image_path_dots", f"{path!r} holds '..' but stays inside images-root")]
    return []


def _prompt_warnings(prompt: str) -> list[tuple[str, str]]:
    warnings = []
    if len(prompt) > _LONG_PROMPT_CHARS:
        warnings.append(("prompt_long", f"{len(prompt)} characters"))
    if tokens := _CONTROL_TOKENS.findall(prompt):
        detail = f"holds {', '.join(tokens[:5])}: control words of a model, taken as plain text"
        warnings.append(("prompt_control_tokens", detail))
    return warnings


def _is_whole(number: float) -> bool:
    return math.isfinite(number) and float(number).is_integer()


def _short(value: object) -> str:
    """``value`` for a message; never long, never failing."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python prints
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."
