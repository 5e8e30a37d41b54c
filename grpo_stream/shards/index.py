"""Where each sample of a shard lies, and what its bytes must be: ``<shard>.idx``.

Little-endian: a header of 32 bytes (magic, version, entry size, number of samples, size of the
tar), one entry of fixed width per sample, then the CRC-32 of all that. At 32 bytes a sample the
index of a shard is read in one go, and one request then fetches one sample.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from grpo_stream.boxes import Size
from grpo_stream.errors import ShardFormatError
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.shards.store import Store

INDEX_VERSION = 1

ENTRY_DTYPE = np.dtype(
    [
        ("offset", "<u8"),
        ("num_bytes", "<u8"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("image_crc32", "<u4"),
        ("json_crc32", "<u4"),
    ]
)

_MAGIC = b"GRPOIDX\x00"
_HEADER = struct.Struct("<8sIIQQ")
_CRC = struct.Struct("<I")


class IndexEntry(NamedTuple):
    """One sample's place and checksums."""

    offset: int
    """First byte of the sample's first tar header."""
    num_bytes: int
    """Length of its whole run of members, headers and padding included."""
    width: int
    """Of the stored image in pixels."""
    height: int
    image_crc32: int
    """zlib.crc32 of the image member's content."""
    json_crc32: int
    """zlib.crc32 of the JSON member's content."""

    @property
    def size(self) -> Size:
        """Size of the stored image in pixels."""
        return Size(self.width, self.height)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of one shard, in the order they lie in it."""

    entries: NDArray[np.void]
    """Shape (num_samples,), dtype :data:`ENTRY_DTYPE`."""
    num_bytes: int
    """Size of the tar in bytes."""

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, sample: int) -> IndexEntry:
        return IndexEntry(*self.entries[sample].item())

    @classmethod
    def from_entries(cls, entries: list[IndexEntry], num_bytes: int) -> "ShardIndex":
        """An index of ``entries`` for a tar of ``num_bytes``."""
        return cls(np.array([tuple(entry) for entry in entries], ENTRY_DTYPE), num_bytes)

    def to_bytes(self) -> bytes:
        """The index file's content."""
        header = _HEADER.pack(
            _MAGIC, INDEX_VERSION, ENTRY_DTYPE.itemsize, len(self), self.num_bytes
        )
        body = header + self.entries.tobytes()
        return body + _CRC.pack(zlib.crc32(body))

    @classmethod
    def from_bytes(cls, data: bytes, shard: str) -> "ShardIndex":
        """Reads an index file's content.

        Args:
            data: What :meth:`to_bytes` gave.
            shard: The shard's name, for error messages.

        Raises:
            ShardFormatError: cause ``bad_index``: not an index, of another version, damaged, or
                with samples that do not lie in order inside the tar.
        """
        name = index_name(shard)
        if len(data) < _HEADER.size + _CRC.size or data[: len(_MAGIC)] != _MAGIC:
            raise ShardFormatError("bad_index", f"{name} is no shard index ({len(data)} bytes)")
        _, version, entry_size, num_samples, num_bytes = _HEADER.unpack_from(data)
        if version != INDEX_VERSION:
            detail = f"{name} has version {version}, this program reads version {INDEX_VERSION}"
            raise ShardFormatError("bad_index", f"{detail}: rebuild the data set")
        expected = _HEADER.size + num_samples * ENTRY_DTYPE.itemsize + _CRC.size
        if entry_size != ENTRY_DTYPE.itemsize or len(data) != expected:
            detail = f"{name} has {len(data)} bytes, {expected} are expected"
            raise ShardFormatError("bad_index", f"{detail} for {num_samples} samples")
        (crc,) = _CRC.unpack_from(data, len(data) - _CRC.size)
        if crc != zlib.crc32(memoryview(data)[: -_CRC.size]):
            raise ShardFormatError("bad_index", f"{name}: its checksum does not fit its content")
        entries = np.frombuffer(data, ENTRY_DTYPE, num_samples, _HEADER.size)
        ends = entries["offset"] + entries["num_bytes"]
        if np.any(entries["offset"][1:] < ends[:-1]) or (num_samples and ends[-1] > num_bytes):
            raise ShardFormatError("bad_index", f"{name}: samples overlap or lie outside the tar")
        return cls(entries, num_bytes)

    @classmethod
    def load(cls, store: Store, info: ShardInfo) -> "ShardIndex":
        """Reads the index of the shard that the manifest calls ``info``.

        Raises:
            ShardFormatError: cause ``bad_index``, also when index and manifest disagree.
            StoreError: it is not there or cannot be read.
        """
        index = cls.from_bytes(store.read(index_name(info.name)), info.name)
        if (len(index), index.num_bytes) != (info.num_samples, info.num_bytes):
            raise ShardFormatError(
                "bad_index",
                f"{index_name(info.name)} tells of {len(index)} samples in {index.num_bytes} "
                f"bytes, the manifest of {info.num_samples} in {info.num_bytes}",
            )
        return index


def index_name(shard: str) -> str:
    """Name of the index that lies beside the shard."""
    return f"{shard}.idx"
