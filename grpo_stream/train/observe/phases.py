"""Where a step's time goes: a stopwatch of its phases, which also knows the present one."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

PHASES = (
    "data_wait",
    "device_input",
    "rollout",
    "rewards",
    "scoring",
    "update",
    "optimizer",
    "other",
)
"""Phases of a training step; ``other`` is what is between them."""
PAUSES = ("evaluate", "checkpoint")
"""Phases that are not part of a step; all that happens in one is counted as it."""


class Stage(NamedTuple):
    """Where a process stands."""

    name: str
    since: float
    """``time.monotonic()`` when it began."""
    number: int
    """Stages before it. All ranks go through the same ones, so the lowest number is behind."""


class Phases:
    """A stopwatch whose phases add up to the wall time.

    A phase inside another one stops the outer's clock, so no second is counted twice. Nothing
    waits for a device: on CUDA a phase's time is that of the host, and what it left running there
    is counted where the host next waits for it. Sampling ends with such a wait, so ``rollout`` is
    exact; of ``scoring`` and ``update`` parts may show in the phase behind.

    Another thread may read :attr:`stage` and :meth:`totals`.

    Example:
        >>> phases = Phases()
        >>> with phases("rollout"):
        ...     with phases("rewards"):
        ...         pass
        >>> sorted(phases.totals())
        ['other', 'rewards', 'rollout']
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.keys: Sequence[str] = ()
        """Keys of this rank's generation batch in use."""
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._names: list[str] = []
        self.stage = Stage("other", clock(), 0)
        """The present one; replaced as a whole."""

    @contextmanager
    def __call__(self, name: str, keys: Sequence[str] | None = None) -> Iterator[None]:
        """Counts the time inside as ``name``.

        Args:
            name: One of :data:`PHASES` or :data:`PAUSES`.
            keys: Of the generation batch that is in use from now on.
        """
        if keys is not None:
            self.keys = keys
        self._names.append(name)
        self._turn()
        try:
            yield
        finally:
            self._names.pop()
            self._turn()

    def totals(self) -> dict[str, float]:
        """Seconds of each phase since the start, the present one included; they only grow."""
        name, since, _ = self.stage
        seconds = dict(self._seconds)
        counted = _counted_as(name)
        seconds[counted] = seconds.get(counted, 0.0) + self._clock() - since
        return seconds

    def restart(self) -> None:
        """What was before is not counted: loading, or the pause between two runs."""
        self._seconds = {}
        self.stage = Stage(self.stage.name, self._clock(), self.stage.number + 1)

    def time_calls(self, target: Any, method: str, name: str) -> None:
        """Counts every call of ``target``'s ``method`` as the phase ``name``, from now on.

        For a step that a library takes in the midst of its own work. A second time does nothing.
        """
        function = getattr(target, method)
        if getattr(function, "phases", None) is self:
            return

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return function(*args, **kwargs)

        timed.phases = self  # type: ignore[attr-defined]
        setattr(target, method, timed)

    def _turn(self) -> None:
        name, since, number = self.stage
        now = self._clock()
        counted = _counted_as(name)
        self._seconds[counted] = self._seconds.get(counted, 0.0) + now - since
        inner = self._names[-1] if self._names else "other"
        pause = next((outer for outer in self._names if outer in PAUSES), inner)
        self.stage = Stage(inner if inner == pause else f"{pause}{_INSIDE}{inner}", now, number + 1)


_INSIDE = ": "


def _counted_as(stage: str) -> str:
    """``evaluate: rollout`` is counted as ``evaluate``."""
    return stage.partition(_INSIDE)[0]
