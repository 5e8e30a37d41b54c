"""Generation batches in order, made ahead of time by threads of this process.

Threads rather than worker processes: fetching, decoding and resizing run in C code that releases
the interpreter lock, and pixels need no second copy. Memory is bounded by ``prefetch_batches + 1``
generation batches of this rank.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from grpo_stream.errors import CursorError
from grpo_stream.stream.cursor import Cursor
from grpo_stream.stream.dataset import PromptStream
from grpo_stream.stream.sources import StreamSample

T = TypeVar("T")


class PromptLoader(Generic[T]):
    """Delivers this rank's part of each generation batch, in the stream's order.

    Iterating starts at the cursor and ends with the epoch; the cursor then stands at the next
    epoch's start. Any batch can also be asked for by its place (:meth:`get`); the batches that
    follow it are then made ahead.

    Args:
        stream: What to read.
        transform: Applied once to each batch's samples in the background, for example a collator.

    Example:
        >>> with PromptLoader(stream, list) as loader:  # doctest: +SKIP
        ...     for samples in loader:
        ...         print([sample.key for sample in samples])
    """

    def __init__(self, stream: PromptStream, transform: Callable[[list[StreamSample]], T]) -> None:
        self.stream = stream
        self.transform = transform
        self.wait_seconds = 0.0
        """Time that the caller has spent waiting for batches."""
        self._epoch = 0
        self._next_batch = 0
        self._ahead: OrderedDict[tuple[int, int], Future[T]] = OrderedDict()
        num_threads = stream.config.num_threads
        self._readers = ThreadPoolExecutor(num_threads, "reader") if num_threads else None
        # One more thread puts batches together, so that it never waits behind later reads.
        self._assembler = ThreadPoolExecutor(1, "assembler") if num_threads else None

    def __len__(self) -> int:
        """Generation batches of an epoch."""
        return self.stream.num_batches

    def __iter__(self) -> Iterator[T]:
        epoch = self._epoch
        while self._epoch == epoch:
            batch = self.get(epoch, self._next_batch)
            # The cursor moves before the batch is handed out: a state saved while the batch is
            # in use says that it is done.
            self._next_batch += 1
            if self._next_batch == len(self):
                self._epoch, self._next_batch = epoch + 1, 0
            yield batch

    def get(self, epoch: int, batch_index: int) -> T:
        """One generation batch of this rank; schedules the following ones of the epoch.

        Raises:
            BadSamplesError: too many samples could not be read.
        """
        started = time.perf_counter()
        last = min(batch_index + self.stream.config.prefetch_batches, len(self) - 1)
        wanted = [(epoch, index) for index in range(batch_index, last + 1)]
        for place in [place for place in self._ahead if place not in wanted]:
            self._ahead.pop(place).cancel()
        for place in wanted:
            if place not in self._ahead:
                self._ahead[place] = self._schedule(*place)
            if self._readers is None:
                break  # no threads: only the batch that is needed now
        batch = self._ahead.pop(wanted[0]).result()
        self.wait_seconds += time.perf_counter() - started
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The cursor of the next batch: a few integers, the same on every rank."""
        return self.stream.cursor(self._epoch, self._next_batch).to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Seeks to a saved cursor; costs the same wherever it stands.

        Raises:
            CursorError: it was saved with other data or another order, or is no place in it.
        """
        saved = Cursor.from_dict(state)
        self.stream.cursor().check_same_order(saved)
        if saved.batch_index >= len(self):
            raise CursorError(f"batch {saved.batch_index} of an epoch of {len(self)} batches")
        self._epoch, self._next_batch = saved.epoch, saved.batch_index

    def close(self) -> None:
        """Drops what was made ahead and ends the threads."""
        self._ahead.clear()
        for pool in (self._assembler, self._readers):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "PromptLoader[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _schedule(self, epoch: int, batch_index: int) -> "Future[T]":
        if self._readers is None or self._assembler is None:
            future: Future[T] = Future()
            future.set_result(self.transform(self.stream.read_batch(epoch, batch_index)))
            return future
        read = self.stream.read_slot
        slots = [self._readers.submit(read, epoch, batch_index, slot) for slot in self.stream.slots]
        return self._assembler.submit(self._assemble, slots)

    def _assemble(self, slots: "list[Future[StreamSample]]") -> T:
        return self.transform([slot.result() for slot in slots])
