"""Whole shards kept on a local disk, shared by the ranks and jobs of a machine.

:class:`ShardCache` wraps the store that the shards come from. A shard that is announced is fetched
once per machine, in the background; until it has arrived, and whenever the cache cannot help
(no room, disk full, folder gone), reads go to the store by range, as they would without a cache.
"""

import errno
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import BinaryIO

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.shards.blobs import first_line
from grpo_stream.shards.cache_folder import CacheFolder, Download, OpenShard, Refusal
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.store import Store

MAX_ANNOUNCED = 512
"""Shards of one announcement that count; each holds a file descriptor."""

_PIECE_BYTES = 2**20
_POLL_SECONDS = 0.25  # how soon the end of another process's download is noticed
_FULL_SECONDS = 1.0
_RETRY_SECONDS = 30.0  # after a failed download; the store has tried again itself before
_PAUSE_SECONDS = 60.0  # after a failing disk
_CLOSE_SECONDS = 1.0
_KEY_DIGITS = 24

_COUNTED = (
    "hits",
    "misses",
    "misses_full",
    "downloads",
    "bytes_downloaded",
    "evictions",
    "failures",
)

logger = logging.getLogger(__name__)


class ShardCache:
    """A store whose shards are kept in a bounded local folder. See :class:`Store`.

    Only :meth:`read_range` reads from the cache; all else goes to the wrapped store. May be used
    by many threads; a forked child must open its own (StoreError, cause ``forked``).

    Args:
        store: Where the shards come from. Its own retries and time-outs hold for downloads too.
        manifest: Of the data set in ``store``: names and sizes of the shards.
        folder: On a disk of this machine; several processes and data sets may share it.
        max_bytes: Bound to all files of the cache in ``folder``; the same in each process.
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
        folder: str | os.PathLike[str],
        max_bytes: int,
        num_threads: int = 2,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self._store = store
        self._sizes = {info.name: info.num_bytes for info in manifest.shards}
        largest = max(self._sizes.values(), default=0)
        if max_bytes < largest:
            expected = f"must hold at least the largest shard, so {largest} or more"
            raise ConfigError("cache_bytes", max_bytes, expected)
        try:
            self._folder = CacheFolder(folder, manifest.digest[:_KEY_DIGITS], max_bytes)
        except OSError as error:
            expected = f"must be a folder that can be written, on a local disk ({error}); for "
            raise ConfigError(
                "cache_dir", os.fspath(folder), f"{expected}example /tmp/grpo_stream_cache"
            ) from error
        self._pid = os.getpid()
        self._pause_seconds = pause_seconds
        self._changed = threading.Condition()  # guards all below
        self._wanted: dict[str, None] = {}  # in order of need
        self._held: dict[str, OpenShard] = {}  # those of _wanted that are here
        self._arriving: set[str] = set()
        self._dropped: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._full_until = -math.inf
        self._paused_until = -math.inf
        self._is_closed = False
        self._has_warned = False
        self._counts: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._work, name=f"shard-cache-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def url(self) -> str:
        """The wrapped store's URL."""
        return self._store.url

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        """See :meth:`Store.read_range`; from the cache where the shard is in it."""
        if name not in self._sizes or offset + num_bytes > self._sizes[name]:
            return self._store.read_range(name, offset, num_bytes)  # its error is the clearer one
        self._check_process()
        shard = self._held.get(name) or self._find(name)
        if shard is not None:
            data = self._read_cached(name, shard, offset, num_bytes)
            if data is not None:
                self._count("hits")
                return data
        self._count("misses")
        if name in self._wanted and time.monotonic() < self._full_until:
            self._count("misses_full")
        return self._store.read_range(name, offset, num_bytes)

    def announce(self, names: Iterable[str]) -> None:
        """Says which shards are needed from now on; replaces what was announced before.

        They are fetched in the background and not evicted, by no process, until another
        announcement leaves them out or the cache is closed. Returns at once.

        Args:
            names: In order of need. The first :data:`MAX_ANNOUNCED` count; others than the
                manifest's shards are ignored.
        """
        self._check_process()
        known = (name for name in dict.fromkeys(names) if name in self._sizes)
        wanted = dict.fromkeys(name for _, name in zip(range(MAX_ANNOUNCED), known, strict=False))
        with self._changed:
            if list(wanted) == list(self._wanted):
                return
            self._wanted = wanted
            left = [name for name in self._held if name not in wanted]
            for name in left:
                del self._held[name]  # a reader may still have it; then it is closed after that
            if left:
                self._full_until = -math.inf
            self._not_before = {n: t for n, t in self._not_before.items() if n in wanted}
            self._changed.notify_all()

    def drop(self, name: str) -> None:
        """Throws a shard out whose content proved to be wrong.

        This process reads it from the store from now on and does not fetch it again.
        """
        with self._changed:
            self._dropped.add(name)
            shard = self._held.pop(name, None)
            self._counts["failures"] += 1
        self._folder.remove(name, shard)

    def snapshot(self) -> dict[str, int]:
        """Counters of this object since it was made.

        ``hits`` and ``misses`` (reads of shards from the cache and from the store),
        ``misses_full`` (those of the misses whose shard was announced but found no room),
        ``downloads`` (shards fetched whole), ``bytes_downloaded`` (those of downloads that failed
        included), ``evictions``, ``failures`` (downloads that failed, files found damaged).
        """
        with self._changed:
            counts = self._counts | Counter(evictions=self._folder.num_evicted)
            return {name: counts[name] for name in _COUNTED}

    def close(self) -> None:
        """Ends the downloads and lets go of all shards; what is here stays for others.

        Waits at most a second for a request in flight; its thread ends when the request does.
        Reads after that still work.
        """
        with self._changed:
            self._is_closed = True
            self._wanted = {}
            self._held = {}
            self._changed.notify_all()
        end = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def __enter__(self) -> "ShardCache":
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

    def put_file(self, name: str, path: str | os.PathLike[str]) -> None:
        """See :meth:`Store.put_file`."""
        self._store.put_file(name, path)

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

    def walk(self, prefix: str = "") -> list[str]:
        """See :meth:`Store.walk`."""
        return self._store.walk(prefix)

    def _find(self, name: str) -> OpenShard | None:
        """The shard, if it came into the folder by somebody else; held from now on if wanted."""
        if name in self._dropped or name in self._arriving:
            return None
        shard = self._folder.open(name, self._sizes[name])
        if shard is not None:
            self._hold(name, shard)
        return shard

    def _hold(self, name: str, shard: OpenShard) -> None:
        with self._changed:
            if name in self._wanted and name not in self._dropped:
                self._held[name] = shard

    def _read_cached(
        self, name: str, shard: OpenShard, offset: int, num_bytes: int
    ) -> bytes | None:
        try:
            data = shard.read_range(offset, num_bytes)
        except OSError as error:
            self._warn(f"{name} cannot be read from the cache: {error}")
        else:
            if len(data) == num_bytes:
                return data
            self._warn(f"{name} was cut short in the cache")
        self.drop(name)
        return None

    def _work(self) -> None:
        while True:
            with self._changed:
                name = self._next()
                while name is None and not self._is_closed:
                    is_done = self._wanted.keys() <= self._held.keys() | self._dropped
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

    def _next(self) -> str | None:
        now = time.monotonic()
        if now < max(self._full_until, self._paused_until):
            return None
        for name in self._wanted:
            is_settled = name in self._held or name in self._arriving or name in self._dropped
            if not is_settled and self._not_before.get(name, now) <= now:
                return name
        return None

    def _obtain(self, name: str) -> None:
        try:
            shard = self._folder.open(name, self._sizes[name])
            if shard is None:
                place = self._folder.reserve(name, self._sizes[name], tuple(self._wanted))
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

    def _fetch(self, name: str, download: Download) -> OpenShard | None:
        try:
            num_left = self._sizes[name]
            with self._store.open_stream(name) as stream:
                while not self._is_closed:
                    try:
                        data = stream.read(_PIECE_BYTES)
                    except OSError as error:  # not to be taken for the cache's own disk
                        raise StoreError("unreadable", first_line(error)) from error
                    self._count("bytes_downloaded", len(data))
                    num_left -= len(data)
                    if num_left < 0 or (num_left and not data):
                        detail = f"{self._store.url}: {name}: its size is not the manifest's"
                        raise StoreError("short_read", f"{detail} {self._sizes[name]} bytes")
                    if not data:
                        shard = download.commit()
                        self._count("downloads")
                        return shard
                    download.write(data)
        except BaseException:
            download.discard()
            raise
        download.discard()
        return None

    def _put_off(self, name: str, refusal: Refusal) -> None:
        with self._changed:
            if refusal is Refusal.FULL:
                self._full_until = time.monotonic() + _FULL_SECONDS
            elif refusal is Refusal.BUSY:
                self._not_before[name] = time.monotonic() + _POLL_SECONDS

    def _fail(self, message: str, name: str | None = None) -> None:
        """Counts a failure; puts off one shard, or all of them."""
        with self._changed:
            self._counts["failures"] += 1
            if name is None:
                self._paused_until = time.monotonic() + self._pause_seconds
            else:
                self._not_before[name] = time.monotonic() + _RETRY_SECONDS
        self._warn(message)

    def _warn(self, message: str) -> None:
        """Logs the first trouble; the counter ``failures`` tells of the others."""
        with self._changed:
            is_first, self._has_warned = not self._has_warned, True
        if is_first:
            logger.warning("shard cache: %s", message)

    def _count(self, what: str, number: int = 1) -> None:
        with self._changed:
            self._counts[what] += number

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            detail = f"{self.url}: the cache was opened in process {self._pid}, before the fork"
            raise StoreError("forked", f"{detail}; start workers with spawn or forkserver")


def _trouble(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of the cache is full ({error}); give a smaller cache_bytes"
    return f"the cache folder fails ({error})"
