"""Whole shards kept on a local disk, shared by the ranks and jobs of a machine.

:class:`ShardCache` wraps the store that the shards come from. A shard that is announced is fetched
once per machine, in the background; until it has arrived, and whenever the cache cannot help
(no room, disk full, folder gone), reads go to the store by range, as they would without a cache.
Where a server answers no ranges, reads wait for their shard instead.
"""

import os
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.shards.cache_fetcher import MAX_ANNOUNCED, CacheCounts, ShardFetcher
from grpo_stream.shards.cache_folder import CacheFolder, OpenShard
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.blobs import BlobInfo, Data, Range, adjacent_runs, cut, span
from grpo_stream.storage.store import Store

__all__ = ["MAX_ANNOUNCED", "CacheCounts", "ShardCache"]

_PAUSE_SECONDS = 60.0
_KEY_DIGITS = 24
_PIECE_BYTES = 2**20


class ShardCache:
    """A store whose shards are kept in a bounded local folder. See :class:`Store`.

    Only reads of ranges go to the cache; all else goes to the wrapped store. May be used
    by many threads; a forked child must open its own (StoreError, cause ``forked``).

    Args:
        store: Where the shards come from. Its own retries and time-outs hold for downloads too.
        manifest: Of the data set in ``store``: names and sizes of the shards.
        cache_dir: Folder on a disk of this machine; several processes and data sets may share it.
        cache_bytes: Bound to all files of the cache in ``cache_dir``; the same in each process.
        num_threads: Downloads at a time of this process.
        pause_seconds: How long nothing is fetched after the disk refused to take more.

    Raises:
        ConfigError: ``cache_dir`` cannot be written; ``cache_bytes`` is less than the largest
            shard.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        cache_dir: str | os.PathLike[str],
        cache_bytes: int,
        num_threads: int = 2,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self._store = store
        self._sizes = manifest.sizes()
        largest = int(manifest.byte_counts.max(initial=0))
        if cache_bytes < largest:
            expected = f"must hold at least the largest shard, so {largest} or more"
            raise ConfigError("cache_bytes", cache_bytes, expected)
        try:
            kept = CacheFolder(cache_dir, manifest.digest[:_KEY_DIGITS], cache_bytes)
        except OSError as error:
            expected = f"must be a folder that can be written, on a local disk ({error}); for "
            raise ConfigError(
                "cache_dir", os.fspath(cache_dir), f"{expected}example ./shard_cache"
            ) from error
        self._pid = os.getpid()
        self._answers_ranges = True
        self._fetcher = ShardFetcher(store, self._sizes, kept, num_threads, pause_seconds)

    @property
    def url(self) -> str:
        """The wrapped store's URL."""
        return self._store.url

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        """See :meth:`Store.read_range`; as :meth:`read_ranges`."""
        return bytes(self.read_ranges(name, [(offset, num_bytes)])[0])

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> Sequence[Data]:
        """See :meth:`Store.read_ranges`; from the cache where the shard is in it.

        From a server that ignores ranges the shard comes whole: the read waits until it is in the
        cache, announced or not, and where the cache cannot take it, reads the object from its
        start up to the range's end.
        """
        size = self._sizes.get(name)
        if size is None or max(map(sum, ranges)) > size:
            return self._store.read_ranges(name, ranges)  # its error is the clearer one
        self._check_process()
        shard = self._fetcher.find(name)
        found = None if shard is None else self._read_cached(name, shard, ranges)
        self._fetcher.count_read(name, is_hit=found is not None)
        return self._read_missing(name, ranges) if found is None else found

    def announce(self, names: Iterable[str]) -> None:
        """Says which shards are needed from now on; replaces what was announced before.

        They are fetched in the background and not evicted, by no process, until another
        announcement leaves them out or the cache is closed. Returns at once.

        Args:
            names: In order of need. The first :data:`MAX_ANNOUNCED` count; others than the
                manifest's shards are ignored.
        """
        self._check_process()
        self._fetcher.announce(names)

    def drop(self, name: str) -> None:
        """Throws a shard out whose content proved to be wrong.

        This process reads it from the store from now on and does not fetch it again.
        """
        self._fetcher.drop(name, "holds other bytes than the index says")

    def snapshot(self) -> CacheCounts:
        """The counts of this object as they are now."""
        return self._fetcher.snapshot()

    def close(self) -> None:
        """Ends the downloads and lets go of all shards; what is here stays for others.

        Waits at most a second for a request in flight; its thread ends when the request does.
        Reads after that still work.
        """
        self._fetcher.close()

    def __enter__(self) -> "ShardCache":  # noqa: PYI034 - Python 3.10 has no typing.Self
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, name: str) -> bytes:
        """See :meth:`Store.read`."""
        return self._store.read(name)

    def open_stream(self, name: str) -> BinaryIO:
        """See :meth:`Store.open_stream`."""
        return self._store.open_stream(name)

    def write(self, name: str, data: bytes) -> None:
        """See :meth:`Store.write`."""
        self._store.write(name, data)

    def write_new(self, name: str, data: bytes) -> bool:
        """See :meth:`Store.write_new`."""
        return self._store.write_new(name, data)

    def put_file(self, name: str, path: str | os.PathLike[str]) -> str:
        """See :meth:`Store.put_file`."""
        return self._store.put_file(name, path)

    def delete(self, name: str) -> None:
        """See :meth:`Store.delete`."""
        self._store.delete(name)

    def exists(self, name: str) -> bool:
        """See :meth:`Store.exists`."""
        return self._store.exists(name)

    def size(self, name: str) -> int:
        """See :meth:`Store.size`."""
        return self._store.size(name)

    def list_names(self) -> list[str]:
        """See :meth:`Store.list_names`."""
        return self._store.list_names()

    def sizes(self) -> dict[str, int]:
        """See :meth:`Store.sizes`."""
        return self._store.sizes()

    def listing(self) -> dict[str, BlobInfo]:
        """See :meth:`Store.listing`."""
        return self._store.listing()

    def walk(self, prefix: str = "") -> list[str]:
        """See :meth:`Store.walk`."""
        return self._store.walk(prefix)

    def _read_missing(self, name: str, ranges: Sequence[Range]) -> Sequence[Data]:
        if self._answers_ranges:
            try:
                return self._store.read_ranges(name, ranges)
            except StoreError as error:
                if error.cause != "range_ignored":
                    raise
                self._answers_ranges = False
        shard = self._fetcher.wait_for(name)
        found = None if shard is None else self._read_cached(name, shard, ranges)
        if found is not None:
            return found
        runs = adjacent_runs(ranges)
        return [data for run in runs for data in cut(self._read_through(name, *span(run)), run)]

    def _read_through(self, name: str, offset: int, num_bytes: int) -> bytes:
        with self._store.open_stream(name) as stream:
            while offset > 0 and (skipped := stream.read(min(offset, _PIECE_BYTES))):
                offset -= len(skipped)
            data = stream.read(num_bytes)
        if len(data) < num_bytes:
            detail = (
                f"{self.url}: {name}: ends before the {self._sizes[name]} bytes of the manifest"
            )
            raise StoreError("short_read", detail)
        return data

    def _read_cached(
        self, name: str, shard: OpenShard, ranges: Sequence[Range]
    ) -> Sequence[Data] | None:
        try:
            found = [shard.read_range(offset, num_bytes) for offset, num_bytes in ranges]
        except OSError as error:
            self._fetcher.drop(name, f"cannot be read ({error})")
            return None
        if any(len(data) < size for data, (_, size) in zip(found, ranges, strict=True)):
            self._fetcher.drop(name, "was cut short")
            return None
        return found

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            detail = f"{self.url}: the cache was opened in process {self._pid}, before the fork"
            raise StoreError("forked", f"{detail}; start workers with spawn or forkserver")
