import pickle
from types import SimpleNamespace

import pytest

from grpo_stream.errors import (
    BadSamplesError,
    ConfigError,
    GrpoStreamError,
    StoreError,
    WorkerDiedError,
)
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import StreamCounters
from grpo_stream.stream.world import World
from grpo_stream.train.batches import synced_reader
from grpo_stream.train.batches.synced_reader import SyncedReader, raise_together


class Ranks:
    """Ranks whose collectives are played one after another, in one process."""

    def __init__(self, monkeypatch, counts):
        self.counters = [StreamCounters() for _ in counts]
        self.num_exchanges = 0
        for rank, by_cause in enumerate(counts):
            for cause, number in by_cause.items():
                self.counters[rank].quarantine |= {
                    f"{cause} {rank}.{n}": cause for n in range(number)
                }
        self.errors: list[Exception | None] = [None] * len(counts)
        self.waits = [0.0] * len(counts)
        monkeypatch.setattr(SyncedReader, "_gather", lambda _, __: self.rows())
        monkeypatch.setattr(synced_reader, "gather_object", lambda _: self.reports())

    def rows(self):
        totals = [counters.num_bad_by_cause.total() for counters in self.counters]
        failed = [int(error is not None) for error in self.errors]
        microseconds = [round(wait * 1e6) for wait in self.waits]
        return list(map(list, zip(failed, totals, microseconds, strict=True)))

    def reports(self):
        self.num_exchanges += 1
        pairs = zip(self.errors, self.counters, strict=True)
        reports = [
            synced_reader._Report(synced_reader._told(error), counters.quarantine)
            for error, counters in pairs
        ]
        return pickle.loads(pickle.dumps(reports))  # noqa: S301 - sent as the ranks do

    def reader(self, rank, max_bad_samples=100):
        def get(epoch, batch_index):
            if self.errors[rank] is not None:
                raise self.errors[rank]
            return epoch, batch_index

        stream = SimpleNamespace(
            counters=self.counters[rank],
            world=World(rank, len(self.counters)),
            config=StreamConfig(num_lanes=4, max_bad_samples=max_bad_samples),
        )
        return SyncedReader(SimpleNamespace(stream=stream, get=get, wait_seconds=0.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StoreError("not_found", "no shard-7"), "not_found: rank 1: no shard-7"),
        (BadSamplesError("too many"), "rank 1: too many"),
        (WorkerDiedError("killed"), "rank 1: killed"),
        (ConfigError("seed", 1, "use 2"), "seed=1: use 2"),
        (ValueError("odd"), "rank 1: ValueError: odd"),
    ],
)
def test_an_error_of_one_rank_is_raised_by_all(monkeypatch, error, message):
    ranks = Ranks(monkeypatch, [{}, {}, {}])
    ranks.errors[1] = error
    raised = []
    for rank in range(3):
        with pytest.raises(GrpoStreamError) as info:
            ranks.reader(rank).get(0, 0)
        raised.append((type(info.value), str(info.value)))
    expected = type(error) if isinstance(error, GrpoStreamError) else GrpoStreamError
    assert raised == [(expected, message)] * 3


def test_several_failures_are_one(monkeypatch):
    ranks = Ranks(monkeypatch, [{}, {}, {}])
    ranks.errors[:2] = [StoreError("forbidden", "key"), WorkerDiedError("killed")]
    with pytest.raises(StoreError, match="rank 0 and 1 more: key"):
        ranks.reader(2).get(0, 0)


def test_the_tolerance_is_over_all_ranks(monkeypatch):
    ranks = Ranks(monkeypatch, [{"checksum": 2}, {}, {"checksum": 1, "image_truncated": 1}])
    for rank in range(3):
        assert ranks.reader(rank, max_bad_samples=4).get(3, 1) == (3, 1)
        words = r"4 samples .* on 3 ranks.*max_bad_samples=3.*'checksum': 3.*rank 0: checksum 0.1"
        with pytest.raises(BadSamplesError, match=words):
            ranks.reader(rank, max_bad_samples=3).get(3, 1)


def test_of_each_batch_the_longest_wait_counts(monkeypatch):
    ranks = Ranks(monkeypatch, [{}, {}, {}])
    reader = ranks.reader(0)
    for waits in ([0.25, 0.0, 0.5], [1.0, 0.0, 0.0]):
        ranks.waits = waits
        reader.get(0, 0)
    assert reader.wait_seconds == 1.5


def test_a_wait_is_that_of_the_batch(monkeypatch):
    ranks = Ranks(monkeypatch, [{}])
    monkeypatch.undo()
    reader = ranks.reader(0)
    reader.loader.wait_seconds = 7.0  # of evaluations, of other starts
    get = reader.loader.get

    def slow(*place):
        reader.loader.wait_seconds += 0.125
        return get(*place)

    reader.loader.get = slow
    reader.get(0, 0)
    reader.get(0, 1)
    assert reader.wait_seconds == 0.25


def test_texts_are_exchanged_only_when_something_is_new(monkeypatch):
    ranks = Ranks(monkeypatch, [{}, {}])
    reader = ranks.reader(0)
    reader.get(0, 0)
    assert ranks.num_exchanges == 0
    ranks.counters[1].quarantine["shard sample 3"] = "checksum"
    for batch_index in range(1, 4):
        reader.get(0, batch_index)
    assert ranks.num_exchanges == 1
    assert reader.bad_samples.num_by_cause == {"checksum": 1}
    assert reader.bad_samples.quarantine == {"shard sample 3": "checksum"}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_bad_samples_of_earlier_starts_count_once(monkeypatch, num_ranks):
    ranks = Ranks(monkeypatch, [{"checksum": 1}] * num_ranks)
    known = {"checksum 0.0": "checksum", "shard sample 3": "image_truncated"}
    reader = ranks.reader(0, max_bad_samples=num_ranks + 1)
    reader.resume(known)
    assert reader.bad_samples.quarantine == known
    reader.get(0, 0)
    assert reader.bad_samples.num_by_cause == {"checksum": num_ranks, "image_truncated": 1}
    reader = ranks.reader(0, max_bad_samples=num_ranks)
    reader.resume(known)
    with pytest.raises(BadSamplesError, match=f"{num_ranks + 1} samples could not be read"):
        reader.get(0, 0)


def test_a_rank_alone_raises_its_own_error(monkeypatch):
    ranks = Ranks(monkeypatch, [{"checksum": 1}])
    monkeypatch.undo()
    reader = ranks.reader(0)
    reader.get(0, 0)
    assert reader.bad_samples.num_by_cause == {"checksum": 1}
    ranks.errors[0] = error = StoreError("not_found", "no shard-7")
    with pytest.raises(StoreError) as info:
        reader.get(0, 1)
    assert info.value is error


def test_nothing_wrong_is_no_error():
    raise_together([synced_reader._Report(None, {"a": "checksum", "b": "checksum"})] * 2, 2)
