"""WebDataset tars that others made: members of one key are one record."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from grpo_stream.errors import RecordError, ShardFormatError
from grpo_stream.records.formats.byte_chunks import ChunkReader
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.shards.tar_headers import Member, iter_members

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")


def tar_rows(chunks: Iterator[bytes], name: str, image_key: str) -> Iterator[Any]:
    """The records of a tar, one sample in memory at a time.

    A key ends at the first dot of a member's file name. Where a suffix comes again under the key
    of the members before, as in joined tars of one sample each, the next sample begins. The fields
    are those of the member ``.json``; ``.txt`` becomes the field ``txt`` where there is none. The
    image is the member whose whole suffix is that of an image; members like ``.1.jpg`` are further
    images of the sample, which makes a list. Other members are left out.

    Args:
        chunks: The unpacked tar.
        name: The input's, for messages.
        image_key: The field that gets the image.

    Yields:
        A record, whatever its JSON is, or a RecordError; causes ``record_not_json``,
        ``json_missing``, ``image_missing``, ``key_repeated``.

    Raises:
        RecordError: cause ``input_unreadable``: damaged or cut short.
    """
    reader = ChunkReader(chunks)
    run = _Run(image_key)
    try:
        for member in iter_members(cast("BinaryIO", reader), name, is_whole=True):
            folder, _, file_name = member.name.rpartition("/")
            stem, _, suffix = file_name.partition(".")
            if file_name.startswith((".", "__")):
                continue  # what tar programs and WebDataset itself leave there
            yield from run.add(f"{folder}/{stem}", suffix.lower(), member)
    except ShardFormatError as error:
        raise RecordError("input_unreadable", error.detail) from error
    yield from run.end()
    reader.drain()


class _Run:
    """Neighbouring members of one key: a sample, or several whose suffixes come again."""

    def __init__(self, image_key: str) -> None:
        self._image_key = image_key
        self._key: str | None = None
        self._parts: dict[str, Member] = {}
        self._is_repeated = False
        self._is_mixed_up = False

    def add(self, key: str, suffix: str, member: Member) -> Iterator[Any]:
        """Takes the next member; gives the sample that it ends."""
        if key != self._key:
            yield from self.end()
            self._key = key
        elif suffix in self._parts:
            self._is_repeated = True
            yield self._sample()
            self._parts = {}
        self._parts[suffix] = member

    def end(self) -> Iterator[Any]:
        """Gives the last sample of the key."""
        if self._parts:
            yield self._sample()
        self._parts, self._is_repeated, self._is_mixed_up = {}, False, False

    def _sample(self) -> Any:
        if self._is_repeated:
            # Two images, then two .json: which belongs to which is not known from here on.
            self._is_mixed_up |= "json" not in self._parts or not any(map(_is_image, self._parts))
        if self._is_mixed_up:
            names = ", ".join(member.name for member in self._parts.values())
            detail = f"the key {self._key!r} comes again, and {names} are not one sample for sure"
            return RecordError("key_repeated", detail)
        return _row(self._parts, self._image_key)


def _row(parts: dict[str, Member], image_key: str) -> Any:
    first = next(iter(parts.values())).name
    if "json" not in parts:
        return RecordError("json_missing", f"{first}: no member .json beside it")
    try:
        row = json.loads(parts["json"].data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return RecordError("record_not_json", f"{parts['json'].name}: {error}")
    images = [
        InlineImage(parts[suffix].name, parts[suffix].data)
        for suffix in sorted(filter(_is_image, parts), key=_image_number)
    ]
    if not images:
        return RecordError("image_missing", f"{first}: no image beside it")
    if not isinstance(row, dict):
        return row
    row[image_key] = images[0] if len(images) == 1 else images
    if "txt" in parts:
        row.setdefault("txt", parts["txt"].data.decode("utf-8", "replace"))
    return row


def _is_image(suffix: str) -> bool:
    number, _, kind = suffix.rpartition(".")
    return kind in _IMAGE_SUFFIXES and (number == "" or (number.isascii() and number.isdigit()))


def _image_number(suffix: str) -> int:
    number = suffix.rpartition(".")[0]
    return int(number[:9]) if number else 0
