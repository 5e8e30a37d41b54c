"""WebDataset tars that others made: members of one key are one record."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from grpo_stream.errors import RecordError, ShardFormatError
from grpo_stream.records.formats.byte_chunks import ChunkReader
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.shards.tar_headers import Member, iter_members

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


def tar_rows(chunks: Iterator[bytes], name: str, image_key: str) -> Iterator[Any]:
    """The records of a tar, one sample in memory at a time.

    A key ends at the first dot of a member's file name. The fields are those of the member
    ``.json``; ``.txt`` becomes the field ``txt`` where there is none. The image is the member
    whose whole suffix is that of an image; members like ``.1.jpg`` are further images of the
    sample, which makes a list. Other members are left out.

    Args:
        chunks: The unpacked tar.
        name: The input's, for messages.
        image_key: The field that gets the image.

    Yields:
        A record, whatever its JSON is, or a RecordError; causes ``record_not_json``,
        ``json_missing``, ``image_missing``.

    Raises:
        RecordError: cause ``input_unreadable``: damaged or cut short.
    """
    reader = ChunkReader(chunks)
    key: str | None = None
    parts: dict[str, Member] = {}
    try:
        for member in iter_members(cast("BinaryIO", reader), name, is_whole=True):
            folder, _, file_name = member.name.rpartition("/")
            stem, _, suffix = file_name.partition(".")
            if file_name.startswith((".", "__")):
                continue  # what tar programs and WebDataset itself leave there
            if (member_key := f"{folder}/{stem}") != key:
                if parts:
                    yield _row(parts, image_key)
                key, parts = member_key, {}
            parts.setdefault(suffix.lower(), member)
    except ShardFormatError as error:
        raise RecordError("input_unreadable", error.detail) from error
    if parts:
        yield _row(parts, image_key)
    reader.drain()


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
