"""The order of an epoch as arithmetic: nothing is shuffled, stored or replayed.

Let N samples lie in S shards. A keyed permutation of (seed, epoch) lays the shards end to end as
one virtual sequence, in which samples are permuted inside blocks of a few shards. The sequence is
cut into L equal lanes of T = N // L samples; prompt slot j of generation batch s reads ordinal
j*T + s::

    ordinal   0 ........ T-1 | T ....... 2T-1 | 2T ...... 3T-1 | ... | L*T .. N-1
              lane 0 (slot 0)  lane 1 (slot 1)  lane 2 (slot 2)         reserve
              ^ batch 0: the first sample of every lane, batch 1: the second, ...

One generation batch so mixes L distant places, while a rank, which owns neighbouring lanes, walks
through few shards at a time. The order depends on the data, the seed, the epoch, L and the block
size, and on nothing else.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from grpo_stream.errors import ConfigError

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


@dataclass(frozen=True)
class EpochPlan:
    """One epoch's order over shards of the given sample counts.

    Args:
        shard_counts: int64, shape (num_shards,): samples per shard, in the manifest's order.
        num_lanes: L, the prompts of a generation batch over all ranks.
        seed: Seed of the run's order.
        epoch: Counted from 0.
        block_shards: Shards per block inside which samples are mixed.

    Raises:
        ConfigError: fewer samples than lanes.
    """

    shard_counts: Indices
    num_lanes: int
    seed: int
    epoch: int
    block_shards: int
    _block_starts: Indices = field(init=False, repr=False)

    def __post_init__(self) -> None:
        counts = np.asarray(self.shard_counts, dtype=np.int64)
        object.__setattr__(self, "shard_counts", counts)
        ordered = counts[self._shards_at(np.arange(counts.size))]
        padding = -counts.size % self.block_shards
        sums = np.pad(ordered, (0, padding)).reshape(-1, self.block_shards).sum(axis=1)
        object.__setattr__(self, "_block_starts", np.concatenate([[0], np.cumsum(sums)]))
        if self.num_samples < self.num_lanes:
            raise ConfigError(
                "num_lanes",
                self.num_lanes,
                f"the data set has only {self.num_samples} samples; use at most that many prompts "
                "per generation batch",
            )

    @property
    def num_samples(self) -> int:
        """N."""
        return int(self._block_starts[-1])

    @property
    def num_batches(self) -> int:
        """T: generation batches of the epoch, the same on every rank."""
        return self.num_samples // self.num_lanes

    @property
    def num_reserve(self) -> int:
        """Samples behind the last lane: they stand in for samples that cannot be read."""
        return self.num_samples - self.num_batches * self.num_lanes

    def slot_ordinals(self, batch_index: int, slots: range) -> Indices:
        """Ordinals that ``slots`` read in generation batch ``batch_index``, int64."""
        if not 0 <= batch_index < self.num_batches:
            raise IndexError(f"batch {batch_index} of {self.num_batches}")
        return np.asarray(slots, dtype=np.int64) * self.num_batches + batch_index

    def stand_ins(self, batch_index: int, slot: int, count: int) -> Indices:
        """Ordinals to try in turn when slot ``slot`` of a batch cannot be read, int64.

        First the reserve, from a place that depends on (batch, slot) alone, then the neighbours
        that follow the slot's own ordinal. Needs no word between ranks.
        """
        own = slot * self.num_batches + batch_index
        start = batch_index * self.num_lanes + slot
        turns = np.arange(count, dtype=np.int64)
        first_reserve = self.num_batches * self.num_lanes
        from_reserve = first_reserve + (start + turns) % max(self.num_reserve, 1)
        neighbours = (own + 1 + turns - self.num_reserve) % self.num_samples
        return np.where(turns < self.num_reserve, from_reserve, neighbours)

    def locate(self, ordinals: Indices) -> tuple[Indices, Indices]:
        """Shard (place in the manifest) and sample (place in the shard) of each ordinal.

        Args:
            ordinals: int64, shape (n,), each in [0, num_samples).

        Returns:
            Two int64 arrays of shape (n,).
        """
        ordinals = np.asarray(ordinals, dtype=np.int64)
        # Empty blocks repeat a start; "right" finds the last of them, the one with samples.
        block = np.searchsorted(self._block_starts, ordinals, side="right") - 1
        start = self._block_starts[block]
        size = self._block_starts[block + 1] - start
        keys = np.array(
            [derive_key("samples", self.seed, self.epoch, int(b)) for b in block], dtype=np.uint64
        )
        inside = permute(ordinals - start, size, keys)
        # The block's shards in order and how many samples lie before each of them: (n, block).
        places = block[:, None] * self.block_shards + np.arange(self.block_shards)
        num_shards = self.shard_counts.size
        shards = self._shards_at(np.minimum(places, num_shards - 1))
        counts = np.where(places < num_shards, self.shard_counts[shards], 0)
        ends = np.cumsum(counts, axis=1)
        column = (ends <= inside[:, None]).sum(axis=1)
        rows = np.arange(ordinals.size)
        sample = inside - (ends - counts)[rows, column]
        return shards[rows, column], sample

    def _shards_at(self, places: Indices) -> Indices:
        key = derive_key("shards", self.seed, self.epoch)
        return permute(places, self.shard_counts.size, key)
