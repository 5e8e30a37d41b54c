"""Where each sample of a shard lies, and what its bytes must be: ``<shard>.index``.

Little-endian tables of fixed width: a header of 80 bytes, 24 bytes for each sample, 32 for each
part of a sample (a member of the tar), then the CRC-32 of all that. The index of a shard is read
in one go, and one request then fetches one sample. ``docs/shards.md`` has the tables.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from grpo_stream.boxes import Size
from grpo_stream.checksum import crc32
from grpo_stream.errors import ShardFormatError, StoreError
from grpo_stream.shards.fast_rows import row_maker
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.storage.atomic_files import write_atomic
from grpo_stream.storage.store import Store

INDEX_VERSION = 3

PART_KINDS = ("other", "json", "jpg", "png", "webp")
"""What a part is; the index stores the position in this list."""

SAMPLE_DTYPE = np.dtype(
    [("offset", "<u8"), ("num_bytes", "<u8"), ("first_part", "<u4"), ("num_parts", "<u4")]
)

PART_DTYPE = np.dtype(
    [
        ("offset", "<u8"),
        ("num_bytes", "<u8"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("crc32", "<u4"),
        ("kind", "<u2"),
        ("image", "<u2"),
    ]
)

_MAGIC = b"GRPOIDX\x00"
_HEADER = struct.Struct("<8sIIIIQQQ")
_HASH_BYTES = 32  # behind the header, from version 3 on
_SAMPLE_ROW, _PART_ROW = struct.Struct("<QQII"), struct.Struct("<QQIIIHH")  # the dtypes above
_CRC = struct.Struct("<I")


class IndexPart(NamedTuple):
    """One member of a sample."""

    offset: int
    """First byte of its content in the tar."""
    num_bytes: int
    """Length of its content."""
    width: int
    """Of the stored image in pixels; 0 for what is no image."""
    height: int
    crc32: int
    """zlib.crc32 of its content."""
    kind: int
    """Position in :data:`PART_KINDS`."""
    image: int
    """Which image of the sample it is, from 0; 0 for what is no image."""

    @property
    def is_image(self) -> bool:
        """Whether the part is one of the sample's images."""
        return self.width > 0


class IndexEntry(NamedTuple):
    """One sample's place and its parts."""

    offset: int
    """First byte of the sample's first tar header."""
    num_bytes: int
    """Length of its whole run of members, headers and padding included."""
    parts: tuple[IndexPart, ...]
    """In the order they are in the tar."""

    @property
    def size(self) -> Size:
        """Size of the (first) stored image in pixels; zeros without one."""
        sizes = (
            Size(part.width, part.height)
            for part in self.parts
            if part.is_image and part.image == 0
        )
        return next(sizes, Size(0, 0))


_as_part, _as_entry = row_maker(IndexPart), row_maker(IndexEntry)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of one shard, in the order they are in it."""

    samples: NDArray[np.void]
    """Shape (num_samples,), dtype :data:`SAMPLE_DTYPE`."""
    parts: NDArray[np.void]
    """Shape (num_parts,), dtype :data:`PART_DTYPE`; the parts of one sample after another's."""
    num_bytes: int
    """Size of the tar in bytes."""
    tar_sha256: str = ""
    """Hex digest of the tar; empty in an index of version 2, which does not tell."""
    crc32: int | None = None
    """Check value of the index file that this was read from."""
    _rows: tuple[memoryview, memoryview] = field(init=False, repr=False)  # of the two, as bytes

    def __post_init__(self) -> None:
        rows = self.samples.view(np.uint8).data, self.parts.view(np.uint8).data
        object.__setattr__(self, "_rows", rows)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, sample: int) -> IndexEntry:
        # Three fifths of the time of taking rows from the arrays.
        samples, parts = self._rows
        try:
            offset, num_bytes, first, num_parts = _SAMPLE_ROW.unpack_from(
                samples, _SAMPLE_ROW.size * sample
            )
        except struct.error:
            raise IndexError(f"sample {sample} of {len(self)}") from None
        start, size = _PART_ROW.size * first, _PART_ROW.size * num_parts
        rows = _PART_ROW.iter_unpack(parts[start : start + size])
        return _as_entry((offset, num_bytes, tuple(map(_as_part, rows))))

    @classmethod
    def from_entries(
        cls, entries: Sequence[IndexEntry], num_bytes: int, tar_sha256: str = ""
    ) -> "ShardIndex":
        """An index of ``entries`` for a tar of ``num_bytes`` and, in hex, this SHA-256."""
        rows = []
        parts: list[IndexPart] = []
        for entry in entries:
            rows.append((entry.offset, entry.num_bytes, len(parts), len(entry.parts)))
            parts.extend(entry.parts)
        samples, members = np.array(rows, SAMPLE_DTYPE), np.array(parts, PART_DTYPE)
        return cls(samples, members, num_bytes, tar_sha256)

    def sizes(self) -> NDArray[np.int64]:
        """Sizes of the first images in pixels: int64, shape (num_samples, 2), width then height.

        Zeros for a sample without one.
        """
        is_first = (self.parts["width"] > 0) & (self.parts["image"] == 0)
        owners = np.repeat(np.arange(len(self)), self.samples["num_parts"])
        sizes = np.zeros((len(self), 2), np.int64)
        for column, side in enumerate(("width", "height")):
            sizes[owners[is_first], column] = self.parts[side][is_first]
        return sizes

    def to_bytes(self) -> bytes:
        """The index file's content."""
        header = _HEADER.pack(
            _MAGIC,
            INDEX_VERSION,
            SAMPLE_DTYPE.itemsize,
            PART_DTYPE.itemsize,
            0,
            len(self.samples),
            len(self.parts),
            self.num_bytes,
        )
        tar_hash = bytes.fromhex(self.tar_sha256).ljust(_HASH_BYTES, b"\0")
        body = header + tar_hash + self.samples.tobytes() + self.parts.tobytes()
        return body + _CRC.pack(crc32(body))

    @classmethod
    def from_bytes(cls, data: bytes, shard: str) -> "ShardIndex":
        """Reads an index file's content.

        Args:
            data: What :meth:`to_bytes` gave.
            shard: The shard's name, for error messages.

        Raises:
            ShardFormatError: cause ``bad_index``: not an index, of another version, damaged, or
                with samples or parts that are not in order inside the tar.
        """
        name = index_name(shard)
        if len(data) < _HEADER.size + _CRC.size or data[: len(_MAGIC)] != _MAGIC:
            raise _bad_index(f"{name} is no shard index ({len(data)} bytes)")
        _, version, *widths, _, num_samples, num_parts, num_bytes = _HEADER.unpack_from(data)
        if version not in (2, INDEX_VERSION):
            detail = f"{name} has version {version}, this program reads versions 2 and 3"
            raise _bad_index(f"{detail}: run shard-builder index on the data set")
        start = _HEADER.size + (_HASH_BYTES if version == INDEX_VERSION else 0)
        end = start + num_samples * SAMPLE_DTYPE.itemsize + num_parts * PART_DTYPE.itemsize
        if (
            widths != [SAMPLE_DTYPE.itemsize, PART_DTYPE.itemsize]
            or len(data) != end + _CRC.size
            or _CRC.unpack_from(data, end)[0] != crc32(memoryview(data)[:end])
        ):
            raise _bad_index(f"{name}: its checksum does not fit its content")
        samples = np.frombuffer(data, SAMPLE_DTYPE, num_samples, start)
        parts = np.frombuffer(
            data, PART_DTYPE, num_parts, start + num_samples * SAMPLE_DTYPE.itemsize
        )
        if not _is_in_order(samples, parts, num_bytes):
            raise _bad_index(f"{name}: samples or parts overlap or are outside the tar")
        tar_hash = data[_HEADER.size : start]
        tar_sha256 = tar_hash.hex() if any(tar_hash) else ""
        return cls(samples, parts, num_bytes, tar_sha256, index_crc32(data))

    @classmethod
    def load(cls, store: Store, info: ShardInfo) -> "ShardIndex":
        """Reads the index of the shard that the manifest calls ``info``.

        Raises:
            ShardFormatError: cause ``bad_index``; ``foreign_index``: it is not the one that the
                manifest was written with, or not of the tar that the manifest names.
            StoreError: it is not there or cannot be read.
        """
        name = index_name(info.name)
        try:
            data = store.read(name)
        except StoreError as error:
            if error.cause == "not_found":
                hint = f"{error.detail}: run shard-builder index {store.url}"
                raise StoreError(error.cause, hint) from error
            raise
        index = cls.from_bytes(data, info.name)
        if (len(index), index.num_bytes) != (info.num_samples, info.num_bytes):
            raise _foreign_index(
                store,
                f"{name} lists {len(index)} samples in {index.num_bytes} "
                f"bytes, the manifest of {info.num_samples} in {info.num_bytes}",
            )
        if index.tar_sha256 not in ("", info.sha256):
            raise _foreign_index(store, f"{name} is of another tar than the manifest's {info.name}")
        if info.index_crc32 not in (None, index.crc32):
            raise _foreign_index(store, f"{name} is not the one that the manifest names")
        return index


def index_name(shard: str) -> str:
    """Name of the index that is beside the shard."""
    return f"{shard}.index"


def shard_files(shard: str) -> tuple[str, str, str]:
    """Names of a shard's tar, of its index and of Energon's; put into a bucket in this order."""
    return shard, index_name(shard), energon_index_name(shard)


def index_crc32(data: bytes) -> int:
    """Check value of an index file's content: its last four bytes."""
    return int(_CRC.unpack_from(data, len(data) - _CRC.size)[0])


def energon_index_name(shard: str) -> str:
    """Name of Megatron-Energon's own index that is beside the shard."""
    return f"{shard}.idx"


def write_indexes(path: Path, index: ShardIndex, end: int) -> int:
    """Writes both indexes beside the tar at ``path``, each whole or not at all.

    Args:
        path: The tar's.
        index: Of that tar.
        end: Where its last member ends and its end mark starts.

    Returns:
        Check value of the index, for the manifest.
    """
    data = index.to_bytes()
    write_atomic(path.with_name(index_name(path.name)), data)
    write_atomic(path.with_name(energon_index_name(path.name)), energon_index(index, end))
    return index_crc32(data)


def energon_index(index: ShardIndex, end: int) -> bytes:
    """Content of the ``.tar.idx`` that Megatron-Energon looks for beside a tar.

    Little-endian u64: the offset of every sample, then ``end``, where the last one ends for it
    (megatron-energon 7.4, flavors/webdataset/prepare.py).

    Args:
        index: The shard's own index.
        end: Where the last member ends and the tar's end mark starts.
    """
    return index.samples["offset"].tobytes() + struct.pack("<Q", end)


def _is_in_order(samples: NDArray[np.void], parts: NDArray[np.void], num_bytes: int) -> bool:
    counts = samples["num_parts"].astype(np.int64)
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    if firsts[-1] != len(parts) or np.any(firsts[:-1] != samples["first_part"]):
        return False
    owners = np.repeat(np.arange(len(samples)), counts)
    return (
        _lie_between(parts, samples["offset"][owners], _ends(samples)[owners])
        and _lie_between(samples, 0, num_bytes)
        and _do_not_overlap(samples)
        and _do_not_overlap(parts)
    )


def _lie_between(
    rows: NDArray[np.void], start: NDArray[np.uint64] | int, end: NDArray[np.uint64] | int
) -> bool:
    ends = _ends(rows)
    return bool(np.all((rows["offset"] >= start) & (ends <= end) & (ends >= rows["offset"])))


def _do_not_overlap(rows: NDArray[np.void]) -> bool:
    return bool(np.all(rows["offset"][1:] >= _ends(rows)[:-1]))


def _ends(rows: NDArray[np.void]) -> NDArray[np.uint64]:
    ends: NDArray[np.uint64] = rows["offset"] + rows["num_bytes"]
    return ends


def _bad_index(detail: str) -> ShardFormatError:
    return ShardFormatError("bad_index", detail)


def _foreign_index(store: Store, detail: str) -> ShardFormatError:
    remedy = (
        "shard, index and manifest are not of one build: put back what belongs together; "
        f"shard-builder index {store.url} writes an index anew where the tar is the manifest's"
    )
    return ShardFormatError("foreign_index", f"{store.url}: {detail}; {remedy}")
