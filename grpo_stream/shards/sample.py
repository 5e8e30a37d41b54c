"""One sample at rest: its key, its image bytes and its JSON, and the rules all three keep."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_stream.boxes import Size
from grpo_stream.errors import ShardFormatError

SCHEMA_VERSION = 1
"""Version of the JSON member's fields and of the member names."""

IMAGE_SUFFIXES = ("jpg", "png", "webp")
"""Suffixes that the writer uses for image members."""

RESERVED_FIELDS = ("prompt", "solution", "width", "height", "original_width", "original_height")
"""Fields of the JSON member that have a meaning here; all others are the record's own."""

# No dot: WebDataset ends the key at the first one. No leading "_": it skips "__name__" members.
# At most 90 bytes: key and suffix fit the 100 bytes of a plain tar header.
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,89}")


@dataclass(frozen=True)
class Sample:
    """One image, its prompt and its solution, as stored in a shard.

    Build one with :func:`make_meta` or take it from :mod:`grpo_stream.shards.tar`; both have
    checked ``meta``, so the properties below never fail.
    """

    key: str
    """Unique name in the data set."""
    image: bytes
    """The encoded image, exactly as stored."""
    image_suffix: str
    """``jpg``, ``png`` or ``webp``."""
    meta: dict[str, Any]
    """The parsed JSON member."""

    @property
    def prompt(self) -> str:
        """The instruction."""
        return str(self.meta["prompt"])

    @property
    def solution(self) -> tuple[float, ...]:
        """``(x1, y1, x2, y2)``, ends exclusive, or ``(x, y)``, in pixels of the stored image."""
        return tuple(self.meta["solution"])

    @property
    def size(self) -> Size:
        """Size of the stored image in pixels."""
        return Size(self.meta["width"], self.meta["height"])

    @property
    def original_size(self) -> Size:
        """Upright size in pixels of the image that the record named."""
        return Size(self.meta["original_width"], self.meta["original_height"])

    @property
    def extra(self) -> dict[str, Any]:
        """The record's own further fields."""
        return {name: value for name, value in self.meta.items() if name not in RESERVED_FIELDS}


def make_meta(
    prompt: str,
    solution: tuple[float, ...],
    size: Size,
    original_size: Size,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of a sample's JSON member, checked.

    Args:
        prompt: The instruction, not blank.
        solution: Four or two finite numbers in pixels of the stored image.
        size: Size of the stored image in pixels.
        original_size: Upright size of the image that the record named, in pixels.
        extra: Further fields, JSON values; names in :data:`RESERVED_FIELDS` are left out.

    Raises:
        ShardFormatError: cause ``bad_meta``.
    """
    meta = {name: value for name, value in extra.items() if name not in RESERVED_FIELDS}
    meta |= {
        "prompt": prompt,
        "solution": [_whole_as_int(number) for number in solution],
        "width": size.width,
        "height": size.height,
        "original_width": original_size.width,
        "original_height": original_size.height,
    }
    check_meta(meta, "new sample")
    return meta


def encode_meta(meta: Mapping[str, Any]) -> bytes:
    """``meta`` as UTF-8 JSON; equal values give equal bytes, whatever their order.

    Raises:
        ShardFormatError: cause ``bad_meta``: a value that JSON or UTF-8 cannot hold (NaN,
            infinity, half a surrogate pair) or nesting that is too deep.
    """
    try:
        text = json.dumps(
            meta, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
        )
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ShardFormatError("bad_meta", f"cannot be written as JSON: {error}") from error


def parse_meta(data: bytes, where: str) -> dict[str, Any]:
    """Reads and checks a JSON member.

    Args:
        data: The member's bytes.
        where: Names the sample in error messages.

    Raises:
        ShardFormatError: cause ``bad_json`` (no JSON object) or ``bad_meta`` (wrong fields).
    """
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ShardFormatError("bad_json", f"{where}: {error}") from error
    if not isinstance(meta, dict):
        found = type(meta).__name__
        raise ShardFormatError("bad_json", f"{where}: a JSON object is expected, found {found}")
    check_meta(meta, where)
    return meta


def check_meta(meta: Mapping[str, Any], where: str) -> None:
    """Checks the fields that have a meaning here; see :data:`RESERVED_FIELDS`.

    Raises:
        ShardFormatError: cause ``bad_meta``.
    """
    prompt = meta.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ShardFormatError("bad_meta", f"{where}: prompt={prompt!r} is no text")
    solution = meta.get("solution")
    if not isinstance(solution, list) or len(solution) not in (2, 4):
        expected = "is not [x1, y1, x2, y2] or [x, y]"
        raise ShardFormatError("bad_meta", f"{where}: solution={solution!r} {expected}")
    if not all(_is_finite_number(number) for number in solution):
        raise ShardFormatError("bad_meta", f"{where}: solution={solution!r} has no finite numbers")
    for name in ("width", "height", "original_width", "original_height"):
        value = meta.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            detail = f"{where}: {name}={value!r} is no positive whole number of pixels"
            raise ShardFormatError("bad_meta", detail)


def check_key(key: str) -> None:
    """Checks that ``key`` names members that every WebDataset reader splits alike.

    Raises:
        ShardFormatError: cause ``bad_key``.
    """
    if not _KEY.fullmatch(key):
        expected = "1 to 90 of A-Z a-z 0-9 _ - that start with a letter or digit, as in 000042_page"
        raise ShardFormatError("bad_key", f"key={key!r}: expected {expected}")


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the range of float
        return False


def _whole_as_int(number: float) -> float:
    return int(number) if float(number).is_integer() else number
