"""Which samples to look at: spread over the set, by key, by words of the prompt, or warned of."""

import bisect
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, groupby, pairwise

from grpo_stream.errors import ConfigError
from grpo_stream.shards.index import IndexEntry, ShardIndex
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import Sample
from grpo_stream.shards.sample_runs import split_name
from grpo_stream.shards.tar import read_sample
from grpo_stream.shards.tar_headers import iter_members
from grpo_stream.storage.store import Store
from shard_builder.build.output.reject_lists import WARNINGS_NAME
from shard_builder.datasets.read_json_members import read_meta

_MAX_OPEN_INDEXES = 32


class Places:
    """A data set's samples by their position over all shards, each read by one ranged read.

    Thread-safe; holds at most 32 shard indexes.

    Raises:
        StoreError: an index or a sample cannot be had.
        ShardFormatError: its bytes are not what the format says.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self._ends = list(accumulate(shard.num_samples for shard in manifest.shards))
        self._index = lru_cache(maxsize=_MAX_OPEN_INDEXES)(self._load)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def shard(self, position: int) -> str:
        """Name of the shard that holds the sample."""
        return self._place(position)[0]

    def read(self, position: int) -> Sample:
        """The sample at ``position``, from 0."""
        return read_sample(self.store, *self._place(position))

    def prompt(self, position: int) -> str:
        """Its prompt alone, without reading its images."""
        return str(read_meta(self.store, *self._place(position))["prompt"])

    def _place(self, position: int) -> tuple[str, IndexEntry]:
        number = bisect.bisect_right(self._ends, position)
        info = self.manifest.shards[number]
        return info.name, self._index(number)[position - self._ends[number]]

    def _load(self, number: int) -> ShardIndex:
        return ShardIndex.load(self.store, self.manifest.shards[number])


def spread(total: int, count: int, seed: int) -> list[int]:
    """``count`` of the positions 0 to ``total`` - 1, one from each of as many equal stretches.

    All of them when there are no more. Depends on nothing but its arguments.
    """
    count = min(total, count)
    chance = random.Random(seed)  # noqa: S311 - no secret
    ends = [number * total // count for number in range(count + 1)] if count else []
    # random() alone is the same in every version of Python.
    return [a + int(chance.random() * (b - a)) for a, b in pairwise(ends)]


def find_keys(places: Places, keys: Iterable[str]) -> list[int]:
    """Positions of the samples that have these keys, in the order of ``keys``.

    Where keys increase through the set, as those of a build without shuffling do, a key costs
    about log2(samples) reads; what is not found so is looked for by reading the shards.

    Raises:
        ConfigError: a key is not in the set.
    """
    wanted = list(dict.fromkeys(keys))
    found = {}
    for key in wanted:
        position = _search(places, key)
        if position is not None:
            found[key] = position
    missing = set(wanted) - found.keys()
    if missing:
        for position, key in enumerate(_all_keys(places)):
            if key in missing:
                found[key] = position
                missing.discard(key)
                if not missing:
                    break
    if missing:
        first = next(key for key in wanted if key in missing)
        expected = f"is no key of this data set; the first is {places.read(0).key!r}"
        raise ConfigError("--keys", first, expected)
    return [found[key] for key in wanted]


def warned(store: Store, count: int, seed: int) -> dict[str, list[str]]:
    """Keys that ``warnings.jsonl`` names, each with what it was warned of.

    At most ``count`` keys, chosen by ``seed`` and of every cause as many as there is room for,
    while the list is read once, line by line.

    Raises:
        ConfigError: there is no such list, or it names no sample.
    """
    if not store.exists(WARNINGS_NAME):
        raise ConfigError("--warnings", store.url, f"has no {WARNINGS_NAME}: leave the flag out")
    chance = random.Random(seed)  # noqa: S311 - no secret
    kept: dict[str, list[tuple[str, str]]] = {}  # by cause: key and line
    seen: dict[str, int] = {}
    with store.open_stream(WARNINGS_NAME) as file:
        for line in file:
            row = json.loads(line)
            if not isinstance(row.get("key"), str):
                continue
            cause = str(row["cause"])
            pair = (row["key"], f"{cause}: {row['detail']}")
            some = kept.setdefault(cause, [])
            seen[cause] = seen.get(cause, 0) + 1
            if len(some) < count:
                some.append(pair)
            elif (place := int(chance.random() * seen[cause])) < count:
                some[place] = pair
    if not kept:
        expected = f"its {WARNINGS_NAME} names no sample: leave the flag out"
        raise ConfigError("--warnings", store.url, expected)
    return _in_turn(list(kept.values()), count)


def _in_turn(causes: Sequence[Sequence[tuple[str, str]]], count: int) -> dict[str, list[str]]:
    """Takes a pair of each cause in turn until there are ``count`` keys; then only their lines."""
    taken: dict[str, list[str]] = {}
    for number in range(max(map(len, causes))):
        for some in causes:
            if number < len(some) and (some[number][0] in taken or len(taken) < count):
                taken.setdefault(some[number][0], []).append(some[number][1])
    return taken


def _search(places: Places, key: str) -> int | None:
    low, high = 0, len(places)
    while low < high:
        middle = (low + high) // 2
        found = places.read(middle).key
        if found == key:
            return middle
        if found < key:
            low = middle + 1
        else:
            high = middle
    return None


def _all_keys(places: Places) -> Iterator[str]:
    for info in places.manifest.shards:
        with places.store.open_stream(info.name) as file:
            members = iter_members(file, info.name, is_whole=True)
            for key, _ in groupby(split_name(member.name)[0] for member in members):
                yield key
