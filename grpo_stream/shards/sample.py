"""One sample at rest: its key, its image bytes and its JSON, and the rules all three keep.

Schema 3. A sample of one image and one box or point has schema 1's fields and members. Of several
images the further ones are members of their own, and the JSON has ``images``; of several boxes
``solution`` is the list of them. That is schema 2. Schema 3 adds polygons, an empty ``solution``
where nothing is there, and the field ``solution_wanted`` (:mod:`grpo_stream.targets`). Schema 4
adds samples without images: their JSON says ``"images": []`` and has no sides.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from grpo_stream.boxes import Size
from grpo_stream.errors import ImageError, ShardFormatError
from grpo_stream.images import probe
from grpo_stream.shards.fast_json import parse_json
from grpo_stream.shards.images_field import (
    IMAGE_PLACEHOLDER,
    check_placeholders,
    check_text_only,
    is_of_several_images,
    is_text_only,
)
from grpo_stream.shards.solution_field import (
    Solution,
    as_float,
    as_solutions,
    check_solution,
    short_value,
)
from grpo_stream.storage.blobs import Data
from grpo_stream.targets import WANTED_FIELD

SCHEMA_VERSION = 2
"""What manifests say. Schemas 3 and 4 are told by their samples; the totals ``num_schema_3`` and
``num_text_only`` count them where there are any. So sets without them stay the same to the byte."""

IMAGE_SUFFIXES = ("jpg", "png", "webp")
"""Suffixes that the writer uses for image members."""

RESERVED_FIELDS = ("prompt", "solution", "width", "height", "original_width", "original_height")
"""Fields of the JSON member that have a meaning here; all others are the record's own."""

RESERVED_OF_SEVERAL = (*RESERVED_FIELDS, "images", "solution_images")
"""As :data:`RESERVED_FIELDS`, for a sample of several images or none."""

_RESERVED, _RESERVED_OF_SEVERAL = frozenset(RESERVED_FIELDS), frozenset(RESERVED_OF_SEVERAL)
_SIDES = ("width", "height", "original_width", "original_height")
_sides_of = itemgetter(*_SIDES)

# No dot: WebDataset ends the key at the first one. No leading "_": it skips "__name__" members.
# At most 90 bytes: key and suffix fit the 100 bytes of a plain tar header.
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,89}")

MAX_PROMPT_CHARS = 100_000
"""Longer prompts are no instructions but faults, and cost gigabytes where they are used."""

_MAX_SIDE = 2**31 - 1  # of an image in pixels
_SURROGATE = re.compile("[\ud800-\udfff]")

_WHOLE, _NUMBERS = frozenset([int]), frozenset([int, float])  # bool is neither

_ENCODER = json.JSONEncoder(
    ensure_ascii=False,
    check_circular=False,  # a circle ends in RecursionError as well, and nothing is kept count of
    allow_nan=False,
    sort_keys=True,
    separators=(",", ":"),
)


class Sample(NamedTuple):
    """Images, a prompt and a solution, as stored in a shard; mostly one image and one box.

    Without images ``image`` is empty and has no suffix.

    Build one with :func:`make_meta` or take it from :mod:`grpo_stream.shards.tar`; both have
    checked ``meta``, so the properties below never fail.
    """

    key: str
    """Unique name in the data set."""
    image: Data
    """The (first) encoded image, exactly as stored; a view where it is within a larger read."""
    image_suffix: str
    """``jpg``, ``png`` or ``webp``."""
    meta: dict[str, Any]
    """The parsed JSON member."""
    more_images: tuple[tuple[str, Data], ...] = ()
    """Suffix and bytes of the second image and those after it."""

    def __reduce__(self) -> tuple[Any, ...]:
        more_images = tuple((suffix, bytes(image)) for suffix, image in self.more_images)
        return Sample, (self.key, bytes(self.image), self.image_suffix, self.meta, more_images)

    @property
    def prompt(self) -> str:
        """The instruction."""
        return str(self.meta["prompt"])

    @property
    def solution(self) -> Solution:
        """The (first) place, in pixels of the stored image; empty where nothing is there."""
        return next(iter(self.solutions), ())

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """All places, each in pixels of the stored image it is in; none where nothing is there."""
        return as_solutions(self.meta["solution"])

    @property
    def solution_images(self) -> tuple[int, ...]:
        """For each of ``solutions`` the image it is in, counted from 0."""
        if is_of_several_images(self.meta) and "solution_images" in self.meta:
            return tuple(self.meta["solution_images"])
        return (0,) * len(self.solutions)

    @property
    def images(self) -> tuple[tuple[str, Data], ...]:
        """Suffix and bytes of every image."""
        if is_text_only(self.meta):
            return ()
        return ((self.image_suffix, self.image), *self.more_images)

    @property
    def size(self) -> Size:
        """Size of the (first) stored image in pixels."""
        return Size(self.meta["width"], self.meta["height"])

    @property
    def original_size(self) -> Size:
        """Upright size in pixels of the (first) image that the record named."""
        return Size(self.meta["original_width"], self.meta["original_height"])

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Size of every stored image in pixels."""
        return tuple(Size(image["width"], image["height"]) for image in self._sides)

    @property
    def original_sizes(self) -> tuple[Size, ...]:
        """Upright size in pixels of every image that the record named."""
        return tuple(
            Size(image["original_width"], image["original_height"]) for image in self._sides
        )

    @property
    def extra(self) -> dict[str, Any]:
        """The record's own further fields."""
        is_listed = is_of_several_images(self.meta) or is_text_only(self.meta)
        reserved = _RESERVED_OF_SEVERAL if is_listed else _RESERVED
        return {name: value for name, value in self.meta.items() if name not in reserved}

    @property
    def _sides(self) -> Sequence[Mapping[str, int]]:
        meta = self.meta
        return meta["images"] if is_of_several_images(meta) or is_text_only(meta) else (meta,)


def make_meta(
    prompt: str,
    solution: Solution | Sequence[Solution],
    size: Size | None,
    original_size: Size | None,
    extra: Mapping[str, Any],
    more_sizes: Sequence[tuple[Size, Size]] = (),
    solution_images: Sequence[int] = (),
) -> dict[str, Any]:
    """The fields of a sample's JSON member, checked.

    Args:
        prompt: The instruction, not blank.
        solution: Finite numbers in pixels of the stored image: four of a box, two of a point, six
            or more of a polygon; several of these; or none, with ``solution_wanted`` in ``extra``.
        size: Size of the (first) stored image in pixels; None without images, where the solution
            is empty.
        original_size: Upright size of the image that the record named, in pixels; None likewise.
        extra: Further fields, JSON values; reserved names are left out.
        more_sizes: Size and original size of the second image and those after it.
        solution_images: Where there are several images, the one that each box is in, counted
            from 0; empty for the first image.

    Raises:
        ShardFormatError: cause ``bad_meta``.
    """
    is_listed = more_sizes or size is None
    reserved = RESERVED_OF_SEVERAL if is_listed else RESERVED_FIELDS
    meta = dict(extra)
    for name in reserved:
        meta.pop(name, None)
    lists = [list(map(as_float, numbers)) for numbers in as_solutions(solution)]
    meta |= {"prompt": prompt, "solution": lists[0] if len(lists) == 1 else lists}
    if size is None or original_size is None:
        meta["images"] = []
        check_meta(meta, "new sample")
        return meta
    meta |= _named_sides(size, original_size)
    if more_sizes:
        meta["images"] = [_named_sides(*pair) for pair in ((size, original_size), *more_sizes)]
        meta["solution_images"] = list(solution_images) or [0] * len(lists)
    check_meta(meta, "new sample")
    return meta


def encode_meta(meta: Mapping[str, Any]) -> bytes:
    """``meta`` as UTF-8 JSON; equal values give equal bytes, whatever their order.

    Raises:
        ShardFormatError: cause ``bad_meta``: a value that JSON or UTF-8 cannot hold (NaN,
            infinity, half a surrogate pair) or nesting that is too deep.
    """
    try:
        return _ENCODER.encode(meta).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ShardFormatError("bad_meta", f"cannot be written as JSON: {error}") from error


def parse_meta(data: bytes, where: str, image: bytes | None = None) -> dict[str, Any]:
    """Reads and checks a JSON member.

    Args:
        data: The member's bytes.
        where: Names the sample in error messages.
        image: The sample's (first) encoded image; its header gives the sides that JSON written
            by others does not tell.

    Raises:
        ShardFormatError: cause ``bad_json`` (no JSON object) or ``bad_meta`` (wrong fields).
    """
    try:
        meta = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise ShardFormatError("bad_json", f"{where}: {error}") from error
    if not isinstance(meta, dict):
        found = type(meta).__name__
        raise ShardFormatError("bad_json", f"{where}: a JSON object is expected, found {found}")
    if image is not None and not all(name in meta for name in _SIDES):
        _fill_sides(meta, image, where)
    check_meta(meta, where)
    if b"\\u" in data:
        _check_unicode(meta, where)
    return meta


def _check_unicode(meta: Mapping[str, Any], where: str) -> None:
    """Refuses half surrogate pairs, which JSON can write and no file, log or tokenizer can take."""
    try:
        _ENCODER.encode(meta).encode()
    except UnicodeEncodeError as error:
        detail = f"{where}: a text holds half of a surrogate pair"
        raise ShardFormatError("bad_meta", detail) from error
    except (TypeError, ValueError, RecursionError):
        pass  # NaN among the record's own fields, and the like


def check_meta(meta: Mapping[str, Any], where: str) -> None:
    """Checks the fields that have a meaning here; see :data:`RESERVED_FIELDS`.

    Raises:
        ShardFormatError: cause ``bad_meta``; ``image_placeholders``: the prompt holds
            :data:`IMAGE_PLACEHOLDER`, but not once for each image.
    """
    prompt = meta.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ShardFormatError("bad_meta", f"{where}: prompt={short_value(prompt)} is no text")
    if len(prompt) > MAX_PROMPT_CHARS:
        detail = f"{where}: a prompt of {len(prompt)} characters, at most {MAX_PROMPT_CHARS}"
        raise ShardFormatError("bad_meta", detail)
    if not prompt.isascii() and _SURROGATE.search(prompt):
        raise ShardFormatError("bad_meta", f"{where}: the prompt holds half of a surrogate pair")
    check_placeholders(meta, where)
    if is_text_only(meta):
        check_text_only(meta, where)
        return
    num_solutions = check_solution(meta.get("solution"), meta.get(WANTED_FIELD), where)
    _check_sides(meta, where)
    if not is_of_several_images(meta):
        return
    for number, image in enumerate(meta["images"]):
        _check_sides(image, f"{where}: image {number}")
    if any(meta["images"][0][name] != meta[name] for name in _SIDES):
        raise ShardFormatError("bad_meta", f"{where}: the first of images has other sides")
    lies_in = meta.get("solution_images", [0] * num_solutions)
    if (
        not isinstance(lies_in, list)
        or len(lies_in) != num_solutions
        or not all(type(n) is int and 0 <= n < len(meta["images"]) for n in lies_in)
    ):
        detail = f"solution_images={lies_in!r} does not name an image for each solution"
        raise ShardFormatError("bad_meta", f"{where}: {detail}")


def is_plainly_sound(meta: Any) -> bool:
    """Whether a parsed JSON member is sound and of one image and one box, seen at a glance.

    False decides nothing: what is unusual is :func:`check_meta`'s, which also says what is wrong.
    It takes a microsecond less, a fortieth of what an undecoded sample takes in all.
    """
    try:
        prompt, solution, sides = meta["prompt"], meta["solution"], _sides_of(meta)
        return (
            type(prompt) is str
            and prompt.strip() != ""
            and len(prompt) <= MAX_PROMPT_CHARS
            and IMAGE_PLACEHOLDER not in prompt
            and "images" not in meta
            and WANTED_FIELD not in meta
            and type(solution) is list
            and len(solution) in (2, 4)
            and _NUMBERS.issuperset(map(type, solution))
            and math.isfinite(sum(solution))
            and _WHOLE.issuperset(map(type, sides))
            and min(sides) > 0
            and max(sides) <= _MAX_SIDE
        )
    except (KeyError, TypeError, OverflowError):
        return False


def uses_schema_3(meta: Mapping[str, Any]) -> bool:
    """Whether a sample has a polygon, no place, or says what is wanted."""
    if is_text_only(meta):
        return False  # that is schema 4
    solutions = as_solutions(meta["solution"])
    return not solutions or WANTED_FIELD in meta or any(len(one) > 4 for one in solutions)


def check_key(key: str) -> None:
    """Checks that ``key`` names members that every WebDataset reader splits alike.

    Raises:
        ShardFormatError: cause ``bad_key``.
    """
    if not _KEY.fullmatch(key):
        expected = "1 to 90 of A-Z a-z 0-9 _ - that start with a letter or digit, as in 000042_page"
        raise ShardFormatError("bad_key", f"key={key!r}: expected {expected}")


def _check_sides(image: Mapping[str, Any], where: str) -> None:
    for name in _SIDES:
        value = image.get(name)
        if type(value) is not int or not 1 <= value <= _MAX_SIDE:
            detail = f"{where}: {name}={short_value(value)} is no number of pixels"
            raise ShardFormatError("bad_meta", detail)


def _fill_sides(meta: dict[str, Any], image: bytes, where: str) -> None:
    try:
        size = probe(image).size
    except ImageError as error:
        detail = f"{where}: no width and height in its JSON, and its image: {error}"
        raise ShardFormatError("bad_meta", detail) from error
    for name, side in zip(_SIDES[:2], size, strict=True):
        meta.setdefault(name, side)
        meta.setdefault(f"original_{name}", meta[name])


def _named_sides(size: Size, original: Size) -> dict[str, int]:
    return {
        "width": size[0],
        "height": size[1],
        "original_width": original[0],
        "original_height": original[1],
    }
