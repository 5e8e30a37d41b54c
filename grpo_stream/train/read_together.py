"""Reading as one: what stops the stream of one rank stops all ranks, with the same error.

Otherwise the other ranks would wait in their next collective until it times out, and their logs
would show that instead of the cause.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

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
    num_bad_by_cause: dict[str, int]
    quarantine: list[str]


@dataclass
class BadSamples:
    """The bad samples of all ranks, as of the last generation batch."""

    num_by_cause: Counter[str] = field(default_factory=Counter)
    quarantine: list[str] = field(default_factory=list)
    """Where they lie, rank after rank."""


class ReadTogether(Generic[T]):
    """Generation batches of this rank, in step with the other ranks.

    Each batch costs one collective of two integers; texts are exchanged only when a rank has
    failed or met a bad sample.

    Args:
        loader: Of this rank. Every rank must ask for the same places in the same order.
    """

    def __init__(self, loader: PromptLoader[T]) -> None:
        self.loader = loader
        self.bad_samples = BadSamples()
        self._num_bad_known = 0

    def get(self, epoch: int, batch_index: int) -> T:
        """See :meth:`PromptLoader.get`; raises on every rank what one rank raises.

        Raises:
            BadSamplesError: more than ``max_bad_samples`` were bad on all ranks together.
            GrpoStreamError: what the stream of a rank raised, with the number of the rank.
        """
        try:
            batch = self.loader.get(epoch, batch_index)
        except Exception as error:
            self._compare(error)
            raise
        self._compare(None)
        return batch

    def _compare(self, error: Exception | None) -> None:
        counters = self.loader.stream.counters
        # Copied at once: other threads go on counting.
        num_bad_by_cause = dict(counters.num_bad_by_cause)
        num_bad = sum(num_bad_by_cause.values())
        num_failed, num_bad = self._sum([int(error is not None), num_bad])
        if not num_failed and num_bad == self._num_bad_known:
            return
        self._num_bad_known = num_bad
        own = _Report(_told(error), num_bad_by_cause, list(counters.quarantine))
        reports = [own] if self._is_alone else gather_object([own])
        self.bad_samples = BadSamples(
            sum((Counter(report.num_bad_by_cause) for report in reports), Counter()),
            [where for report in reports for where in report.quarantine],
        )
        if not self._is_alone:
            raise_together(reports, self.loader.stream.config.max_bad_samples, error)

    @property
    def _is_alone(self) -> bool:
        return self.loader.stream.world.world_size == 1

    def _sum(self, numbers: list[int]) -> list[int]:
        if self._is_alone:
            return numbers
        everyone: torch.Tensor = gather(torch.tensor([numbers], device=PartialState().device))
        total: list[int] = everyone.sum(0).tolist()
        return total


def raise_together(
    reports: list[_Report], max_bad_samples: int, own_error: Exception | None = None
) -> None:
    """Raises what all ranks must stop for; nothing where they may go on.

    Args:
        reports: One per rank; the same list on every rank.
        max_bad_samples: Tolerance over all ranks.
        own_error: What this rank's stream raised, to be shown as the cause.
    """
    failed = [rank for rank, report in enumerate(reports) if report.error is not None]
    if failed:
        error = reports[failed[0]].error
        assert error is not None  # noqa: S101 - it is one of those that failed
        raise _with_rank(error, failed) from own_error
    num_by_cause = sum((Counter(report.num_bad_by_cause) for report in reports), Counter())
    if num_by_cause.total() > max_bad_samples:
        last = [
            f"rank {rank}: {report.quarantine[-1]}"
            for rank, report in enumerate(reports)
            if report.quarantine
        ]
        raise BadSamplesError(
            f"{num_by_cause.total()} samples could not be read on {len(reports)} ranks together, "
            f"the tolerance is max_bad_samples={max_bad_samples}; by cause: {dict(num_by_cause)}; "
            f"the last of each rank: {'; '.join(last[:_MAX_NAMED])}"
        )


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
