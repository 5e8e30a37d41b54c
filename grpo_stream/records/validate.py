"""One raw record: a sample, or the reason why it is none."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from grpo_stream.boxes import Size
from grpo_stream.errors import RecordError, ShardFormatError
from grpo_stream.records.formats.chats.conversations import strip_placeholders
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.records.formats.rules import BoxFormat, Coords, Rules, Several
from grpo_stream.records.image_files import image_name
from grpo_stream.records.solutions import place_solution, read_solutions, scale_solution, short
from grpo_stream.records.stored_image import Picture
from grpo_stream.shards.images_field import IMAGE_PLACEHOLDER
from grpo_stream.shards.sample import (
    MAX_PROMPT_CHARS,
    RESERVED_OF_SEVERAL,
    Sample,
    encode_meta,
    make_meta,
)

__all__ = ["BoxFormat", "Coords", "Rules", "Several", "Verdict", "judge"]

_LONG_PROMPT_CHARS = 8_000
_CONTROL_TOKENS = re.compile(r"<\|[a-z_]+\|>|<video>")  # what <image> is left is a place
_SURROGATES = re.compile("[\ud800-\udfff]")
_PAIRS_OF_SIDES = (("image_width", "image_height"), ("img_width", "img_height"))
_SIZE_FIELDS = ("image_size", "img_size", "resolution")
_SIZES = frozenset((*_SIZE_FIELDS, *(name for pair in _PAIRS_OF_SIDES for name in pair)))
_SIDES = re.compile(r"\s*(\d{1,6})\s*[x\u00d7*,]\s*(\d{1,6})\s*")
_MASK_64 = 2**64 - 1
_NO_PICTURE = Picture(b"", "", Size(0, 0), Size(0, 0), 0)

Load = Callable[["str | InlineImage"], Picture]
Warnings = list[tuple[str, str]]


class Verdict(NamedTuple):
    """A record that was taken, and what the user should know of it."""

    sample: Sample
    warnings: Warnings
    """Pairs (cause, detail)."""
    encoded_meta: bytes
    """The sample's JSON member."""
    image_crc32: int
    """CRC-32 of the (first) image as stored."""
    fingerprint: int
    """64 bits: equal for equal images, and hardly ever for others."""


def judge(record: object, key: str, rules: Rules, load_picture: Load) -> Verdict:
    """Turns a raw record, any JSON value, into a sample.

    Where a picture is not stored in its own size, ``solution`` is scaled to the stored one.

    Args:
        record: The parsed JSON value; its image may be an InlineImage.
        key: The key that the sample gets.
        rules: How the record is written.
        load_picture: Gives the picture of a record's image path or of an inline image, or raises.

    Raises:
        RecordError: the record is no sample; ``cause`` says why in a word. Causes of text and
            structure come first, so that an image is only opened for a record that is sound.
        ImageError: from ``load_picture``.
    """
    if not isinstance(record, dict):
        raise RecordError("record_not_object", f"expected an object, found {short(record)}")
    images = _images(record, rules)
    prompt = _text(record, rules.prompt_key, "prompt")
    if len(images) == 1:
        prompt = strip_placeholders(prompt)
    elif (found := prompt.count(IMAGE_PLACEHOLDER)) not in (0, len(images)):
        expected = f"write {IMAGE_PLACEHOLDER} once for each, or not at all"
        detail = f"{found} places in the prompt for {len(images)} images: {expected}"
        raise RecordError("image_placeholders", detail)
    if not prompt.strip():
        raise RecordError("prompt_blank", f"{rules.prompt_key}={short(prompt)}")
    if len(prompt) > MAX_PROMPT_CHARS:
        detail = f"{len(prompt)} characters, at most {MAX_PROMPT_CHARS} are taken"
        raise RecordError("prompt_too_long", detail)
    boxes = read_solutions(record, rules) if images else _no_solution(record, rules)
    lies_in = _solution_images(record, len(boxes), len(images))
    pictures = [load_picture(image) for image in images]
    _check_declared_size(record, pictures)
    if len(pictures) == 1 and rules.coords == "pixels" and not _SIZES.isdisjoint(record):
        _check_other_sizes(record, pictures[0].original_size)
    warnings = [warning for picture in pictures for warning in picture.warnings]
    warnings += _text_warnings(images, prompt)
    if rules.warning is not None:
        warnings.append(rules.warning)
    solutions = []
    for box, number in zip(boxes, lies_in, strict=True):
        picture = pictures[number]
        solution, more = place_solution(box, picture.original_size, rules)
        if picture.size != picture.original_size:
            solution = scale_solution(solution, picture.original_size, picture.size)
        solutions.append(solution)
        warnings += more
    first, others = (pictures[0], pictures[1:]) if pictures else (_NO_PICTURE, [])
    try:
        meta = make_meta(
            prompt,
            solutions,
            first.size if pictures else None,
            first.original_size if pictures else None,
            _extra(record, rules),
            [(picture.size, picture.original_size) for picture in others],
            lies_in,
        )
        encoded_meta = encode_meta(meta)
    except ShardFormatError as error:
        named = _unwritable(_extra(record, rules))
        raise RecordError("fields_not_json", f"{named}{error.detail}") from error
    more_images = tuple((picture.suffix, picture.data) for picture in others)
    sample = Sample(key, first.data, first.suffix, meta, more_images)
    fingerprint = 0
    for picture in pictures:
        fingerprint = (fingerprint * 0x9E3779B97F4A7C15 + picture.fingerprint) & _MASK_64
    return Verdict(sample, warnings, encoded_meta, first.crc32, fingerprint)


def _images(record: Mapping[str, Any], rules: Rules) -> list[str | InlineImage]:
    value = record.get(rules.image_key)
    if isinstance(value, list) and rules.several == "keep":
        return [_image(item, rules.image_key) for item in value]
    if value in (None, []) and rules.image_key in record:
        if rules.several == "keep":
            return []
        found = f"{rules.image_key}={short(value)}"
        raise RecordError("image_not_text", f"{found}: --several keep takes what has no image")
    if isinstance(value, list) and len(value) > 1:
        found = f"{rules.image_key} holds {len(value)} images"
        raise RecordError("several_images", f"{found}: use --several keep to keep them all")
    if isinstance(value, InlineImage):
        return [value]
    return [_text(record, rules.image_key, "image")]


def _image(value: object, name: str) -> str | InlineImage:
    if isinstance(value, InlineImage):
        return value
    return _text({name: value}, name, "image")


def _text(record: Mapping[str, Any], name: str, what: str) -> str:
    if name not in record:
        raise RecordError(f"{what}_missing", f"no field {name!r} in {short(list(record))}")
    value = record[name]
    if not isinstance(value, str):
        raise RecordError(f"{what}_not_text", f"{name}={short(value)}")
    if not value.isascii() and _SURROGATES.search(value):
        raise RecordError(f"{what}_not_unicode", f"{name} holds half of a surrogate pair")
    return value


def _no_solution(record: Mapping[str, Any], rules: Rules) -> list[list[float]]:
    """What a record without images has: no place."""
    value = record.get(rules.solution_key)
    if value not in (None, []):
        found = f"{rules.solution_key}={short(value)}"
        raise RecordError("solution_without_image", f"{found}: a place is in an image")
    return []


def _solution_images(record: Mapping[str, Any], num_boxes: int, num_images: int) -> list[int]:
    """For each box the image it is in, from 0."""
    if num_images <= 1:
        return [0] * num_boxes
    given = record.get("solution_images")
    if given is None and num_boxes == 1:
        return [0]
    if (
        not isinstance(given, list)
        or len(given) != num_boxes
        or not all(type(number) is int and 0 <= number < num_images for number in given)
    ):
        expected = f"expected {num_boxes} numbers of images below {num_images}, one for each box"
        raise RecordError("solution_images", f"solution_images={short(given)}: {expected}")
    return given


def _check_declared_size(record: Mapping[str, Any], pictures: list[Picture]) -> None:
    for name, side in (("width", 0), ("height", 1)):
        declared = record.get(name)
        if declared is None or not pictures:
            continue
        if isinstance(declared, list):
            is_right = declared == [picture.original_size[side] for picture in pictures]
        else:  # of several images, the first one's
            is_right = type(declared) is not bool and declared == pictures[0].original_size[side]
        if not is_right:
            raise _other_size(name, declared, pictures[0].original_size)


def _check_other_sizes(record: Mapping[str, Any], size: Size) -> None:
    """Boxes in pixels of an image of another size: of what the record says of it, in any order."""
    sides = sorted(size)
    for names in _PAIRS_OF_SIDES:
        declared: list[Any] = [record.get(name) for name in names]
        if set(map(type, declared)) == {int} and sorted(declared) != sides:
            raise _other_size(", ".join(names), declared, size)
    for name in _SIZE_FIELDS:
        value: Any = record.get(name)
        if isinstance(value, str) and (found := _SIDES.fullmatch(value)):
            value = [int(side) for side in found.groups()]
        is_size = isinstance(value, list) and len(value) == 2 and set(map(type, value)) == {int}
        if is_size and sorted(value) != sides:
            raise _other_size(name, value, size)


def _other_size(name: str, declared: object, size: Size) -> RecordError:
    detail = f"{name}={short(declared)}, the upright image is {size.width}x{size.height}"
    return RecordError("size_mismatch", detail)


def _extra(record: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    extra = dict(record)
    for name in (rules.prompt_key, rules.solution_key):
        extra.pop(name, None)
    value = record[rules.image_key]
    if value is not None and not isinstance(value, str):
        names = [image_name(item) for item in value] if isinstance(value, list) else value.name
        extra[rules.image_key] = names
        if rules.image_key in RESERVED_OF_SEVERAL:
            extra.setdefault("image", names)
    return extra


def _unwritable(fields: Mapping[str, Any]) -> str:
    """The fields that cannot be written as JSON, to begin a message with."""
    found = [short(name) for name, value in fields.items() if not _is_writable(name, value)]
    return f"field {', '.join(found)}: " if found else ""


def _is_writable(name: str, value: object) -> bool:
    try:
        encode_meta({name: value})
    except ShardFormatError:
        return False
    return True


def _text_warnings(images: list[str | InlineImage], prompt: str) -> Warnings:
    warnings = []
    for path in images:
        if isinstance(path, str) and ".." in path and ".." in path.split("/"):
            detail = f"{short(path)} holds '..' but stays inside images-root"
            warnings.append(("image_path_dots", detail))
    if len(prompt) > _LONG_PROMPT_CHARS:
        warnings.append(("prompt_long", f"{len(prompt)} characters"))
    if "<" in prompt and (tokens := _CONTROL_TOKENS.findall(prompt)):
        detail = f"holds {', '.join(tokens[:5])}: control words of a model, taken as plain text"
        warnings.append(("prompt_control_tokens", detail))
    return warnings
