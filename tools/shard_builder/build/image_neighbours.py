"""``--group-by image``: the records of an image become neighbours, and stay in one shard."""

import hashlib
import random
from collections.abc import Iterator
from typing import Any

from grpo_stream.records.form_book import FormBook
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.records.image_files import image_name
from shard_builder.build.spill_buckets import NUM_BUCKETS, Buckets


def image_identity(record: Any, image_key: str) -> bytes:
    """What records of one image have in common: its path, or the bytes that they carry."""
    value = record.get(image_key) if isinstance(record, dict) else None
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, InlineImage):
        return hashlib.blake2b(value.data, digest_size=16).digest()
    return (image_name(value) or "").encode(errors="surrogatepass")


def bucket_of(identity: bytes, shuffle_seed: int | None) -> int:
    """The bucket that all records of an image go to; the buckets' order is no order of images."""
    salt = b"" if shuffle_seed is None else str(shuffle_seed).encode()
    return hashlib.blake2b(identity, digest_size=2, salt=salt[:16]).digest()[0] % NUM_BUCKETS


def whole_images(
    buckets: Buckets, forms: FormBook, shuffle_seed: int | None, unpack: Any
) -> Iterator[bytes]:
    """Rows, image after image; those of an image in the order of the inputs.

    Args:
        buckets: The rows, packed, dealt by :func:`bucket_of`.
        forms: Of the records.
        shuffle_seed: Shuffles the images of a bucket; None leaves them in their order.
        unpack: ``chunk_plan.unpack_row``.
    """
    order = random.Random(f"images {shuffle_seed}")  # noqa: S311 - no secret
    for bucket in range(NUM_BUCKETS):
        groups: dict[bytes, list[bytes]] = {}
        for row in buckets.read(bucket):
            _, form, record = unpack(row)
            groups.setdefault(image_identity(record, forms.image_key(form)), []).append(row)
        images = list(groups.values())
        if shuffle_seed is not None:
            order.shuffle(images)
        for rows in images:
            yield from rows


class GroupCount:
    """Counts the images in a row of each shard of a chunk."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        """Of each shard, in order."""
        self._last: tuple[int, int] | None = None

    def begin_shard(self) -> None:
        """A shard begins."""
        self.counts.append(0)
        self._last = None

    def is_last(self, num_bytes: int, image_crc32: int) -> bool:
        """Whether the shard's last sample has the image of this size and checksum."""
        return self._last == (image_crc32, num_bytes)

    def add(self, num_bytes: int, image_crc32: int) -> None:
        """A sample goes into the shard."""
        self.counts[-1] += not self.is_last(num_bytes, image_crc32)
        self._last = (image_crc32, num_bytes)
