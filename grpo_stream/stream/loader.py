"""Generation batches in order, made ahead of time by threads of this process.

::

    plan  ->  fetch              ->  decode, resize      ->  transform      ->  get()
    (none)    num_fetch_threads      num_reader_threads      one thread         the caller's
              (object storage)       (or num_decode_processes)

Threads rather than worker processes: fetching, decoding and resizing run in C code that releases
the interpreter lock, and pixels need no second copy. What is made ahead follows from the order,
which is known, so neither threads nor timing can change it. What takes next to no time, such as
samples of a folder that are not decoded, the caller makes itself.

Memory is bounded by ``prefetch_batches + 1`` decoded generation batches of this rank, and the
encoded samples that ``fetch_ahead_bytes`` allows.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

from grpo_stream.order.cursor import Cursor
from grpo_stream.stream.pipeline.decode_processes import DecodeProcesses
from grpo_stream.stream.pipeline.fetcher import Fetcher, FetchRequest
from grpo_stream.stream.pipeline.look_ahead import LookAhead
from grpo_stream.stream.pipeline.malloc_tuning import keep_freed_memory
from grpo_stream.stream.pipeline.pending_samples import PendingSamples
from grpo_stream.stream.pipeline.priority_pool import PriorityPool
from grpo_stream.stream.pipeline.transform_batch import transform_batch
from grpo_stream.stream.prompt_stream import Outcome, PromptStream, SlotPlace
from grpo_stream.stream.stream_sample import StreamSample

T = TypeVar("T")

_Outcomes = list[Outcome]

_CHEAP_SECONDS = 200e-6  # for a sample; what is decoded takes more
_MAX_WAITING = 4  # times the CPU time: what waits for a disk is better asked for by many threads


@dataclass(eq=False)
class _Work(Generic[T]):
    """A generation batch on its way."""

    number: int
    """Counts up along the order: what comes first is more urgent."""
    place: tuple[int, int]
    """Epoch and batch."""
    slots: list[SlotPlace]
    num_bytes: int
    """About how many bytes its encoded samples have; 0 where none are fetched ahead."""
    pending: list[PendingSamples] = field(default_factory=list)
    """One for each piece of the slots; none where samples are read when they are decoded."""
    batch: "Future[T] | None" = None

    def cancel(self) -> None:
        for pending in self.pending:
            pending.cancel()
        if self.batch is not None:
            self.batch.cancel()


class PromptLoader(Generic[T]):
    """Delivers this rank's part of each generation batch, in the stream's order.

    Iterating starts at the cursor and ends with the epoch; the cursor then stands at the next
    epoch's start. Any batch can also be asked for by its place (:meth:`get`); the batches that
    follow it are then made ahead.

    Args:
        stream: What to read.
        transform: Applied once to each batch's samples in the background, for example a collator.
        until: (epoch, batch) before which the caller will stop: what is made ahead goes across
            the ends of epochs up to there. None: it ends with each epoch.

    Example:
        >>> with PromptLoader(stream, list) as loader:  # doctest: +SKIP
        ...     for samples in loader:
        ...         print([sample.key for sample in samples])
    """

    def __init__(
        self,
        stream: PromptStream,
        transform: Callable[[list[StreamSample]], T],
        *,
        until: tuple[int, int] | None = None,
    ) -> None:
        self.stream = stream
        self.transform = transform
        self.until = until
        self.wait_seconds = 0.0
        """Time that the caller has spent waiting for batches."""
        self._epoch = 0
        self._next_batch = 0
        # Another thread may close the loader at any time: whatever is on its way by then, it finds.
        self._lock = threading.Lock()
        self._is_closed = False
        self._works: deque[_Work[T]] = deque()
        self._num_bytes = 0  # of the works
        self._coming: tuple[int, int] | None = None
        self._num_works = 0
        self._rule = LookAhead(stream.config, stream.world)
        self._num_calls = 0  # since the last seek, of those that look further than is near
        # Of late; handing a batch over would take longer than making it.
        self._reads_cheaply = self._transforms_cheaply = False
        config = stream.config
        self._decoders: PriorityPool | None = None
        self._processes: DecodeProcesses | None = None
        self._assembler: PriorityPool | None = None
        self._fetcher: Fetcher | None = None
        if config.num_decode_processes:
            self._processes = DecodeProcesses(
                config.num_decode_processes, stream.open_sample, config
            )
        elif config.num_reader_threads:
            keep_freed_memory()
            self._decoders = PriorityPool(config.num_reader_threads, "decoder")
        else:
            return
        # One more thread puts batches together, so that it never waits behind later reads.
        self._assembler = PriorityPool(1, "assembler")
        if stream.is_remote or config.num_decode_processes:
            self._fetcher = Fetcher(stream.sources, config.num_fetch_threads)

    def __len__(self) -> int:
        """Generation batches of an epoch; of the present one, where segments cut it short."""
        return self.stream.plan.num_batches_in(self._epoch)

    def __iter__(self) -> Iterator[T]:
        epoch, num_batches = self._epoch, len(self)
        while self._epoch == epoch and self._next_batch < num_batches:
            batch = self.get(epoch, self._next_batch)
            # The cursor moves before the batch is handed out: a state saved while the batch is
            # in use says that it is done.
            self._epoch, self._next_batch = self.stream.plan.place_after(epoch, self._next_batch, 1)
            yield batch

    def get(self, epoch: int, batch_index: int) -> T:
        """One generation batch of this rank; the following ones are made ahead.

        Raises:
            BadSamplesError: too many samples could not be read.
            StoreError: a source cannot be read; which object, and what to do.
            WorkerDiedError: a process that decodes was killed.
            IndexError: the epoch has no such batch.
            CancelledError: another thread has closed the loader.
        """
        started = time.perf_counter()
        if self._assembler is None:
            slots = self.stream.slot_places(epoch, batch_index)
            batch = self._finish(slots, list(map(self.stream.attempt, slots)))
        else:
            with self._lock:
                is_start = not self._works or self._works[0].place != (epoch, batch_index)
                if is_start:
                    self._drop()
                    self._coming = (epoch, batch_index)
                # The first batch is not to share the link with what is needed much later.
                self._look_ahead(only_near=is_start)
                if not (self._reads_cheaply and self._transforms_cheaply):
                    for work in islice(self._works, self.stream.config.prefetch_batches + 1):
                        if work.batch is None:
                            work.batch = self._start_decoding(work)
                first = self._works[0]
            batch = self._take(first)
            if is_start:
                with self._lock:
                    self._look_ahead(only_near=False)
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
        self.stream.resume(saved)
        with self._lock:
            self._drop()
        self._epoch, self._next_batch = self.stream.plan.place_after(saved.epoch, saved.batch_index)

    def close(self) -> None:
        """Drops what was made ahead and ends the threads and processes.

        Waits a second at most for each kind of thread: one that waits for a server ends when its
        request does, is not tried again, and does not keep the interpreter from ending.
        """
        with self._lock:
            self._is_closed = True
            self._drop()
        self.stream.close()
        if self._fetcher is not None:
            self._fetcher.close()
        if self._decoders is not None:
            self._decoders.close()
        if self._processes is not None:
            self._processes.close()
        if self._assembler is not None:
            self._assembler.close()

    def __enter__(self) -> "PromptLoader[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _look_ahead(self, *, only_near: bool) -> None:
        if self._is_closed:
            raise CancelledError
        fresh = list(self._new_works(only_near=only_near))
        self._works.extend(fresh)
        self._num_bytes += sum(work.num_bytes for work in fresh)
        if self._fetcher is not None:
            self._start_fetching(self._fetcher, fresh, is_urgent=only_near)

    def _new_works(self, *, only_near: bool) -> Iterator[_Work[T]]:
        num_works = len(self._works)
        num_bytes = self._num_bytes
        limit = 0
        # With a cache whole shards come ahead, and by range only what is needed before that.
        if self._fetcher is not None and not only_near and not self.stream.keeps_shards:
            limit = self._rule.limit(self._num_calls, num_works, num_bytes)
            self._num_calls += 1
        while self._coming is not None and self._rule.has_room(limit, num_works, num_bytes):
            slots = self.stream.slot_places(*self._coming)
            work: _Work[T] = _Work(self._num_works, self._coming, slots, self._size(slots))
            num_bytes += work.num_bytes
            num_works += 1
            self._num_works += 1
            self._coming = self._following(self._coming)
            yield work

    def _size(self, slots: Sequence[SlotPlace]) -> int:
        if self._fetcher is None:
            return 0
        sources = self.stream.sources
        return sum(sources[one.place.source].sample_bytes(one.place.shard) for one in slots)

    def _following(self, place: tuple[int, int]) -> tuple[int, int] | None:
        following = self.stream.plan.place_after(*place, 1)
        if self.until is None:
            return following if following[0] == place[0] else None
        return following if following < self.until else None

    def _start_fetching(
        self, fetcher: Fetcher, works: Sequence[_Work[T]], *, is_urgent: bool
    ) -> None:
        wanted = []
        for work in works:
            for piece in self._pieces(work):
                pending = PendingSamples(len(piece))
                work.pending.append(pending)
                for number, one in enumerate(piece):
                    if (known := self.stream.known_damage(one.place)) is not None:
                        pending.put(number, known)
                    else:
                        wanted.append(FetchRequest(work.number, one.place, pending, number))
        fetcher.start(wanted, is_urgent=is_urgent)

    def _pieces(self, work: _Work[T]) -> list[list[SlotPlace]]:
        """The slots in as many pieces as there are threads; alone where processes decode."""
        # A task for several samples: handing one over costs as much as reading it from a folder.
        num_slots = len(work.slots)
        size = 1 if self._processes else -(-num_slots // self.stream.config.num_reader_threads)
        return [work.slots[start : start + size] for start in range(0, num_slots, size)]

    def _start_decoding(self, work: _Work[T]) -> "Future[T]":
        assert self._assembler is not None  # noqa: S101 - there are threads
        pieces = self._pieces(work)
        if self._processes is not None:
            outcomes = [self._processes.submit_pending(one) for one in work.pending]
        elif work.pending:
            pairs = zip(pieces, work.pending, strict=True)
            outcomes = [self._open_arrivals(work.number, *pair) for pair in pairs]
        else:
            outcomes = [self._open_piece(work.number, piece) for piece in pieces]
        return self._assembler.submit(work.number, lambda: self._assemble(work.slots, outcomes))

    def _open_piece(self, priority: int, slots: Sequence[SlotPlace]) -> "Future[_Outcomes]":
        assert self._decoders is not None  # noqa: S101 - there are threads
        return self._decoders.submit(priority, lambda: self._attempt(slots))

    def _open_arrivals(
        self, priority: int, slots: Sequence[SlotPlace], pending: PendingSamples
    ) -> "Future[_Outcomes]":
        assert self._decoders is not None  # noqa: S101 - there are threads
        decoders, attempt = self._decoders, self.stream.attempt
        outcomes: Future[_Outcomes] = Future()

        def open_all() -> _Outcomes:
            return [attempt(one, partial(pending.take, n)) for n, one in enumerate(slots)]

        pending.then(lambda: decoders.submit(priority, open_all, outcomes))
        return outcomes

    def _attempt(self, slots: Sequence[SlotPlace]) -> _Outcomes:
        started, started_cpu = time.perf_counter(), time.thread_time()
        outcomes = list(map(self.stream.attempt, slots))
        cpu_seconds = time.thread_time() - started_cpu
        seconds = time.perf_counter() - started
        # Threads that wait for each other take up to twice as long, and less than for a disk.
        is_little = cpu_seconds <= _CHEAP_SECONDS * len(slots)
        self._reads_cheaply = is_little and seconds <= _MAX_WAITING * cpu_seconds
        return outcomes

    def _assemble(self, slots: Sequence[SlotPlace], outcomes: "Sequence[Future[_Outcomes]]") -> T:
        return self._finish(slots, [one for future in outcomes for one in future.result()])

    def _finish(self, slots: Sequence[SlotPlace], outcomes: _Outcomes) -> T:
        samples = self.stream.resolve_all(slots, outcomes)
        started = time.perf_counter()
        batch = transform_batch(self.stream, self.transform, slots, samples)
        seconds = time.perf_counter() - started
        self._transforms_cheaply = seconds <= _CHEAP_SECONDS * len(slots)
        return batch

    def _take(self, work: _Work[T]) -> T:
        try:
            if work.batch is None:
                return self._finish(work.slots, self._attempt(work.slots))
            return work.batch.result()
        except BaseException:
            work.cancel()  # else close() would wait for fetches that nobody needs any more
            raise
        finally:
            # Only now: close(), called by another thread meanwhile, must find it.
            with self._lock:
                if self._works and self._works[0] is work:
                    self._num_bytes -= self._works.popleft().num_bytes

    def _drop(self) -> None:
        while self._works:
            self._works.pop().cancel()
        self._num_bytes = 0
        self._coming = None
        self._num_calls = 0
