"""Where the samples of an epoch are in its order: computed, never shuffled or stored.

A keyed permutation of (seed, epoch) lays the shards end to end, and another one permutes the
samples inside every block of a few neighbouring shards. The place of a sample in that sequence is
its *ordinal*; :meth:`EpochOrder.locate` computes the sample of any ordinal at the same price.
"""

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_U64 = NDArray[np.uint64]

_NUM_ROUNDS = 6
_PIECE = 1 << 16  # elements


def derive_key(*parts: int | str) -> int:
    """A 64-bit key that depends on every part and on their order."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(index: Indices, size: Indices | int, key: _U64 | int) -> Indices:
    """Maps each ``index`` in [0, size) to its place in a keyed permutation of [0, size).

    A Feistel network over the next even power of two, walked until it lands inside (cycle
    walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), so any single
    value costs the same whatever ``size`` is. ``size`` and ``key`` may differ per element.

    Args:
        index: int64, any shape.
        size: Number of elements permuted; broadcast against ``index``.
        key: 64-bit key; broadcast against ``index``.

    Returns:
        int64, the shape of ``index``.

    Raises:
        IndexError: an index is not in [0, size); walking it would never end.
    """
    index = np.asarray(index, dtype=np.int64)
    sizes = np.broadcast_to(np.asarray(size, dtype=np.uint64), index.shape).ravel()
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), index.shape).ravel()
    values = index.astype(np.uint64).ravel()  # a negative index becomes a huge one
    if np.any(values >= sizes):
        raise IndexError(f"an index is outside of [0, {size})")
    # In pieces: at a million shards the temporaries of one go would take ten times the result.
    for start in range(0, values.size, _PIECE):
        piece = slice(start, start + _PIECE)
        values[piece] = _walked(values[piece], sizes[piece], keys[piece])
    return values.astype(np.int64).reshape(index.shape)


def _walked(values: _U64, sizes: _U64, keys: _U64) -> _U64:
    # Half the bits of the smallest 4**b >= size; float64 is exact enough up to 2**52 samples.
    bits = np.ceil(np.log2(np.maximum(sizes, 2).astype(np.float64)) / 2).astype(np.uint64)
    values = _feistel(values, bits, keys)
    walking = np.flatnonzero(values >= sizes)
    while walking.size:
        values[walking] = _feistel(values[walking], bits[walking], keys[walking])
        walking = walking[values[walking] >= sizes[walking]]
    return values


def _feistel(values: _U64, bits: _U64, keys: _U64) -> _U64:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = values >> bits, values & mask
    for number in range(_NUM_ROUNDS):
        mixed = _mix(right ^ (keys + np.uint64(number * 0x9E3779B97F4A7C15 % 2**64)))
        left, right = right, (left ^ mixed) & mask
    joined: _U64 = (left << bits) | right
    return joined


def _mix(values: _U64) -> _U64:
    """splitmix64's finaliser (Steele, Lea, Flood 2014); the overflow is the arithmetic."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _U64 = values ^ (values >> np.uint64(31))
    return mixed


class _Blocks(NamedTuple):
    """What :meth:`EpochOrder.locate` needs to know of a few blocks; d blocks of b shards each."""

    blocks: Indices  # (d,), ascending
    keys: _U64  # (d,)
    shards: Indices  # (d * b,): place in the manifest
    ends: Indices  # (d * b,), ascending: where each shard would end if its block were not permuted


@dataclass(frozen=True)
class EpochOrder:
    """The order of an epoch's samples, before it is cut into lanes.

    Args:
        shard_counts: int64, shape (num_shards,): samples per shard, in the manifest's order.
        seed: Seed of the run's order.
        epoch: Counted from 0.
        block_shards: Shards per block inside which samples are mixed.
    """

    shard_counts: Indices
    seed: int
    epoch: int
    block_shards: int
    _block_starts: Indices = field(init=False, repr=False)
    # The blocks of the last look-up: lanes are walked, so the next one mostly needs the same.
    _last: list[_Blocks] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        counts = np.asarray(self.shard_counts, dtype=np.int64)
        object.__setattr__(self, "shard_counts", counts)
        ordered = counts[self._shards_at(np.arange(counts.size))]
        padding = -counts.size % self.block_shards
        sums = np.pad(ordered, (0, padding)).reshape(-1, self.block_shards).sum(axis=1)
        object.__setattr__(self, "_block_starts", np.concatenate([[0], np.cumsum(sums)]))
        self._last.append(self._look_up(np.arange(0)))

    @property
    def num_samples(self) -> int:
        """N."""
        return int(self._block_starts[-1])

    def locate(self, ordinals: Indices) -> tuple[Indices, Indices]:
        """Shard (place in the manifest) and sample (place in the shard) of each ordinal.

        Args:
            ordinals: int64, any shape, each in [0, num_samples).

        Returns:
            Two int64 arrays of that shape.

        Raises:
            IndexError: an ordinal is outside of the epoch.
        """
        ordinals = np.asarray(ordinals, dtype=np.int64)
        flat = ordinals.ravel()
        if flat.size and not 0 <= flat.min() <= flat.max() < self.num_samples:
            raise IndexError(f"an ordinal is outside of [0, {self.num_samples})")
        shards, samples = np.empty_like(flat), np.empty_like(flat)
        for start in range(0, flat.size, _PIECE):
            piece = slice(start, start + _PIECE)
            shards[piece], samples[piece] = self._located(flat[piece])
        return shards.reshape(ordinals.shape), samples.reshape(ordinals.shape)

    def _located(self, ordinals: Indices) -> tuple[Indices, Indices]:
        # Empty blocks repeat a start; "right" finds the last of them, the one with samples.
        block = np.searchsorted(self._block_starts, ordinals, side="right") - 1
        start = self._block_starts[block]
        size = self._block_starts[block + 1] - start
        known = self._known(np.unique(block))
        keys = known.keys[np.searchsorted(known.blocks, block)]
        before_mixing = start + permute(ordinals - start, size, keys)
        place = np.searchsorted(known.ends, before_mixing, side="right")
        shards = known.shards[place]
        # Empty shards end where the one before them does and are never found.
        begins = known.ends[place] - self.shard_counts[shards]
        return shards, before_mixing - begins

    def _known(self, blocks: Indices) -> _Blocks:
        last = self._last[0]  # read once: another thread may put its own there meanwhile
        at = np.minimum(np.searchsorted(last.blocks, blocks), last.blocks.size - 1)
        if last.blocks.size and np.array_equal(last.blocks[at], blocks):
            return last
        self._last[0] = found = self._look_up(blocks)
        return found

    def _look_up(self, blocks: Indices) -> _Blocks:
        places = blocks[:, None] * self.block_shards + np.arange(self.block_shards)
        num_shards = self.shard_counts.size
        shards = self._shards_at(np.minimum(places, num_shards - 1))
        # The last block may have fewer shards than the others: the missing ones are empty.
        counts = np.where(places < num_shards, self.shard_counts[shards], 0)
        ends = self._block_starts[blocks][:, None] + np.cumsum(counts, axis=1)
        prefix = hashlib.blake2b(f"samples/{self.seed}/{self.epoch}/".encode(), digest_size=8)
        return _Blocks(blocks, _derive_keys(prefix, blocks), shards.ravel(), ends.ravel())

    def _shards_at(self, places: Indices) -> Indices:
        key = derive_key("shards", self.seed, self.epoch)
        return permute(places, self.shard_counts.size, key)


def _derive_keys(prefix: "hashlib.blake2b", numbers: Indices) -> _U64:
    """:func:`derive_key` for many last parts: what they have in common is hashed once."""
    digests = []
    for number in numbers.tolist():
        one = prefix.copy()
        one.update(b"%d" % number)
        digests.append(one.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
