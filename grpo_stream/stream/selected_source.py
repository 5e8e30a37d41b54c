"""A choice of a data set's samples: each none, one or several times an epoch.

A source over another one, so that order, lanes, reserve and cursor stay the arithmetic that they
are: its digest depends on the choice, and a position in one choice is none in another.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from grpo_stream.errors import ConfigError
from grpo_stream.order.epoch_plan import Indices
from grpo_stream.order.permutation import derive_key
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.source_over_source import SourceOverSource
from grpo_stream.stream.sources import Encoded, Source

Copies = NDArray[np.uint8]
"""For each sample, in the order of shards and of samples in them, how often it comes an epoch."""

MAX_WEIGHT = 100.0
_NUM_KEPT = 256  # shards whose choice is remembered, some kB each
_NUM_THREADS = 16


def count_copies(
    keys_of: Callable[[int], Sequence[str]],
    num_shards: int,
    weights: Mapping[str, float],
    other: float = 1.0,
) -> tuple[Copies, int]:
    """How often each sample comes an epoch: a weight's whole part, and by chance once more.

    The chance is the rest of the weight, and the draw depends on the key alone: of many samples of
    weight 0.5 half are in, the same ones for every seed, epoch and rank.

    Args:
        keys_of: The keys of a shard's samples, in their order; called from several threads.
        num_shards: Of the data set.
        weights: By key, from 0 to :data:`MAX_WEIGHT`.
        other: Of samples that have none.

    Returns:
        The counts, and how many samples have a weight.

    Raises:
        ConfigError: a weight is out of range.
    """
    for key, weight in (*weights.items(), ("others", other)):
        if not 0 <= weight <= MAX_WEIGHT:
            expected = f"must be from 0 to {MAX_WEIGHT:g}, for example 0.5"
            raise ConfigError(f"weight of {key}", weight, expected)
    shards: list[Copies] = []
    num_known = 0
    with ThreadPoolExecutor(_NUM_THREADS, "sample-keys") as pool:
        for keys in pool.map(keys_of, range(num_shards)):
            shards.append(
                np.array([_copies(key, weights.get(key, other)) for key in keys], np.uint8)
            )
            num_known += sum(key in weights for key in keys)
    return np.concatenate(shards), num_known


def _copies(key: str, weight: float) -> int:
    whole, rest = divmod(weight, 1)
    return int(whole) + (rest > 0 and derive_key("copies", key) < rest * 2**64)


class SelectedSource(SourceOverSource[Source]):
    """Some samples of a source, some of them several times; as :class:`.sources.Source`.

    Args:
        samples: All of them.
        copies: See :data:`Copies`.
        reading: What was chosen, in words.
    """

    def __init__(self, samples: Source, copies: Copies, reading: str = "") -> None:
        super().__init__(samples)
        self._copies = copies
        counts = samples.shard_counts
        self._ends = np.cumsum(counts)
        starts = self._ends - counts
        sums = np.concatenate([[0], np.cumsum(copies, dtype=np.int64)])
        self._counts: Indices = sums[self._ends] - sums[starts]
        self.readings = (*getattr(samples, "readings", ()), *([reading] if reading else ()))
        """How numbers are read, and what was chosen, in words."""
        self._chosen = lru_cache(_NUM_KEPT)(self._find_chosen)

    @property
    def digest(self) -> str:
        """Of the samples and of the choice."""
        found = hashlib.sha256(f"selection of {self._samples.digest}: ".encode())
        found.update(self._copies.tobytes())
        return found.hexdigest()

    @property
    def num_multi_image(self) -> int:
        """Samples of several images in the whole set, chosen or not."""
        return getattr(self._samples, "num_multi_image", 0)

    @property
    def num_text_only(self) -> int:
        """Samples without images in the whole set, chosen or not."""
        return getattr(self._samples, "num_text_only", 0)

    @property
    def shard_counts(self) -> Indices:
        """int64, shape (num_shards,): places per shard; a shard may have none."""
        return self._counts

    def sample_bytes(self, shard: int) -> int:
        """See :meth:`.sources.Source.sample_bytes`."""
        return self._samples.sample_bytes(shard)

    def runs(self, shard: int, samples: Sequence[int]) -> list[list[int]]:
        """See :meth:`.sources.Source.runs`: a sample's copies are in one run."""
        places: dict[int, list[int]] = {}
        for place in samples:
            places.setdefault(self._at(shard, place), []).append(place)
        runs = self._samples.runs(shard, list(places))
        return [[place for sample in run for place in places[sample]] for run in runs]

    def fetch(self, shard: int, samples: Sequence[int]) -> list[Encoded]:
        """See :meth:`.sources.Source.fetch`: what is asked for several times is read once."""
        wanted = [self._at(shard, place) for place in samples]
        distinct = list(dict.fromkeys(wanted))
        found = dict(zip(distinct, self._samples.fetch(shard, distinct), strict=True))
        return [found[sample] for sample in wanted]

    def read(self, shard: int, sample: int) -> Sample:
        """See :meth:`.sources.Source.read`."""
        return self._samples.read(shard, self._at(shard, sample))

    def describe(self, shard: int, sample: int) -> str:
        """See :meth:`.sources.Source.describe`."""
        return self._samples.describe(shard, self._at(shard, sample))

    def identity(self, shard: int, sample: int) -> str:
        """See :meth:`.sources.Source.identity`: that of the sample, whatever was chosen."""
        return self._samples.identity(shard, self._at(shard, sample))

    def _at(self, shard: int, place: int) -> int:
        return int(self._chosen(shard)[place])

    def _find_chosen(self, shard: int) -> Indices:
        """The sample at each place of a shard."""
        end = int(self._ends[shard])
        start = end - int(self._samples.shard_counts[shard])
        own = self._copies[start:end]
        return np.repeat(np.arange(len(own)), own)
