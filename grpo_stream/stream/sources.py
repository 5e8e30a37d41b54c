"""Where samples come from: one interface over shards and over raw records."""

import os
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple, Protocol

import numpy as np

from grpo_stream.errors import ShardFormatError
from grpo_stream.order.epoch_plan import Indices
from grpo_stream.shards.cache import ShardCache
from grpo_stream.shards.index import IndexEntry, ShardIndex
from grpo_stream.shards.linked_sets import with_sources
from grpo_stream.shards.manifest import Manifest, ShardInfo
from grpo_stream.shards.sample import Sample
from grpo_stream.shards.sample_runs import split_name
from grpo_stream.shards.tar import parse_sample
from grpo_stream.shards.tar_headers import BLOCK, plain_name
from grpo_stream.storage.blobs import Data
from grpo_stream.storage.joined_store import JoinedStore
from grpo_stream.storage.retrying_store import RetryingStore, RetryRules, open_retrying
from grpo_stream.storage.store import LocalStore, Store, is_object_store, open_store
from grpo_stream.stream.config import CacheSettings, StreamConfig

_NUM_OPEN_INDEXES = 64  # at 700 samples a shard 60 kB each
_MAX_RUN_BYTES = 8 * 2**20


class Encoded(Protocol):
    """A sample that has been fetched; it can be pickled."""

    def sample(self) -> Sample:
        """Checks it.

        Raises:
            ShardFormatError: its bytes are not what index and format say.
        """


class StoredSample(NamedTuple):
    """The bytes of one sample of a shard."""

    shard: str
    """The shard's name, for error messages."""
    data: Data
    entry: IndexEntry

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredSample, (self.shard, bytes(self.data), self.entry)

    def sample(self) -> Sample:
        """See :meth:`Encoded.sample`."""
        return parse_sample(self.data, self.shard, self.entry)


class Source(Protocol):
    """Samples by (shard, place in the shard); every method may be called from many threads."""

    @property
    def digest(self) -> str:
        """Changes whenever the data do."""

    @property
    def shard_counts(self) -> Indices:
        """int64, shape (num_shards,): samples per shard."""

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network, so that many reads should be on their way."""

    @property
    def keeps_shards(self) -> bool:
        """Whether whole shards are fetched to a local cache, ahead of what is read."""

    def sample_bytes(self, shard: int) -> int:
        """About how many bytes a sample of a shard has; known without reading anything."""

    def runs(self, shard: int, samples: Sequence[int]) -> list[list[int]]:
        """``samples`` of one shard in runs of neighbours, each of which is one request."""

    def fetch(self, shard: int, samples: Sequence[int]) -> Sequence[Encoded]:
        """Reads samples of one shard, neighbours by one request.

        Raises:
            StoreError: it cannot be fetched.
            ShardFormatError: the index is damaged, or the sample is too large.
            RecordError: the raw record is no sample.
        """

    def read(self, shard: int, sample: int) -> Sample:
        """Reads one sample and checks it: as :meth:`fetch` and :meth:`Encoded.sample`, in one."""

    def expect(self, shards: Iterable[int], num_shards_at_once: int) -> None:
        """Hears which shards the near future needs, in order of need."""

    def invalidate(self, shard: int) -> None:
        """Hears that a shard's bytes were wrong: local copies of it are dropped."""

    def describe(self, shard: int, sample: int) -> str:
        """Names a sample for people, without reading it."""

    def identity(self, shard: int, sample: int) -> str:
        """Names a sample whatever place its data set is moved to."""

    def metrics(self) -> dict[str, float]:
        """What reading took so far, for the log."""

    def close(self) -> None:
        """Ends what runs in the background."""


class ShardSource:
    """The shards of a manifest.

    Neighbouring samples that are asked for together come by one ranged read; a shard that is in
    the cache is read from there.

    Args:
        store: A URL or folder, or an open store.
        cache: Where whole shards are kept on a local disk; None reads by range only.
        retry: How long to wait for object storage, where ``store`` is a URL.
        max_sample_bytes: Larger samples are refused before they are fetched.
        manifest: The store's own, where it has been read already.

    Raises:
        ManifestError: there is no data set, or none that this version reads.
        StoreError: it cannot be reached.
        ConfigError: the cache cannot work.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Store,
        *,
        cache: CacheSettings | None = None,
        retry: RetryRules | None = None,
        max_sample_bytes: int = StreamConfig.max_sample_bytes,
        manifest: Manifest | None = None,
    ) -> None:
        if isinstance(store, (str, os.PathLike)):
            store = _open(store, retry)
        self.manifest = manifest or Manifest.load(store)
        self._store = store = with_sources(
            store, self.manifest.sources, partial(_open, retry=retry)
        )
        self._parts = [store.main, *store.others] if isinstance(store, JoinedStore) else [store]
        self.cache: ShardCache | None = None
        if cache is not None:
            self.cache = ShardCache(store, self.manifest, cache.cache_dir, cache.cache_bytes)
        self._reader = self.cache or store
        counts, sizes = self.manifest.sample_counts, self.manifest.byte_counts
        self._sample_bytes = sizes // np.maximum(counts, 1)
        self._max_sample_bytes = max_sample_bytes
        self._indexes: dict[int, tuple[str, ShardIndex]] = {}
        self._first_seen: dict[int, int | None] = {}  # check values; of older sets alone
        self._num_open_indexes = _NUM_OPEN_INDEXES
        self._lock = threading.Lock()

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self.manifest.digest

    @property
    def shard_counts(self) -> Indices:
        """int64, shape (num_shards,)."""
        return self.manifest.sample_counts

    @property
    def num_multi_image(self) -> int:
        """Samples of several images, as far as the manifest counts them."""
        return self.manifest.totals.get("num_multi_image", 0)

    @property
    def num_text_only(self) -> int:
        """Samples without images, as far as the manifest counts them."""
        return self.manifest.totals.get("num_text_only", 0)

    @property
    def is_remote(self) -> bool:
        """False for a folder."""
        return not all(isinstance(store, LocalStore) for store in self._parts)

    @property
    def keeps_shards(self) -> bool:
        """True with a cache."""
        return self.cache is not None

    def metrics(self) -> dict[str, float]:
        """What reading took so far: requests, retries, bytes; hits and downloads of the cache."""
        counts: dict[str, float] = {}
        for store in self._parts:
            if isinstance(store, RetryingStore):
                for name, count in vars(store.counters.snapshot()).items():
                    counts[name] = counts.get(name, 0) + count
        if self.cache is not None:
            counts |= {f"cache/{k}": v for k, v in vars(self.cache.snapshot()).items()}
        return counts

    def sample_bytes(self, shard: int) -> int:
        """See :meth:`Source.sample_bytes`: the mean of the shard."""
        return int(self._sample_bytes[shard])

    def runs(self, shard: int, samples: Sequence[int]) -> list[list[int]]:
        """See :meth:`Source.runs`: neighbours, up to 8 MiB or ``max_sample_bytes``."""
        if len(samples) == 1:
            return [list(samples)]
        _, index = self._index(shard)
        sizes = index.samples["num_bytes"]
        max_bytes = min(_MAX_RUN_BYTES, self._max_sample_bytes)  # fetch refuses samples, not runs
        groups: list[list[int]] = []
        num_bytes = 0
        for sample in sorted(samples):
            size = int(sizes[sample])
            is_next = groups and sample == groups[-1][-1] + 1
            if is_next and num_bytes + size <= max_bytes:
                groups[-1].append(sample)
                num_bytes += size
            else:
                groups.append([sample])
                num_bytes = size
        return groups

    def fetch(self, shard: int, samples: Sequence[int]) -> list[StoredSample]:
        """See :meth:`Source.fetch`."""
        name, index = self._index(shard)
        entries = [index[sample] for sample in samples]
        for sample, entry in zip(samples, entries, strict=True):
            if entry.num_bytes > self._max_sample_bytes:
                raise self._too_large(shard, sample, entry)
        found = self._reader.read_ranges(name, [entry[:2] for entry in entries])
        return list(map(StoredSample, repeat(name), found, entries))

    def read(self, shard: int, sample: int) -> Sample:
        """See :meth:`Source.read`."""
        name, index = self._index(shard)
        entry = index[sample]
        if entry.num_bytes > self._max_sample_bytes:
            raise self._too_large(shard, sample, entry)
        data = self._reader.read_range(name, entry.offset, entry.num_bytes)
        return parse_sample(data, name, entry)

    def keys(self, shard: int) -> list[str]:
        """The keys of a shard's samples, from a tar header of each; images are not read.

        Raises:
            StoreError, ShardFormatError: as :meth:`Source.read`.
        """
        name, index = self._index(shard)
        offsets = index.samples["offset"].tolist()
        heads = self._store.read_ranges(name, [(offset, BLOCK) for offset in offsets])
        names = [plain_name(bytes(head), name) for head in heads]
        return [
            self.read(shard, sample).key if found is None else split_name(found)[0]
            for sample, found in enumerate(names)
        ]

    def expect(self, shards: Iterable[int], num_shards_at_once: int) -> None:
        """See :meth:`Source.expect`: keeps as many indexes open; tells the cache."""
        self._num_open_indexes = max(_NUM_OPEN_INDEXES, 2 * num_shards_at_once)
        if self.cache is not None:
            self.cache.announce(self.manifest.shards[shard].name for shard in shards)

    def invalidate(self, shard: int) -> None:
        """See :meth:`Source.invalidate`."""
        with self._lock:
            self._indexes.pop(shard, None)
        if self.cache is not None:
            self.cache.drop(self.manifest.shards[shard].name)

    def describe(self, shard: int, sample: int) -> str:
        """See :meth:`Source.describe`."""
        return f"{self._store.url}: {self.manifest.shards[shard].name} sample {sample}"

    def identity(self, shard: int, sample: int) -> str:
        """See :meth:`Source.identity`: the data set by its digest."""
        return f"{self.digest[:12]}: {self.manifest.shards[shard].name} sample {sample}"

    def close(self) -> None:
        """Ends the cache's downloads; what failed and waits for its next try fails for good."""
        for store in self._parts:
            if isinstance(store, RetryingStore):
                store.close()
        if self.cache is not None:
            self.cache.close()

    def _too_large(self, shard: int, sample: int, entry: IndexEntry) -> ShardFormatError:
        detail = f"{self.describe(shard, sample)}: {entry.num_bytes} bytes are more than "
        return ShardFormatError("sample_bytes", f"{detail}max_sample_bytes")

    def index(self, shard: int) -> ShardIndex:
        """Where the samples of a shard are."""
        return self._index(shard)[1]

    def _index(self, shard: int) -> tuple[str, ShardIndex]:
        """The shard's name and index."""
        found = self._indexes.get(shard)
        if found is not None:
            return found
        # Loaded outside the lock: two threads may fetch the same index once each at the start,
        # which is cheaper than making every reader wait for one slow request.
        info = self.manifest.shards[shard]
        found = info.name, self._load_index(shard, info)
        with self._lock:
            self._indexes[shard] = found
            # The oldest: lanes walk from shard to shard, so it is the first to be done with.
            while len(self._indexes) > self._num_open_indexes:
                del self._indexes[next(iter(self._indexes))]
        return found

    def _load_index(self, shard: int, info: ShardInfo) -> ShardIndex:
        try:
            index = ShardIndex.load(self._store, info)
        except ShardFormatError as error:
            if error.cause != "bad_index":
                raise
            index = ShardIndex.load(self._store, info)  # a byte may have been changed on the way
        if info.index_crc32 is None:
            with self._lock:
                is_same = self._first_seen.setdefault(shard, index.crc32) == index.crc32
            if not is_same:
                detail = f"{self._store.url}: {info.name} was replaced while it was in use"
                raise ShardFormatError("foreign_index", f"{detail}: stop, and start anew with it")
        return index


def _open(url: str | os.PathLike[str], retry: RetryRules | None) -> Store:
    # A folder's reads need no patience, and counting them costs as much as a cached read.
    return open_retrying(url, retry) if is_object_store(os.fspath(url)) else open_store(url)
