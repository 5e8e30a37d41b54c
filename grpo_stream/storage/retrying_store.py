"""Stores whose reads survive what another try may get over."""

import os
from collections.abc import Callable, Sequence
from typing import BinaryIO, TypeVar

from grpo_stream.errors import StoreError
from grpo_stream.storage.blobs import BlobInfo, Data, Range, adjacent_runs
from grpo_stream.storage.error_causes import TRANSIENT_CAUSES
from grpo_stream.storage.local_store import open_folder
from grpo_stream.storage.object_store import ObjectStore
from grpo_stream.storage.retry_policy import ReadCounters, ReadCounts, Retrier, RetryRules
from grpo_stream.storage.store_protocol import Store, is_object_store

__all__ = [
    "ReadCounters",
    "ReadCounts",
    "Retrier",
    "RetryRules",
    "RetryingStore",
    "open_retrying",
]


_Result = TypeVar("_Result")


class RetryingStore:
    """A store that reads through :meth:`Retrier.run`. See :class:`~.store.Store`.

    Reads, sizes and the opening of a stream are tried again for the causes in
    :data:`~grpo_stream.storage.error_causes.TRANSIENT_CAUSES` until the deadline, listings too;
    all other causes are raised at once. Writes are passed on as they are.

    Args:
        inner: Where to read.
        retrier: Rules, counters and clock.
    """

    def __init__(self, inner: Store, retrier: Retrier | None = None) -> None:
        self._inner = inner
        self._retrier = retrier or Retrier()
        self.counters = self._retrier.counters

    @property
    def url(self) -> str:
        """The inner store's."""
        return self._inner.url

    def read(self, name: str) -> bytes:
        """See :meth:`Store.read`."""
        data = self._retrier.run(lambda: self._inner.read(name))
        self.counters.add(num_bytes=len(data))
        return data

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        """See :meth:`Store.read_range`."""
        data = self._retrier.run(
            lambda: _twice(lambda: self._inner.read_range(name, offset, num_bytes))
        )
        self.counters.add(num_bytes=num_bytes)
        return data

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> Sequence[Data]:
        """See :meth:`Store.read_ranges`.

        When one request of several fails, each is made again alone, one after another: a server
        that refuses some is not asked for all of them again.
        """
        runs = adjacent_runs(ranges)
        if len(runs) > 1:
            try:
                found = self._inner.read_ranges(name, ranges)
            except StoreError as error:
                if error.cause not in TRANSIENT_CAUSES | {"range_ignored"}:
                    self.counters.add(num_requests=len(runs), num_failures=1)
                    raise
                self.counters.add(num_requests=len(runs))
                self.counters.add_retry(error.cause, 0.0)
            else:
                num_bytes = sum(size for _, size in ranges)
                self.counters.add(num_requests=len(runs), num_bytes=num_bytes)
                return found
        return [data for run in runs for data in self._read_run(name, run)]

    def open_stream(self, name: str) -> BinaryIO:
        """See :meth:`Store.open_stream`; the stream's own reads are as patient as the inner's."""
        return self._retrier.run(lambda: self._inner.open_stream(name))

    def exists(self, name: str) -> bool:
        """See :meth:`Store.exists`."""
        return self._retrier.run(lambda: self._inner.exists(name))

    def size(self, name: str) -> int:
        """See :meth:`Store.size`."""
        return self._retrier.run(lambda: self._inner.size(name))

    def close(self) -> None:
        """Ends all tries that wait; reads after that are tried once."""
        self._retrier.close()

    def write(self, name: str, data: bytes) -> None:
        """See :meth:`Store.write`."""
        self._inner.write(name, data)

    def write_new(self, name: str, data: bytes) -> bool:
        """See :meth:`Store.write_new`."""
        return self._inner.write_new(name, data)

    def put_file(self, name: str, path: str | os.PathLike[str]) -> str:
        """See :meth:`Store.put_file`."""
        return self._inner.put_file(name, path)

    def delete(self, name: str) -> None:
        """See :meth:`Store.delete`."""
        self._inner.delete(name)

    def list_names(self) -> list[str]:
        """See :meth:`Store.list_names`."""
        return self._retrier.run(self._inner.list_names)

    def sizes(self) -> dict[str, int]:
        """See :meth:`Store.sizes`."""
        return self._retrier.run(self._inner.sizes)

    def listing(self) -> dict[str, BlobInfo]:
        """See :meth:`Store.listing`."""
        return self._retrier.run(self._inner.listing)

    def walk(self, prefix: str = "") -> list[str]:
        """See :meth:`Store.walk`."""
        return self._retrier.run(lambda: self._inner.walk(prefix))

    def _read_run(self, name: str, run: Sequence[Range]) -> Sequence[Data]:
        found = self._retrier.run(lambda: _twice(lambda: self._inner.read_ranges(name, run)))
        self.counters.add(num_bytes=sum(size for _, size in run))
        return found


def _twice(read: Callable[[], _Result]) -> _Result:
    """What ``read`` gives, asked once more where the server sent all for a range.

    One server of many behind a name, or a cache on the way, may do so now and then.
    """
    try:
        return read()
    except StoreError as error:
        if error.cause != "range_ignored":
            raise
        return read()


def open_retrying(
    url: str | os.PathLike[str],
    rules: RetryRules | None = None,
    counters: ReadCounters | None = None,
) -> RetryingStore:
    """The store that a path or URL names, for reading over a network that fails.

    As :func:`~grpo_stream.storage.store.open_store`, by rules of the caller's own: each try is one
    request, with the time-outs of ``rules``. A folder is read as it is; its reads are counted.

    Args:
        url: As for ``open_store``.
        rules: How long to wait.
        counters: Where to count; by default a new one, ``counters`` of the store.

    Raises:
        ConfigError: as ``open_store``.
    """
    retrier = Retrier(rules, counters)
    text = os.fspath(url)
    inner = ObjectStore(text, retrier=retrier) if is_object_store(text) else open_folder(text)
    return RetryingStore(inner, retrier)
