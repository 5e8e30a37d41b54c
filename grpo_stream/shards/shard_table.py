"""The shards of a manifest as columns: a million of them take 70 MB, not 590."""

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

_NAME = re.compile(r"[ !#-\[\]-~]+")  # ASCII that JSON writes as it is
_HASH = re.compile("[0-9a-f]{64}")
_PIECE = 4096
_NUM_KNOWN = 1024
_FIELDS_OF_1 = {"name", "num_samples", "num_bytes", "sha256"}
_FIELDS = _FIELDS_OF_1 | {"index_crc32"}


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest says of one shard."""

    name: str
    """File name beside the manifest."""
    num_samples: int
    num_bytes: int
    """Size of the tar in bytes."""
    sha256: str
    """Hex digest of the whole tar."""
    index_crc32: int | None = None
    """Check value of its index, the last four bytes of it; None in manifests of version 1."""

    def to_dict(self) -> dict[str, Any]:
        """The shard's line in the manifest."""
        row = asdict(self)
        if self.index_crc32 is None:
            del row["index_crc32"]
        return row


class ShardTable(Sequence[ShardInfo]):  # noqa: PLW1641 - compared by content, as a list is
    """Shards in order, each made when it is asked for.

    Args:
        names: Dtype ``S``, shape (num_shards,): printable ASCII without quotes and backslashes.
        num_samples: int64, shape (num_shards,).
        num_bytes: int64, shape (num_shards,).
        sha256: Dtype ``V32``, shape (num_shards,): digests, not their digits.
        index_crc32: uint32, shape (num_shards,); None where the manifest has none.
    """

    def __init__(
        self,
        names: NDArray[np.bytes_],
        num_samples: NDArray[np.int64],
        num_bytes: NDArray[np.int64],
        sha256: NDArray[np.void],
        index_crc32: NDArray[np.uint32] | None = None,
    ) -> None:
        self._names = names
        self.num_samples = num_samples
        self.num_bytes = num_bytes
        self._sha256 = sha256
        self._index_crc32 = index_crc32

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, number: int) -> ShardInfo: ...

    @overload
    def __getitem__(self, number: slice) -> "ShardTable": ...

    def __getitem__(self, number: int | slice) -> "ShardInfo | ShardTable":
        if isinstance(number, slice):
            return ShardTable(
                self._names[number],
                self.num_samples[number],
                self.num_bytes[number],
                self._sha256[number],
                None if self._index_crc32 is None else self._index_crc32[number],
            )
        return ShardInfo(
            self._names[number].decode(),
            int(self.num_samples[number]),
            int(self.num_bytes[number]),
            self._sha256[number].tobytes().hex(),
            None if self._index_crc32 is None else int(self._index_crc32[number]),
        )

    def __iter__(self) -> Iterator[ShardInfo]:
        return map(self.__getitem__, range(len(self)))

    def has_a_name_twice(self) -> bool:
        """Whether two shards have one name."""
        ordered = np.sort(self._names)
        return bool(np.any(ordered[1:] == ordered[:-1]))

    def sizes(self) -> Mapping[str, int]:
        """Size in bytes of each shard, by name; a million names take 4 MB, no dict's 200."""
        return _SizesByName(self._names, self.num_bytes)

    def digest_lines(self) -> Iterator[bytes]:
        """The lines that ``Manifest.digest`` is made of, some thousands at a time."""
        for start in range(0, len(self), _PIECE):
            piece = slice(start, start + _PIECE)
            names, counts = self._names[piece].tolist(), self.num_samples[piece].tolist()
            digits = self._sha256[piece].tobytes().hex()
            rows = enumerate(zip(names, counts, strict=True))
            yield "".join(
                f'["{name.decode()}", {count}, "{digits[64 * row : 64 * row + 64]}"]\n'
                for row, (name, count) in rows
            ).encode()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))


class _SizesByName(Mapping[str, int]):
    def __init__(self, names: NDArray[np.bytes_], num_bytes: NDArray[np.int64]) -> None:
        self._names = names
        self._num_bytes = num_bytes
        self._order = np.argsort(names).astype(np.int32)
        self._find = lru_cache(_NUM_KNOWN)(self._search)  # 4 us less for each read of a shard

    def __getitem__(self, name: str) -> int:
        return self._find(name)

    def _search(self, name: str) -> int:
        wanted = name.encode()
        # Not searchsorted, which copies the names where their dtype is not the wanted one's.
        place = bisect_left(self._order, wanted, key=self._names.__getitem__)
        if place < len(self._order):
            number = self._order[place]
            if self._names[number] == wanted:
                return int(self._num_bytes[number])
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name.decode() for name in self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass
class TableReader:
    """Takes the shards out of a manifest's JSON while it is parsed: ``object_hook`` of ``json``."""

    num_rows: int = 0
    _names: list[str] = field(default_factory=list)
    _num_samples: "array[int]" = field(default_factory=lambda: array("q"))
    _num_bytes: "array[int]" = field(default_factory=lambda: array("q"))
    _sha256: bytearray = field(default_factory=bytearray)
    _index_crc32: "array[int]" = field(default_factory=lambda: array("I"))

    def __call__(self, parsed: dict[str, Any]) -> Any:
        """A shard's row in the table; what is no shard of the usual kind, as it is."""
        if parsed.keys() not in (_FIELDS, _FIELDS_OF_1):
            return parsed
        index_crc32 = parsed.get("index_crc32", 0)
        name, num_samples, num_bytes, sha256 = (
            parsed["name"],
            parsed["num_samples"],
            parsed["num_bytes"],
            parsed["sha256"],
        )
        if not (
            isinstance(name, str)
            and _NAME.fullmatch(name)
            and type(num_samples) is type(num_bytes) is type(index_crc32) is int
            and 0 <= index_crc32 < 2**32
            and 0 <= num_samples < 2**63 > num_bytes >= 0
            and isinstance(sha256, str)
            and _HASH.fullmatch(sha256)
        ):
            return parsed
        self._names.append(name)
        self._num_samples.append(num_samples)
        self._num_bytes.append(num_bytes)
        self._sha256 += bytes.fromhex(sha256)
        if "index_crc32" in parsed:
            self._index_crc32.append(index_crc32)
        self.num_rows += 1
        return self.num_rows - 1

    def table(self, rows: object) -> ShardTable | None:
        """The table, where ``rows`` are all that was read, in order; None where they are not."""
        if not isinstance(rows, list) or rows != list(range(self.num_rows)):
            return None
        if len(self._index_crc32) not in (0, self.num_rows):
            return None  # some have it and some have not
        return ShardTable(
            np.array([name.encode() for name in self._names], dtype=np.bytes_),
            np.array(self._num_samples, dtype=np.int64),
            np.array(self._num_bytes, dtype=np.int64),
            np.frombuffer(bytes(self._sha256), dtype="V32"),
            np.array(self._index_crc32, dtype=np.uint32) if self._index_crc32 else None,
        )
