"""Chunks in, done ones out: by this process, or by several."""

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from grpo_stream.errors import GrpoStreamError, WorkerDiedError
from shard_builder.build.chunk_plan import Chunk
from shard_builder.build.chunk_result import News
from shard_builder.build.workers.worker import (
    NUM_FINISHING,
    DoneChunk,
    Job,
    Worker,
    rare_collections,
)

_MAX_WAITING = 2  # one is judged, one waits; more would leave others idle at the end
_PACKED = "packed"


class Crew(Protocol):
    """Who builds the chunks."""

    def run(self, chunks: Iterator[Chunk], tell: Callable[[News], None]) -> Iterator[DoneChunk]:
        """See :func:`run_chunks`."""

    def stop(self) -> None:
        """Ends all processes and threads; after an error this drops what they are at."""


def start_crew(job: Job, num_workers: int) -> Crew:
    """A crew that waits for chunks; starting one takes a while in the background.

    Args:
        job: What to do with them.
        num_workers: 1 works in this process; more start processes of their own, which end with
            this one, however it ends.
    """
    return _Alone(job) if num_workers == 1 else _Crew(job, num_workers)


def run_chunks(
    chunks: Iterator[Chunk], crew: Crew, tell: Callable[[News], None]
) -> Iterator[DoneChunk]:
    """Builds all chunks.

    Args:
        chunks: Are taken a few ahead of what is done.
        crew: Builds them.
        tell: Gets news of what was done, in this thread.

    Yields:
        Each chunk when its shards and its result are where they belong, in the order in which
        that happens.

    Raises:
        WorkerDiedError: a process was killed, or ran out of memory.
        GrpoStreamError: what a chunk could not get over.
    """
    return crew.run(chunks, tell)


class _Alone:
    """This process."""

    def __init__(self, job: Job) -> None:
        self._worker = Worker(job)

    def run(self, chunks: Iterator[Chunk], tell: Callable[[News], None]) -> Iterator[DoneChunk]:
        finishing: list[Future[DoneChunk]] = []
        for chunk in chunks:
            finishing.append(self._worker.build(chunk, tell))
            if len(finishing) > NUM_FINISHING:
                yield finishing.pop(0).result()
        for future in finishing:
            yield future.result()

    def stop(self) -> None:
        self._worker.close()


@dataclass
class _Member:
    process: Any
    connection: Connection
    num_waiting: int = 0
    """Chunks that it was given and has not yet judged and packed."""
    num_chunks: int = 0
    """Chunks that it was given and whose shards are not yet finished."""


class _Crew:
    """Several worker processes and the pipes to them."""

    def __init__(self, job: Job, num_workers: int) -> None:
        self._job = job
        self._num_workers = num_workers
        self._context = _context()
        self._members: list[_Member] = []

    def run(self, chunks: Iterator[Chunk], tell: Callable[[News], None]) -> Iterator[DoneChunk]:
        for _ in range(self._num_workers):
            self._start_member()
        is_all_given = False
        while True:
            for member in self._members * _MAX_WAITING:
                if is_all_given or member.num_waiting >= _MAX_WAITING:
                    continue
                chunk = next(chunks, None)
                is_all_given = chunk is None
                if chunk is not None:
                    self._give(member, chunk)
            if is_all_given and not any(member.num_chunks for member in self._members):
                return
            yield from self._receive(tell)

    def stop(self) -> None:
        for member in self._members:
            member.connection.close()
            member.process.terminate()
        for member in self._members:
            member.process.join()

    def _start_member(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._job), daemon=True)
        process.start()
        theirs.close()
        self._members.append(_Member(process, ours))

    def _give(self, member: _Member, chunk: Chunk) -> None:
        try:
            member.connection.send(chunk)
        except OSError as error:
            raise _died(member) from error
        member.num_waiting += 1
        member.num_chunks += 1

    def _receive(self, tell: Callable[[News], None]) -> Iterator[DoneChunk]:
        for ready in wait([member.connection for member in self._members]):
            member = next(one for one in self._members if one.connection is ready)
            try:
                answer = member.connection.recv()
            except (EOFError, OSError) as error:
                raise _died(member) from error
            if isinstance(answer, News):
                tell(answer)
            elif answer == _PACKED:
                member.num_waiting -= 1
            elif isinstance(answer, DoneChunk):
                member.num_chunks -= 1
                yield answer
            else:
                raise answer


def _context() -> Any:
    """How processes are started: never as forks of this one.

    obstore's threads and this process's locks do not survive a fork. A fork server has neither,
    and has this module loaded once for all workers: 0.3 s of CPU for each that spawn would start.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    forkserver.ensure_running()  # it loads its modules while this process continues
    return context


def _died(member: _Member) -> WorkerDiedError:
    member.process.join(5)
    return WorkerDiedError(
        f"worker process {member.process.pid} ended with exit code {member.process.exitcode}, "
        "killed from outside or for want of memory; what is finished is kept: run the same "
        "command again, with fewer --workers if memory ran out"
    )


def _work(connection: Connection, job: Job) -> None:
    """The life of a worker process; it ends when the pipe to its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    chunks: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
    threading.Thread(target=_receive_chunks, args=(connection, chunks), daemon=True).start()
    lock = threading.Lock()

    def send(answer: object) -> None:
        with lock:
            connection.send(answer)

    def report(future: Future[DoneChunk]) -> None:
        error = future.exception()
        send(future.result() if error is None else _portable(error))

    with rare_collections():
        _build_all(Worker(job), chunks, send, report)


def _build_all(
    worker: Worker,
    chunks: "queue.SimpleQueue[Chunk]",
    send: Callable[[object], None],
    report: Callable[[Future[DoneChunk]], None],
) -> None:
    finishing: list[Future[DoneChunk]] = []
    while True:
        try:
            future = worker.build(chunks.get(), send)
        except Exception as error:  # noqa: BLE001 - the parent raises it
            send(_portable(error))
            return
        send(_PACKED)
        future.add_done_callback(report)
        finishing.append(future)
        if len(finishing) > NUM_FINISHING:
            finishing.pop(0).exception()  # else shards that wait for their upload fill the disk


def _receive_chunks(connection: Connection, chunks: "queue.SimpleQueue[Chunk]") -> None:
    # A thread of its own: the parent's send never waits for a chunk that is being built, so
    # the two cannot wait for each other.
    try:
        while True:
            chunks.put(connection.recv())
    except (EOFError, OSError):
        os._exit(1)  # the parent is gone, or wants no more


def _portable(error: BaseException) -> BaseException:
    if isinstance(error, (GrpoStreamError, OSError)):
        return error
    text = "".join(traceback.format_exception(error))
    return RuntimeError(f"a worker process failed:\n{text}")
