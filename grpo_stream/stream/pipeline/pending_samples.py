"""Encoded samples on their way from object storage."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError

from grpo_stream.stream.sources import Encoded


class PendingSamples:
    """A few samples that are worked on together, once all of them are there.

    One object for several of them: thousands are on their way at a time, and a future for each
    has half a dozen objects that the search for garbage visits again and again. Samples arrive in
    any order and from any thread.

    Args:
        count: Samples.
    """

    __slots__ = ("_found", "_lock", "_num_missing", "_then", "is_cancelled")

    def __init__(self, count: int) -> None:
        self._found: list[Encoded | Exception | None] = [None] * count
        self._num_missing = count
        self._then: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self.is_cancelled = False
        """Whether nobody needs them any more."""

    def put(self, number: int, found: Encoded | Exception) -> None:
        """Gives sample ``number``, or the error that reading it met; once for each."""
        with self._lock:
            if self.is_cancelled:
                return
            self._found[number] = found
            self._num_missing -= 1
            then = None if self._num_missing else self._end()
        if then is not None:
            then()

    def take(self, number: int) -> Encoded:
        """Sample ``number``, once.

        Raises:
            Exception: what reading it met.
            CancelledError: it is not there, and will not be.
        """
        found, self._found[number] = self._found[number], None
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise CancelledError
        return found

    def then(self, action: Callable[[], object]) -> None:
        """Calls ``action`` when all are there or given up, in the thread that brings it about."""
        with self._lock:
            if self._num_missing:
                self._then = action
                return
        action()

    def cancel(self) -> None:
        """Gives up what is missing; nothing happens where nothing is."""
        with self._lock:
            if self._num_missing == 0:
                return
            self._num_missing = 0
            self.is_cancelled = True
            then = self._end()
        if then is not None:
            then()

    def _end(self) -> Callable[[], object] | None:
        # Let go of: it mostly refers to this object, a circle that only a search would find.
        then, self._then = self._then, None
        return then
