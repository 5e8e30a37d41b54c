"""Fetching encoded samples ahead, many requests at a time."""

from collections.abc import Sequence
from typing import NamedTuple

from grpo_stream.stream.pipeline.pending_samples import PendingSamples
from grpo_stream.stream.pipeline.priority_pool import PriorityPool
from grpo_stream.stream.prompt_stream import Place, is_damage
from grpo_stream.stream.sources import Source

_MAX_RUNS = 8
_MAX_CALL_BYTES = 8 * 2**20


class FetchRequest(NamedTuple):
    """A sample that will be needed."""

    priority: int
    """Lower ones are fetched first."""
    place: Place
    pending: PendingSamples
    """Gets the sample, or the error that reading it met."""
    number: int
    """Of the sample among those pending."""


class Fetcher:
    """Threads that wait for object storage.

    Samples that are asked for together and are side by side in a shard come by one request; up to
    eight requests to one shard are made by one call, which costs less than eight calls.

    Args:
        sources: Where samples lie.
        num_fetch_threads: Calls at a time.
    """

    def __init__(self, sources: Sequence[Source], num_fetch_threads: int) -> None:
        self._sources = sources
        self._pool = PriorityPool(num_fetch_threads, "fetcher")

    def start(self, wanted: Sequence[FetchRequest], *, is_urgent: bool = False) -> None:
        """Begins to fetch.

        Args:
            wanted: What is needed, in any order.
            is_urgent: None of it is to wait for another: one request a call.
        """
        max_runs = 1 if is_urgent else _MAX_RUNS
        groups: dict[tuple[int, int], list[FetchRequest]] = {}
        for one in wanted:
            groups.setdefault((one.place.source, one.place.shard), []).append(one)
        for (source, shard), group in groups.items():
            self._submit(self._sources[source], shard, group, max_runs)

    def close(self) -> None:
        """Drops what has not begun; waits a second at most for what has."""
        self._pool.close()

    def _submit(self, source: Source, shard: int, group: list[FetchRequest], max_runs: int) -> None:
        priority = min(one.priority for one in group)
        self._pool.submit(priority, lambda: self._run(source, shard, group, max_runs))

    def _run(self, source: Source, shard: int, group: list[FetchRequest], max_runs: int) -> None:
        group = [one for one in group if not one.pending.is_cancelled]
        by_sample: dict[int, list[FetchRequest]] = {}
        for one in group:  # a small source of a blend may be wanted twice within the look-ahead
            by_sample.setdefault(one.place.sample, []).append(one)
        try:
            # Which samples are neighbours, the shard's index knows; it may have to be fetched.
            runs = source.runs(shard, list(by_sample)) if group else []
            calls = _calls(runs, by_sample, max_runs, source.sample_bytes(shard))
            if len(calls) > 1:
                for call in calls:
                    every = [one for sample in call for one in by_sample[sample]]
                    self._submit(source, shard, every, max_runs)
            elif calls:
                self._fetch(source, shard, [by_sample[sample] for sample in calls[0]])
        except Exception as error:  # noqa: BLE001 - it is raised where the sample is needed
            for one in group:
                one.pending.put(one.number, error)

    def _fetch(self, source: Source, shard: int, call: list[list[FetchRequest]]) -> None:
        """Fetches samples by one call; each of them may be wanted more than once."""
        try:
            found = source.fetch(shard, [one[0].place.sample for one in call])
        except Exception as error:
            if len(call) == 1 or not is_damage(error):
                raise
            # One of them is to blame, and who comes with it is chance.
            for alone in call:
                self._submit(source, shard, alone, 1)
        else:
            for same, encoded in zip(call, found, strict=True):
                for one in same:
                    one.pending.put(one.number, encoded)


def _calls(
    runs: list[list[int]],
    by_sample: dict[int, list[FetchRequest]],
    max_runs: int,
    sample_bytes: int,
) -> list[list[int]]:
    """The samples of runs, the most urgent run first, in groups to be fetched by one call each."""

    def urgency(run: list[int]) -> int:
        return min(one.priority for sample in run for one in by_sample[sample])

    calls: list[list[int]] = []
    num_runs = max_runs
    for run in sorted(runs, key=urgency):
        num_bytes = (len(calls[-1]) + len(run)) * sample_bytes if calls else 0
        if num_runs == max_runs or num_bytes > _MAX_CALL_BYTES:
            calls.append([])
            num_runs = 0
        calls[-1] += run
        num_runs += 1
    return calls
