"""The shard format both ways: a plain WebDataset tar, ``{key}.jpg|png|webp`` then ``{key}.json``.

A sample is the run of neighbouring members with one key, so one ranged read fetches it. Further
images of a sample are members ``{key}.1.jpg``, ``{key}.2.png``, ... before the JSON.
"""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from grpo_stream.checksum import crc32
from grpo_stream.errors import ShardFormatError
from grpo_stream.shards.fast_json import parse_json
from grpo_stream.shards.images_field import is_of_several_images, is_text_only
from grpo_stream.shards.index import (
    PART_KINDS,
    IndexEntry,
    IndexPart,
    ShardIndex,
    shard_files,
    write_indexes,
)
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.shards.sample import (
    IMAGE_SUFFIXES,
    Sample,
    check_key,
    check_meta,
    encode_meta,
    is_plainly_sound,
)
from grpo_stream.shards.sample_runs import iter_runs
from grpo_stream.shards.tar_headers import BLOCK, END, iter_members, make_header, padding
from grpo_stream.storage.atomic_files import commit, temp_beside
from grpo_stream.storage.blobs import Data
from grpo_stream.storage.hashed_file import HashedFile
from grpo_stream.storage.store import LocalStore, Store

_KINDS = {kind: number for number, kind in enumerate(PART_KINDS)}
_JSON = _KINDS["json"]
_NAME_ENDS = [f".{kind}\0".encode() for kind in PART_KINDS]


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes one shard, its index and Energon's; each appears whole or not at all.

    The tar is written under a hidden temporary name. :meth:`close` gives it its name and then
    writes the indexes; leaving the ``with`` block does the same, unless an exception is on its
    way: then nothing is left behind. Equal samples in equal order give equal files.

    Args:
        path: The tar's final path; its folder must exist.

    Example:
        >>> with ShardWriter(folder / "shard-000000.tar") as writer:  # doctest: +SKIP
        ...     writer.add(sample)
        >>> writer.close()  # the shard's ShardInfo; closing twice is harmless
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temp = temp_beside(path)
        self._file = HashedFile(self._temp)
        self._entries: list[IndexEntry] = []
        self._keys: set[str] = set()
        self._info: ShardInfo | None = None

    @property
    def num_samples(self) -> int:
        """Samples added so far."""
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes written so far; the finished tar is 1,024 bytes longer."""
        return self._file.num_bytes

    def add(
        self, sample: Sample, image_crc32: int | None = None, encoded_meta: bytes | None = None
    ) -> None:
        """Appends a sample.

        Args:
            sample: Written as it is; nothing is decoded.
            image_crc32: zlib.crc32 of ``sample.image``, where the caller knows it already.
            encoded_meta: ``encode_meta(sample.meta)``, where the caller has it already from a
                ``meta`` that ``make_meta`` has checked.

        Raises:
            ShardFormatError: causes ``bad_key``, ``duplicate_key``, ``bad_suffix``, ``bad_meta``.
            ValueError: the writer is closed.
        """
        key, meta = sample.key, sample.meta
        check_key(key)
        if key in self._keys:
            raise ShardFormatError("duplicate_key", f"{self.path.name}: key={key!r}")
        if encoded_meta is None:
            check_meta(meta, f"key={key!r}")
        _check_images(sample)
        encoded = encode_meta(meta) if encoded_meta is None else encoded_meta
        start = position = self.num_bytes
        chunks: list[Data] = []
        parts: list[IndexPart] = []
        before = b""  # what comes before the next content; joined, while images stay uncopied
        sizes = sample.sizes
        for number, (suffix, image) in enumerate(sample.images):
            width, height = sizes[number]
            middle = f".{number}" if number else ""
            before += make_header(f"{key}{middle}.{suffix}", len(image))
            position += len(before)
            checksum = image_crc32 if number == 0 and image_crc32 is not None else crc32(image)
            kind = _KINDS[suffix]
            parts.append(IndexPart(position, len(image), width, height, checksum, kind, number))
            position += len(image)
            chunks += (before, image)
            before = padding(len(image))
        before += make_header(f"{key}.json", len(encoded))
        position += len(before)
        parts.append(IndexPart(position, len(encoded), 0, 0, crc32(encoded), _JSON, 0))
        self._file.write([*chunks, before + encoded + padding(len(encoded))])
        self._keys.add(key)
        self._entries.append(IndexEntry(start, self.num_bytes - start, tuple(parts)))

    def add_run(self, data: Data, entry: IndexEntry) -> None:
        """Appends a sample of another shard as the bytes it is; its key is not looked at.

        Args:
            data: The run of its members, headers and padding included.
            entry: Its line of the other shard's index.
        """
        start = self.num_bytes
        shift = start - entry.offset
        parts = tuple(part._replace(offset=part.offset + shift) for part in entry.parts)
        self._file.write([data])
        self._entries.append(IndexEntry(start, len(data), parts))

    def close(self) -> ShardInfo:
        """Finishes the tar, gives it its name, then writes both indexes beside it."""
        if self._info is None:
            end = self.num_bytes
            self._file.write([END])
            sha256 = self._file.finish()
            commit(self._file.raw, self._temp, self.path)
            index = ShardIndex.from_entries(self._entries, self.num_bytes, sha256)
            check_value = write_indexes(self.path, index, end)
            name = self.path.name
            self._info = ShardInfo(name, len(index), self.num_bytes, sha256, check_value)
        return self._info

    def close_into(self, store: Store) -> tuple[ShardInfo, dict[str, str]]:
        """Closes, and moves the files to ``store`` unless that is a folder: then they are in it.

        Returns:
            The shard, and the tag of each file that was put into a bucket, by name.

        Raises:
            StoreError: a file cannot be put there.
        """
        info = self.close()
        tags = {}
        if not isinstance(store, LocalStore):
            for name in shard_files(info.name):
                path = self.path.with_name(name)
                tags[name] = store.put_file(name, path)
                path.unlink()
        return info, tags

    def discard(self) -> None:
        """Drops what was written; nothing happens after :meth:`close`."""
        if self._info is None:
            self._file.close()
            self._temp.unlink(missing_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.discard()
            return
        try:
            self.close()
        except BaseException:
            self.discard()
            raise


def parse_sample(data: Data, shard: str, entry: IndexEntry | None = None) -> Sample:
    """Reads one sample from the bytes of its run of members, tar headers included.

    Args:
        data: The bytes ``[entry.offset, entry.offset + entry.num_bytes)`` of the shard.
        shard: The shard's name, for error messages.
        entry: The sample's line of the index; place and CRC-32 of every part are then checked
            against it, and error messages give offsets in the shard.

    Raises:
        ShardFormatError: the causes of :func:`iter_samples`, ``num_samples`` (not exactly one
            sample) and ``checksum``.
    """
    sample = None if entry is None else _parse_as_we_write(data, entry)
    if sample is not None:
        return sample
    base = 0 if entry is None else entry.offset
    runs = list(iter_runs(iter_members(io.BytesIO(data), shard, base, is_whole=False), shard))
    if len(runs) != 1:
        detail = f"{shard} at byte {base}: {len(runs)} samples where one is expected"
        raise ShardFormatError("num_samples", detail)
    sample, parts = runs[0]
    if entry is None:
        return sample
    where = f"{shard} at byte {base}: key={sample.key!r}"
    if len(parts) != len(entry.parts):
        detail = f"{where}: {len(parts)} members, the index lists {len(entry.parts)}"
        raise ShardFormatError("checksum", detail)
    for (member, kind, _), part in zip(parts, entry.parts, strict=True):
        if crc32(member.data) != part.crc32 or member.data_offset != part.offset:
            detail = f"{where}: the {kind}'s CRC-32 or place differs from the index"
            raise ShardFormatError("checksum", detail)
    return sample


def _parse_as_we_write(data: Data, entry: IndexEntry) -> Sample | None:
    """A sample of one image, cut out by its index; None where it looks otherwise.

    A third of the time of reading headers. What is damaged looks otherwise: contents are checked
    against their CRC-32, and names, which have none, against each other; the long way then says
    what is wrong.
    """
    if len(entry.parts) != 2:
        return None
    image, meta = entry.parts
    end = meta.offset - entry.offset
    first, second = bytes(data[:BLOCK]), bytes(data[end - BLOCK : end])
    stem = first[: first.find(b".")]
    if (
        image.offset - entry.offset != BLOCK
        or end != 2 * BLOCK + image.num_bytes + -image.num_bytes % BLOCK
        or not (image.width and meta.kind == _JSON)
        or not first.startswith(_NAME_ENDS[image.kind], len(stem))
        or not second.startswith(stem + b".json\0")
        or not first[156:157] == second[156:157] == b"0"  # a file
        or not first[345:346] == second[345:346] == b"\0"  # whose name has no first half
    ):
        return None
    content = memoryview(data)[BLOCK : BLOCK + image.num_bytes]
    encoded = bytes(data[end : end + meta.num_bytes])
    if b"\\u" in encoded:
        return None  # we write no escapes; half a surrogate pair may be among them
    if crc32(content) != image.crc32 or crc32(encoded) != meta.crc32:
        return None
    try:
        key, parsed = stem.decode(), parse_json(encoded)
    except (ValueError, RecursionError):
        return None
    if not is_plainly_sound(parsed):
        return None
    return Sample(key, content, PART_KINDS[image.kind], parsed)


def read_sample(store: Store, shard: str, entry: IndexEntry) -> Sample:
    """Fetches and checks one sample by one ranged read.

    Raises:
        StoreError: the bytes cannot be had.
        ShardFormatError: as :func:`parse_sample`.
    """
    return parse_sample(store.read_range(shard, entry.offset, entry.num_bytes), shard, entry)


def iter_samples(fileobj: BinaryIO, shard: str) -> Iterator[Sample]:
    """Reads a whole shard from its start, holding one sample at a time.

    Members that are neither image nor JSON are passed over, and so are folders.

    Args:
        fileobj: The tar, read forwards only.
        shard: The shard's name, for error messages.

    Raises:
        ShardFormatError: causes ``bad_header``, ``bad_member``, ``truncated``, ``duplicate_key``,
            ``duplicate_member``, ``missing_member``, ``bad_json``, ``bad_meta``.
    """
    for sample, _ in iter_runs(iter_members(fileobj, shard, is_whole=True), shard):
        yield sample


def _check_images(sample: Sample) -> None:
    for suffix, _ in sample.images:
        if suffix not in IMAGE_SUFFIXES:
            expected = f"expected one of {', '.join(IMAGE_SUFFIXES)}"
            raise ShardFormatError("bad_suffix", f"{suffix!r}: {expected}")
    is_listed = is_of_several_images(sample.meta) or is_text_only(sample.meta)
    listed = len(sample.meta["images"]) if is_listed else 1
    found = bool(sample.image_suffix) + len(sample.more_images)
    if listed != found:
        detail = f"{found} images, its JSON lists {listed}"
        raise ShardFormatError("bad_meta", f"key={sample.key!r}: {detail}")
