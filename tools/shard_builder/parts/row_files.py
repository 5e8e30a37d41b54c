"""The records of a chunk as bytes: JSON, packed, and behind it the images that they carry.

Other machines read these files, so nothing in them is a pickle. What JSON has no word for is an
object of one field, whose name occurs nowhere else in the text: the file's head says which it is.
"""

import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from grpo_stream.errors import RecordError, StoreError
from grpo_stream.records.formats.inline_image import InlineImage
from shard_builder.build.chunk_plan import Place, Row, unpack_row

_HEAD = struct.Struct("<4sIQ")  # magic, length of the marker, length of the packed text
_MAGIC = b"rows"
_LEVEL = 1  # a third of the size; more would save a tenth of that for three times the time


def encode_rows(rows: Sequence[Row | bytes]) -> bytes:
    """The rows of a chunk as :func:`decode_rows` reads them."""
    plain = [(*place, form, record) for place, form, record in map(unpack_row, rows)]
    number = 0
    while True:
        marker = f"@{number}"
        blobs: list[bytes] = []
        count = [0]

        def stand_in(value: object, marker: str = marker) -> dict[str, Any]:
            count[0] += 1  # noqa: B023 - called within this round
            if isinstance(value, InlineImage):
                blobs.append(value.data)  # noqa: B023
                return {marker: [value.name, len(value.data)]}
            if isinstance(value, RecordError):
                return {marker: [value.cause, value.detail, None]}
            raise TypeError(f"a record holds a {type(value).__name__}")

        text = json.dumps(plain, default=stand_in, separators=(",", ":")).encode()
        if text.count(f'"{marker}"'.encode()) == count[0]:
            break
        number += 1
    packed = zlib.compress(text, _LEVEL)
    head = _HEAD.pack(_MAGIC, len(marker), len(packed))
    return b"".join([head, marker.encode(), packed, *blobs])


def decode_rows(data: bytes, name: str) -> list[Row | bytes]:
    """The rows of :func:`encode_rows`.

    Args:
        data: What it gave.
        name: Of the file, for messages.

    Raises:
        StoreError: it is damaged (cause ``unreadable``).
    """
    try:
        magic, num_marker, num_packed = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("no file of rows")
        start = _HEAD.size + num_marker
        marker = data[_HEAD.size : start].decode()
        at = start + num_packed

        def original(value: dict[str, Any]) -> Any:
            nonlocal at
            if marker not in value:
                return value
            words = value[marker]
            if len(words) == 3:
                return RecordError(words[0], words[1])
            at += words[1]
            return InlineImage(words[0], data[at - words[1] : at])

        text = zlib.decompress(data[start:at])
        plain = json.loads(text, object_hook=original)
        if at != len(data):
            raise ValueError("its length is another")
        return [(Place(*row[:3]), row[3], row[4]) for row in plain]
    except (ValueError, TypeError, KeyError, IndexError, struct.error, zlib.error) as error:
        detail = f"{name} is damaged ({error}): plan the build anew, with --overwrite"
        raise StoreError("unreadable", detail) from error
