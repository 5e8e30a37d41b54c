"""Fetches announced shards into the cache folder, in the background, and keeps them open."""

import errno
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from grpo_stream.errors import StoreError
from grpo_stream.shards.cache_folder import CacheFolder, CacheRefusal, Download, OpenShard
from grpo_stream.storage.blobs import first_line
from grpo_stream.storage.store import Store

MAX_ANNOUNCED = 512
"""Shards of one announcement that count; each holds a file descriptor."""

_PIECE_BYTES = 2**20
_POLL_SECONDS = 0.25  # how soon the end of another process's download is noticed
_FULL_SECONDS = 1.0
_RETRY_SECONDS = 30.0  # after a failed download; the store has tried again itself before
_CLOSE_SECONDS = 1.0
_BUSY_SECONDS = 60.0  # how long another process may take over a shard that is waited for

_logger = logging.getLogger(__name__)


@dataclass
class CacheCounts:
    """What a shard cache did since it was opened."""

    num_hits: int = 0
    """Reads from the cache."""
    num_misses: int = 0
    """Reads that did not find their shard in the cache."""
    num_misses_full: int = 0
    """Those of the misses whose shard was announced but found no room."""
    num_downloads: int = 0
    """Shards that were fetched whole."""
    num_bytes_downloaded: int = 0
    """Bytes of shards fetched, those of downloads that failed included."""
    num_evictions: int = 0
    """Files removed to make room."""
    num_failures: int = 0
    """Downloads that failed, and cached files that proved to be damaged."""


class ShardFetcher:
    """The shards that one process needs, in the cache folder. For use by many threads.

    Args:
        store: Where the shards come from.
        sizes: Size in bytes of each shard, by name.
        folder: Where they go.
        num_threads: Downloads at a time.
        pause_seconds: How long nothing is fetched after the disk refused to take more.
    """

    def __init__(
        self,
        store: Store,
        sizes: Mapping[str, int],
        folder: CacheFolder,
        num_threads: int,
        pause_seconds: float,
    ) -> None:
        self._store = store
        self._sizes = sizes
        self._folder = folder
        self._pause_seconds = pause_seconds
        self._changed = threading.Condition()  # guards all below
        self._wanted: dict[str, None] = {}  # in order of need
        self._awaited = Counter[str]()  # how many wait for a shard; they go before _wanted
        self._held: dict[str, OpenShard] = {}  # those of _wanted that are here
        self._arriving: set[str] = set()
        self._dropped: set[str] = set()
        self._not_before: dict[str, float] = {}  # another process fetches it
        self._failed_until: dict[str, float] = {}
        self._full_until = -math.inf
        self._paused_until = -math.inf
        self._is_closed = False
        self._has_warned = False
        self._counts = CacheCounts()
        self._threads = [
            threading.Thread(target=self._work, name=f"shard-cache-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def announce(self, names: Iterable[str]) -> None:
        """See :meth:`ShardCache.announce`."""
        known = (name for name in dict.fromkeys(names) if name in self._sizes)
        wanted = dict.fromkeys(name for name, _ in zip(known, range(MAX_ANNOUNCED), strict=False))
        with self._changed:
            if self._is_closed or list(wanted) == list(self._wanted):
                return
            self._wanted = wanted
            left = [name for name in self._held if name not in wanted]
            for name in left:
                del self._held[name]  # a reader may still have it; then it is closed after that
            if left:
                self._full_until = -math.inf
            self._not_before = {n: t for n, t in self._not_before.items() if n in wanted}
            self._failed_until = {n: t for n, t in self._failed_until.items() if n in wanted}
            self._changed.notify_all()

    def find(self, name: str) -> OpenShard | None:
        """The shard, when it is in the folder, whoever fetched it."""
        shard = self._held.get(name)
        if shard is None and name not in self._dropped:
            # Even if a thread of ours is at it: it may have been here all along.
            shard = self._folder.open(name, self._sizes[name])
            if shard is not None:
                self._hold(name, shard)
        return shard

    def wait_for(self, name: str) -> OpenShard | None:
        """The shard, as soon as it is in the folder; fetched first, announced or not.

        Returns:
            None when it cannot come for now: it was dropped, there is no room, disk or store
            fails, another process has been at it for a minute, or this object is closed.
        """
        with self._changed:
            self._awaited[name] += 1
            self._changed.notify_all()
        busy_until = time.monotonic() + _BUSY_SECONDS
        try:
            while (shard := self.find(name)) is None and self._may_come(name, busy_until):
                with self._changed:
                    self._changed.wait(_POLL_SECONDS)
        finally:
            with self._changed:
                self._awaited -= Counter((name,))
                if name not in self._awaited and name not in self._wanted:
                    self._held.pop(name, None)
        return shard

    def drop(self, name: str, reason: str) -> None:
        """See :meth:`ShardCache.drop`."""
        with self._changed:
            self._dropped.add(name)
            shard = self._held.pop(name, None)
        self._folder.remove(name, shard)
        self._count(num_failures=1)
        self._warn(f"{name} is thrown out, it {reason}")

    def count_read(self, name: str, is_hit: bool) -> None:
        """Counts a read of a shard."""
        is_full = not is_hit and name in self._wanted and time.monotonic() < self._full_until
        self._count(num_hits=is_hit, num_misses=not is_hit, num_misses_full=is_full)

    def snapshot(self) -> CacheCounts:
        """The counts as they are now."""
        with self._changed:
            return replace(self._counts, num_evictions=self._folder.num_evicted)

    def close(self) -> None:
        """See :meth:`ShardCache.close`."""
        with self._changed:
            self._is_closed = True
            self._wanted = {}
            self._held = {}
            self._changed.notify_all()
        end = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _hold(self, name: str, shard: OpenShard) -> None:
        with self._changed:
            is_needed = name in self._wanted or name in self._awaited
            if is_needed and name not in self._dropped:
                self._held[name] = shard

    def _work(self) -> None:
        while True:
            with self._changed:
                name = self._next()
                while name is None and not self._is_closed:
                    wanted = self._wanted.keys() | self._awaited.keys()
                    is_done = wanted <= self._held.keys() | self._dropped
                    self._changed.wait(None if is_done else _POLL_SECONDS)
                    name = self._next()
                if name is None or self._is_closed:
                    return
                self._arriving.add(name)
            try:
                self._obtain(name)
            finally:
                with self._changed:
                    self._arriving.discard(name)
                    self._changed.notify_all()

    def _next(self) -> str | None:
        now = time.monotonic()
        if now < max(self._full_until, self._paused_until):
            return None
        for name in (*self._awaited, *self._wanted):
            is_settled = name in self._held or name in self._arriving or name in self._dropped
            if not is_settled and max(self._put_off_until(name)) <= now:
                return name
        return None

    def _may_come(self, name: str, busy_until: float) -> bool:
        now = time.monotonic()
        with self._changed:
            if self._is_closed or name in self._dropped:
                return False
            not_before, failed_until = self._put_off_until(name)
            is_stopped = now < max(self._full_until, self._paused_until, failed_until)
            return name in self._arriving or not (is_stopped or busy_until <= now < not_before)

    def _put_off_until(self, name: str) -> tuple[float, float]:
        never = -math.inf
        return self._not_before.get(name, never), self._failed_until.get(name, never)

    def _obtain(self, name: str) -> None:
        try:
            shard = self._folder.open(name, self._sizes[name])
            if shard is None:
                place = self._folder.reserve(name, self._sizes[name], self._needed())
                if isinstance(place, Download):
                    shard = self._fetch(name, place)
                else:
                    self._put_off(name, place)
        except StoreError as error:
            self._fail(f"{name} cannot be fetched: {error}", name)
        except OSError as error:
            self._fail(
                f"nothing is fetched for {self._pause_seconds:g} s, reads go to "
                f"{self._store.url}: {_trouble(error)}"
            )
        else:
            if shard is not None:
                self._hold(name, shard)

    def _needed(self) -> tuple[str, ...]:
        with self._changed:
            return (*self._awaited, *self._wanted)

    def _fetch(self, name: str, download: Download) -> OpenShard | None:
        try:
            num_left = self._sizes[name]
            with self._store.open_stream(name) as stream:
                while not self._is_closed:
                    try:
                        data = stream.read(_PIECE_BYTES)
                    except OSError as error:  # not to be taken for the cache's own disk
                        raise StoreError("unreadable", first_line(error)) from error
                    self._count(num_bytes_downloaded=len(data))
                    num_left -= len(data)
                    if num_left < 0 or (num_left and not data):
                        detail = f"{self._store.url}: {name}: its size is not the manifest's"
                        raise StoreError("short_read", f"{detail} {self._sizes[name]} bytes")
                    if not data:
                        shard = download.commit()
                        self._count(num_downloads=1)
                        return shard
                    download.write(data)
        except BaseException:
            download.discard()
            raise
        download.discard()
        return None

    def _put_off(self, name: str, refusal: CacheRefusal) -> None:
        with self._changed:
            if refusal is CacheRefusal.FULL:
                self._full_until = time.monotonic() + _FULL_SECONDS
            elif refusal is CacheRefusal.BUSY:
                self._not_before[name] = time.monotonic() + _POLL_SECONDS

    def _fail(self, message: str, name: str | None = None) -> None:
        """Counts a failure; puts off one shard, or all of them."""
        with self._changed:
            self._counts.num_failures += 1
            if name is None:
                self._paused_until = time.monotonic() + self._pause_seconds
            else:
                self._failed_until[name] = time.monotonic() + _RETRY_SECONDS
        self._warn(message)

    def _warn(self, message: str) -> None:
        """Logs the first trouble; ``num_failures`` tells of the others."""
        with self._changed:
            is_first, self._has_warned = not self._has_warned, True
        if is_first:
            _logger.warning("shard cache: %s", message)

    def _count(
        self,
        *,
        num_hits: int = 0,
        num_misses: int = 0,
        num_misses_full: int = 0,
        num_downloads: int = 0,
        num_bytes_downloaded: int = 0,
        num_failures: int = 0,
    ) -> None:
        counts = self._counts
        with self._changed:
            counts.num_hits += num_hits
            counts.num_misses += num_misses
            counts.num_misses_full += num_misses_full
            counts.num_downloads += num_downloads
            counts.num_bytes_downloaded += num_bytes_downloaded
            counts.num_failures += num_failures


def _trouble(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of the cache is full ({error}); give a smaller cache_bytes"
    return f"the cache folder fails ({error})"
