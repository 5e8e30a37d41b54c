"""A store in a simulation: how long a request takes, and what the real retries make of failures."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grpo_stream.errors import StoreError
from grpo_stream.storage.retry_policy import Retrier, RetryRules

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StoreModel:
    """What is assumed of an object store and of the way there; times in seconds."""

    latency: float = 0.03
    """Median time to the first byte; log-normal."""
    spread: float = 0.5
    """Its sigma."""
    tail_share: float = 0.001
    """Part of the requests that are slow:"""
    tail_seconds: float = 1.0
    """they wait so much longer at least, and as a Pareto distribution of index 1.5 has it."""
    refused_share: float = 0.001
    """Tries that are answered by 503."""
    reset_share: float = 0.0005
    """Tries whose connection breaks in the middle."""
    silent_share: float = 0.00002
    """Tries that never get an answer, and end by the stall time-out."""
    connection_rate: float = 60e6
    """Bytes per second of one connection,"""
    node_rate: float = 3e9
    """of a node's link, and"""
    store_rate: float = 1e12
    """of the whole store."""
    outage: tuple[float, float] = (0.0, 0.0)
    """From when to when each try is answered by 503."""


class StoreTimes:
    """Draws how long reads take, retries included.

    Failures go through :meth:`Retrier.run` itself, on the simulation's clock: its delays are the
    real ones. Tries later than the deadline end a run; here they are counted as ``num_given_up``.

    Args:
        model: What is assumed.
        rules: How long to wait between tries.
        seed: Of all draws.
    """

    def __init__(self, model: StoreModel, rules: RetryRules, seed: int) -> None:
        self.model, self.rules = model, rules
        self._rng = np.random.default_rng(seed)
        self._clock = _Clock(0.0)
        self._retrier = Retrier(
            rules, clock=self._clock.read, sleep=self._clock.sleep, draw=self._rng.uniform
        )
        self.num_tries = 0
        self.num_given_up = 0
        self.retry_times: list[float] = []
        """When tries after the first one began."""

    def draw(self, starts: Floats, num_bytes: Floats, rate: Floats, slow: Floats) -> Floats:
        """Seconds from the start of each read to its last byte.

        Args:
            starts: When each begins, shape (reads,).
            num_bytes: How much each brings, shape (reads,).
            rate: Bytes per second of each, shape (reads,).
            slow: How many times slower each comes, shape (reads,).
        """
        model, size = self.model, len(starts)
        seconds = slow * model.latency * np.exp(self._rng.normal(0.0, model.spread, size))
        in_tail = self._rng.random(size) < model.tail_share
        seconds += in_tail * model.tail_seconds * (1 + self._rng.pareto(1.5, size))
        is_late = seconds > self.rules.stall_timeout_seconds
        seconds = np.where(is_late, slow * model.latency, seconds) + slow * num_bytes / rate
        failing = model.refused_share + model.reset_share + model.silent_share
        chance = np.where(is_late, failing - model.silent_share / 2, self._rng.random(size))
        begin, end = model.outage
        fails = (chance < failing) | ((starts >= begin) & (starts < end))
        self.num_tries += size
        for place in np.flatnonzero(fails):
            start = float(starts[place])
            seconds[place] = self._retried(start, float(chance[place]), float(seconds[place]))
        return seconds

    def _retried(self, start: float, chance: float, good_seconds: float) -> float:
        clock, first = self._clock, [chance]
        clock.now = start

        def attempt() -> None:
            if clock.now > start:
                self.retry_times.append(clock.now)
                self.num_tries += 1
            cause, seconds = self._fault(clock.now, first.pop() if first else self._rng.random())
            clock.now += seconds if cause else good_seconds
            if cause:
                raise StoreError(cause, "simulated")

        try:
            self._retrier.run(attempt)
        except StoreError:
            self.num_given_up += 1
        return clock.now - start

    def _fault(self, now: float, chance: float) -> tuple[str, float]:
        model = self.model
        if model.outage[0] <= now < model.outage[1] or chance < model.refused_share:
            return "unavailable", model.latency
        if chance < model.refused_share + model.reset_share:
            return "broken_off", 2 * model.latency
        if chance < model.refused_share + model.reset_share + model.silent_share:
            return "timed_out", self.rules.stall_timeout_seconds
        return "", 0.0


@dataclass
class _Clock:
    now: float

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
