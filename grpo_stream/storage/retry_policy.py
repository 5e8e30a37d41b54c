"""How long to wait for a server that fails, and the loop that waits."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.flags import setting
from grpo_stream.storage.error_causes import TRANSIENT_CAUSES

_logger = logging.getLogger(__name__)
_WARN_AFTER_SECONDS = 5.0
_WARN_EVERY_SECONDS = 30.0
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RetryRules:
    """How long to wait for a server.

    The wait before try n + 1 is drawn evenly from 0 to ``first_delay_seconds * 2**(n - 1)``, or
    ``max_delay_seconds`` where that is less, so that thousands of readers that were refused
    together do not come back together. A time that the server names (``Retry-After``) comes on
    top; one that ends after the deadline ends the read at once.

    Raises:
        ConfigError: a time is not above 0, or a limit lies below what it limits.
    """

    first_delay_seconds: float = 0.1
    max_delay_seconds: float = 10.0
    retry_deadline_seconds: float = setting(
        120.0,
        "How long a read of object storage is tried again: no try starts later than this after "
        "the first.",
    )
    connect_timeout_seconds: float = 5.0
    stall_timeout_seconds: float = 10.0
    """A try ends when no byte came for so long."""
    request_timeout_seconds: float = 60.0
    """A try ends after so long in any case; what is longer resumes where it was, in the next."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < float("inf"):
                raise ConfigError(name, value, "must be a time above 0, for example 10.0")
        for low, high in (
            ("first_delay_seconds", "max_delay_seconds"),
            ("stall_timeout_seconds", "request_timeout_seconds"),
            ("stall_timeout_seconds", "retry_deadline_seconds"),
        ):
            limit = getattr(self, low)
            if getattr(self, high) < limit:
                raise ConfigError(high, getattr(self, high), f"must be at least {low}, {limit}")


@dataclass
class ReadCounts:
    """What reading took so far."""

    num_requests: int = 0
    """Tries, first ones and repeats."""
    num_bytes: int = 0
    """What reads and streams gave to their callers, but not streams of folders."""
    num_retries: int = 0
    """Tries after a try that failed, and streams that went on where they broke off."""
    num_unavailable: int = 0
    """Tries that the server refused for now (5xx, 429), or that did not reach it."""
    num_timed_out: int = 0
    """Tries that got no byte for too long."""
    num_broken_off: int = 0
    """Answers that ended too early."""
    num_failures: int = 0
    """Reads that were given up: at the deadline, or at once for a lasting cause."""
    waited_seconds: float = 0.0
    """Sum of the waits between tries, over all threads."""


class ReadCounters:
    """:class:`ReadCounts` that many threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = ReadCounts()

    def add(
        self,
        *,
        num_requests: int = 0,
        num_bytes: int = 0,
        num_failures: int = 0,
    ) -> None:
        """Adds to the counts of these names."""
        counts = self._counts
        with self._lock:
            counts.num_requests += num_requests
            counts.num_bytes += num_bytes
            counts.num_failures += num_failures

    def add_retry(self, cause: str, waited_seconds: float) -> None:
        """Counts a try that failed for a transient cause and is followed by another."""
        counts = self._counts
        with self._lock:
            counts.num_retries += 1
            counts.waited_seconds += waited_seconds
            if cause == "unavailable":
                counts.num_unavailable += 1
            elif cause == "timed_out":
                counts.num_timed_out += 1
            else:
                counts.num_broken_off += 1

    def snapshot(self) -> ReadCounts:
        """The counts as they are now."""
        with self._lock:
            return replace(self._counts)


class _DeadlinePassedError(StoreError):
    """Its deadline has passed, so no loop around that loop tries again."""


class Retrier:
    """The loop of tries: one for a store, used by all threads that read from it.

    Args:
        rules: How long to wait.
        counters: Where to count.
        clock: Seconds now; monotonic.
        sleep: Waits so many seconds; by default less, when :meth:`close` is called.
        draw: Random number from its first to its second argument.
    """

    def __init__(
        self,
        rules: RetryRules | None = None,
        counters: ReadCounters | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.rules = rules or RetryRules()
        self.counters = counters or ReadCounters()
        self._clock = clock
        self._is_closed = threading.Event()
        self._sleep = sleep or self._is_closed.wait
        self._draw = draw
        self._next_warning = -math.inf

    def run(self, action: Callable[[], _Result]) -> _Result:
        """What ``action`` returns, once it does.

        Raises:
            StoreError: a lasting cause at once; a transient one when the next try would start
                after the deadline, with the number of tries and the time they took.
        """
        start = self._clock()
        num_tries = 0
        while True:
            num_tries += 1
            try:
                result = action()
            except StoreError as error:
                self._wait(error, num_tries, start)
            else:
                self.counters.add(num_requests=1)
                return result

    def close(self) -> None:
        """Ends all waits: from now on a try that fails is the last one of its read."""
        self._is_closed.set()

    def _wait(self, error: StoreError, num_tries: int, start: float) -> None:
        """Waits for the next try, or raises ``error``."""
        rules, counters = self.rules, self.counters
        if error.cause not in TRANSIENT_CAUSES or isinstance(error, _DeadlinePassedError):
            counters.add(num_requests=1, num_failures=1)
            raise error
        # 2**30 times any first delay is above any longest one, and no float overflows.
        limit = rules.first_delay_seconds * 2.0 ** min(num_tries - 1, 30)
        delay = self._draw(0.0, min(limit, rules.max_delay_seconds))
        # On top: all that were told the same time would come back together.
        delay += error.retry_after_seconds
        now = self._clock()
        spent = now - start
        if spent + delay > rules.retry_deadline_seconds:
            counters.add(num_requests=1, num_failures=1)
            tries = "1 try" if num_tries == 1 else f"{num_tries} tries"
            asked = error.retry_after_seconds
            wish = f"; the server asks to wait {asked:.0f} s" if asked else ""
            detail = f"{error.detail} (given up after {tries} in {spent:.1f} s{wish})"
            raise _DeadlinePassedError(error.cause, detail) from error
        if self._is_closed.is_set():
            counters.add(num_requests=1, num_failures=1)
            raise _closed(error) from error
        if spent > _WARN_AFTER_SECONDS and now > self._next_warning:
            self._next_warning = now + _WARN_EVERY_SECONDS
            left = rules.retry_deadline_seconds - spent
            _logger.warning("%s; try %d failed, %.0f s left", error, num_tries, left)
        counters.add(num_requests=1)
        counters.add_retry(error.cause, delay)
        self._sleep(delay)
        if self._is_closed.is_set():
            raise _closed(error) from error


def _closed(error: StoreError) -> _DeadlinePassedError:
    return _DeadlinePassedError(error.cause, f"{error.detail} (not tried again: it was closed)")
