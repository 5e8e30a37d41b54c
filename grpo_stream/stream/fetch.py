"""Fetching encoded samples ahead, many requests at a time."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from grpo_stream.stream.dataset import Place, is_damage
from grpo_stream.stream.pool import PriorityPool
from grpo_stream.stream.sources import Encoded, Source


@dataclass(frozen=True, eq=False)
class Wanted:
    """A sample that will be needed."""

    priority: int
    """Lower ones are fetched first."""
    place: Place
    future: Future[Encoded]
    """Gets the sample, or the error that reading it met."""


class Fetcher:
    """Threads that wait for object storage.

    Samples that are asked for together and lie side by side in a shard come by one request.

    Args:
        sources: Where samples lie.
        num_threads: Requests at a time.
    """

    def __init__(self, sources: Sequence[Source], num_threads: int) -> None:
        self._sources = sources
        self._pool = PriorityPool(num_threads, "fetcher")

    def start(self, wanted: Sequence[Wanted]) -> None:
        """Begins to fetch."""
        groups: dict[tuple[int, int], list[Wanted]] = {}
        for one in wanted:
            groups.setdefault((one.place.source, one.place.shard), []).append(one)
        for (source, shard), group in groups.items():
            self._submit(self._sources[source], shard, group)

    def close(self) -> None:
        """Drops what has not begun; waits a second at most for what has."""
        self._pool.close()

    def _submit(self, source: Source, shard: int, group: list[Wanted]) -> None:
        priority = min(one.priority for one in group)
        self._pool.submit(priority, lambda: self._run(source, shard, group))

    def _run(self, source: Source, shard: int, group: list[Wanted]) -> None:
        group = [one for one in group if not one.future.cancelled()]
        by_sample: dict[int, list[Wanted]] = {}
        for one in group:  # a small source of a blend may be wanted twice within the look-ahead
            by_sample.setdefault(one.place.sample, []).append(one)
        try:
            # Which samples are neighbours, the shard's index knows; it may have to be fetched.
            runs = source.runs(shard, list(by_sample)) if group else []
            if len(runs) > 1:
                for run in runs:
                    self._submit(source, shard, [one for n in run for one in by_sample[n]])
            elif runs:
                self._fetch(source, shard, [by_sample[sample] for sample in runs[0]])
        except Exception as error:  # noqa: BLE001 - it is raised where the sample is needed
            for one in group:
                _give(one.future, error)

    def _fetch(self, source: Source, shard: int, run: list[list[Wanted]]) -> None:
        """Fetches neighbours by one request; each of them may be wanted more than once."""
        try:
            found = source.fetch(shard, [one[0].place.sample for one in run])
        except Exception as error:
            if len(run) == 1 or not is_damage(error):
                raise
            # One of them is to blame, and who its neighbours are is chance.
            for alone in run:
                self._submit(source, shard, alone)
        else:
            for same, encoded in zip(run, found, strict=True):
                for one in same:
                    _give(one.future, encoded)


def _give(future: Future[Encoded], result: Encoded | Exception) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
