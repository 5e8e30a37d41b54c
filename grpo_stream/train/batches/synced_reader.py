"""Reading as one: what stops the stream of one rank stops all ranks, with the same error.

Otherwise the other ranks would wait in their next collective until it times out, and their logs
would show that instead of the cause.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object

from grpo_stream.errors import (
    BadSamplesError,
    GrpoStreamError,
    ImageError,
    RecordError,
    ShardFormatError,
    StoreError,
    WorkerDiedError,
)
from grpo_stream.stream.loader import PromptLoader

T = TypeVar("T")


class _Report(NamedTuple):
    """What one rank tells the others when something is wrong anywhere."""

    error: GrpoStreamError | None
    quarantine: dict[str, str]


@dataclass(frozen=True)
class BadSamples:
    """The bad samples of the whole run and of all ranks, as of the last generation batch."""

    quarantine: dict[str, str] = field(default_factory=dict)
    """Where they lie, and the cause: those known before this start, then rank after rank."""

    @property
    def num_by_cause(self) -> Counter[str]:
        """How many, by cause."""
        return Counter(self.quarantine.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"num_bad_by_cause": self.num_by_cause, "samples": self.quarantine}


class SyncedReader(Generic[T]):
    """Generation batches of this rank, in step with the other ranks.

    Each batch costs one collective of three integers; texts are exchanged only when a rank has
    failed or met a bad sample.

    Args:
        loader: Of this rank. Every rank must ask for the same places in the same order.
    """

    def __init__(self, loader: PromptLoader[T]) -> None:
        self.loader = loader
        self.bad_samples = BadSamples()
        self.wait_seconds = 0.0
        """Time that all have waited for data: for each batch that of the rank with the longest."""
        self._before: dict[str, str] = {}
        self._num_bad_known = 0

    def resume(self, quarantine: dict[str, str]) -> None:
        """Counts bad samples that were met before this start; met again, they count once."""
        self._before = quarantine
        self.bad_samples = BadSamples(quarantine)

    def get(self, epoch: int, batch_index: int) -> T:
        """See :meth:`PromptLoader.get`; raises on every rank what one rank raises.

        Raises:
            BadSamplesError: more than ``max_bad_samples`` were bad on all ranks together.
            GrpoStreamError: what the stream of a rank raised, with the number of the rank.
        """
        waited_before = self.loader.wait_seconds
        try:
            batch = self.loader.get(epoch, batch_index)
        except Exception as error:
            self._compare(error, 0.0)
            raise
        self._compare(None, self.loader.wait_seconds - waited_before)
        return batch

    def _compare(self, error: Exception | None, wait_seconds: float) -> None:
        # Copied at once: other threads keep counting.
        own = _Report(_told(error), self.loader.stream.counters.quarantine.copy())
        numbers = [int(error is not None), len(own.quarantine), round(wait_seconds * 1e6)]
        failed, bad, waits = zip(*self._gather(numbers), strict=True)
        num_failed, num_bad = sum(failed), sum(bad)
        self.wait_seconds += max(waits) / 1e6
        if not num_failed and num_bad == self._num_bad_known:
            return
        self._num_bad_known = num_bad
        reports = [own] if self._is_alone else gather_object([own])
        self.bad_samples = _all_of(reports, self._before)
        if not (self._is_alone and error is not None):
            tolerance = self.loader.stream.config.max_bad_samples
            raise_together(reports, tolerance, error, before=self._before)

    @property
    def _is_alone(self) -> bool:
        return self.loader.stream.world.world_size == 1

    def _gather(self, numbers: list[int]) -> list[list[int]]:
        if self._is_alone:
            return [numbers]
        everyone: torch.Tensor = gather(torch.tensor([numbers], device=PartialState().device))
        rows: list[list[int]] = everyone.tolist()
        return rows


def raise_together(
    reports: list[_Report],
    max_bad_samples: int,
    own_error: Exception | None = None,
    *,
    before: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raises what all ranks must stop for; nothing where they may continue.

    Args:
        reports: One per rank; the same list on every rank.
        max_bad_samples: Tolerance over all ranks, and over all starts of the run.
        own_error: What this rank's stream raised, to be shown as the cause.
        before: Bad samples, and the causes, that were known when the run was started.
    """
    failed = [rank for rank, report in enumerate(reports) if report.error is not None]
    if failed:
        error = reports[failed[0]].error
        assert error is not None  # noqa: S101 - it is one of those that failed
        raise _with_rank(error, failed) from own_error
    num_by_cause = _all_of(reports, before).num_by_cause
    if num_by_cause.total() > max_bad_samples:
        last = [
            f"rank {rank}: {list(report.quarantine)[-1]}"
            for rank, report in enumerate(reports)
            if report.quarantine
        ]
        raise BadSamplesError(
            f"{num_by_cause.total()} samples could not be read on {len(reports)} ranks together, "
            f"the tolerance is max_bad_samples={max_bad_samples}; by cause: {dict(num_by_cause)}; "
            f"the last of each rank: {'; '.join(last[:_MAX_NAMED])}"
        )


def _all_of(reports: list[_Report], before: Mapping[str, str]) -> BadSamples:
    quarantine = dict(before)
    for report in reports:
        quarantine |= report.quarantine
    return BadSamples(quarantine)


_MAX_NAMED = 8
_CAUSED = (ImageError, RecordError, ShardFormatError, StoreError)
_PLAIN = (BadSamplesError, GrpoStreamError, WorkerDiedError)


def _told(error: Exception | None) -> GrpoStreamError | None:
    """An error that can be sent: those of other libraries become their text."""
    if error is None or isinstance(error, GrpoStreamError):
        return error
    return GrpoStreamError(f"{type(error).__name__}: {error}")


def _with_rank(error: GrpoStreamError, ranks: list[int]) -> GrpoStreamError:
    where = f"rank {ranks[0]}"
    if len(ranks) > 1:
        where += f" and {len(ranks) - 1} more"
    if isinstance(error, _CAUSED):
        return type(error)(error.cause, f"{where}: {error.detail}")
    if type(error) in _PLAIN:
        return type(error)(f"{where}: {error}")
    return error
