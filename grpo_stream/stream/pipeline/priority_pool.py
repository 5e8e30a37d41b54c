"""Threads that take the most urgent task first."""

import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

R = TypeVar("R")

_Task = tuple[int, int, "Future[Any] | None", Any]  # priority, number, where the result goes, what


class PriorityPool:
    """A thread pool whose tasks run in order of priority, then of submission.

    ``concurrent.futures`` runs tasks in order of submission alone, so what is needed at once would
    wait behind all that was asked for ahead of time. Its threads do not keep the interpreter from
    ending.

    Args:
        num_threads: At least 1.
        name: Of the threads.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._tasks: queue.PriorityQueue[_Task] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, priority: int, action: Callable[[], R], future: "Future[R] | None" = None
    ) -> "Future[R]":
        """Runs ``action`` in a thread; a lower ``priority`` goes first.

        Returns:
            What it gives or raises, in ``future`` where one is given; cancelled where the pool is
            closed.
        """
        future = future or Future()
        with self._lock:  # what came in behind the end would never run, and its future never end
            if not self._is_closed:
                self._tasks.put((priority, next(self._numbers), future, action))
                return future
        future.cancel()
        return future

    def close(self, timeout_seconds: float = 1.0) -> None:
        """Drops what has not begun, and waits so long at most for what has."""
        with self._lock:
            self._is_closed = True
        while True:
            try:
                _, _, future, _ = self._tasks.get_nowait()
            except queue.Empty:
                break
            if future is not None:
                future.cancel()
        for _ in self._threads:
            self._tasks.put((0, next(self._numbers), None, None))
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while True:
            _, _, future, action = self._tasks.get()
            if future is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(action())
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)
            del future, action  # else the last result is held while the thread waits
