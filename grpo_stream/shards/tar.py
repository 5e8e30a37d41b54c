"""The shard format both ways: a plain WebDataset tar, ``{key}.jpg|png|webp`` then ``{key}.json``.

A sample is the run of neighbouring members with one key, so one ranged read fetches it.
"""

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from grpo_stream.errors import ShardFormatError
from grpo_stream.shards.files import commit, temp_beside, write_atomic
from grpo_stream.shards.index import IndexEntry, ShardIndex, index_name
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.shards.members import END, Member, iter_members, make_member
from grpo_stream.shards.sample import IMAGE_SUFFIXES, Sample, check_key, encode_meta, parse_meta
from grpo_stream.shards.store import Store

_SUFFIX_ALIASES = {"jpeg": "jpg"}


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes one shard and its index; both appear whole or not at all.

    The tar is written under a hidden temporary name. :meth:`close` gives it its name and then
    writes the index; leaving the ``with`` block does the same, unless an exception is on its
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
        self._file: BinaryIO = self._temp.open("wb")
        self._entries: list[IndexEntry] = []
        self._keys: set[str] = set()
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0
        self._info: ShardInfo | None = None

    @property
    def num_samples(self) -> int:
        """Samples added so far."""
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes written so far; the finished tar is 1,024 bytes longer."""
        return self._num_bytes

    def add(self, sample: Sample) -> None:
        """Appends a sample.

        Raises:
            ShardFormatError: causes ``bad_key``, ``duplicate_key``, ``bad_suffix``, ``bad_meta``.
            ValueError: the writer is closed.
        """
        check_key(sample.key)
        if sample.key in self._keys:
            raise ShardFormatError("duplicate_key", f"{self.path.name}: key={sample.key!r}")
        if sample.image_suffix not in IMAGE_SUFFIXES:
            expected = f"expected one of {', '.join(IMAGE_SUFFIXES)}"
            raise ShardFormatError("bad_suffix", f"{sample.image_suffix!r}: {expected}")
        meta = encode_meta(sample.meta)
        parse_meta(meta, f"key={sample.key!r}")
        offset = self._num_bytes
        self._write(make_member(f"{sample.key}.{sample.image_suffix}", sample.image))
        self._write(make_member(f"{sample.key}.json", meta))
        self._keys.add(sample.key)
        self._entries.append(
            IndexEntry(
                offset=offset,
                num_bytes=self._num_bytes - offset,
                width=sample.size.width,
                height=sample.size.height,
                image_crc32=zlib.crc32(sample.image),
                json_crc32=zlib.crc32(meta),
            )
        )

    def close(self) -> ShardInfo:
        """Finishes the tar, gives it its name, then writes the index beside it."""
        if self._info is None:
            self._write(END)
            commit(self._file, self._temp, self.path)
            index = ShardIndex.from_entries(self._entries, self._num_bytes)
            write_atomic(self.path.with_name(index_name(self.path.name)), index.to_bytes())
            self._info = ShardInfo(
                self.path.name, len(index), self._num_bytes, self._sha256.hexdigest()
            )
        return self._info

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

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._num_bytes += len(data)


def parse_sample(data: bytes, shard: str, entry: IndexEntry | None = None) -> Sample:
    """Reads one sample from the bytes of its run of members, tar headers included.

    Args:
        data: The bytes ``[entry.offset, entry.offset + entry.num_bytes)`` of the shard.
        shard: The shard's name, for error messages.
        entry: The sample's line of the index; image and JSON are then checked against its
            CRC-32s, and error messages give offsets in the shard.

    Raises:
        ShardFormatError: the causes of :func:`iter_samples`, ``num_samples`` (not exactly one
            sample) and ``checksum``.
    """
    base = 0 if entry is None else entry.offset
    samples = list(_group(iter_members(io.BytesIO(data), shard, base, is_whole=False), shard))
    if len(samples) != 1:
        detail = f"{shard} at byte {base}: {len(samples)} samples where one is expected"
        raise ShardFormatError("num_samples", detail)
    sample, meta = samples[0]
    if entry is not None:
        for what, part, crc32 in (
            ("image", sample.image, entry.image_crc32),
            ("JSON", meta, entry.json_crc32),
        ):
            if zlib.crc32(part) != crc32:
                detail = f"{shard} at byte {base}: key={sample.key!r}: the {what}'s CRC-32 differs"
                raise ShardFormatError("checksum", f"{detail} from the index")
    return sample


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
    keys: set[str] = set()
    for sample, _ in _group(iter_members(fileobj, shard, is_whole=True), shard):
        if sample.key in keys:
            raise ShardFormatError("duplicate_key", f"{shard}: key={sample.key!r} appears twice")
        keys.add(sample.key)
        yield sample


def split_name(name: str) -> tuple[str, str]:
    """A member's key and its suffix in lower case, split as WebDataset does it.

    The key ends at the first dot of the last path component; a name without one is all key.
    """
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def _group(members: Iterable[Member], shard: str) -> Iterator[tuple[Sample, bytes]]:
    for key, run in groupby(members, lambda member: split_name(member.name)[0]):
        yield _sample(key, list(run), shard)


def _sample(key: str, run: list[Member], shard: str) -> tuple[Sample, bytes]:
    where = f"{shard} at byte {run[0].offset}: key={key!r}"
    images: list[tuple[str, bytes]] = []
    metas: list[bytes] = []
    for member in run:
        suffix = split_name(member.name)[1]
        suffix = _SUFFIX_ALIASES.get(suffix, suffix)
        if suffix in IMAGE_SUFFIXES:
            images.append((suffix, member.data))
        elif suffix == "json":
            metas.append(member.data)
    for what, found in (("image", images), ("json", metas)):
        if len(found) != 1:
            cause = "duplicate_member" if found else "missing_member"
            names = ", ".join(member.name for member in run)
            raise ShardFormatError(cause, f"{where}: {len(found)} {what} members in {names}")
    meta = parse_meta(metas[0], where)
    return Sample(key, images[0][1], images[0][0], meta), metas[0]
