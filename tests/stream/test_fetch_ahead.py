"""What is asked of object storage: how early, how much at a time, and what not at all."""

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from grpo_stream.errors import BadSamplesError, StoreError
from grpo_stream.shards.index import ShardIndex, index_name
from grpo_stream.shards.manifest import MANIFEST_NAME, Manifest
from grpo_stream.storage.store import LocalStore
from grpo_stream.stream import sources
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.pipeline import fetcher
from grpo_stream.stream.pipeline.fetcher import Fetcher, FetchRequest
from grpo_stream.stream.pipeline.pending_samples import PendingSamples
from grpo_stream.stream.prompt_stream import Place, PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.stream_sample import decode_sample
from tests.shards.cache_support import wait_for
from tests.stream.remote_support import GatedStore, RemoteStore
from tests.stream.support import epoch_keys, keys_of, make_config, write_numbered_set

pytestmark = pytest.mark.timeout(60)

NUM_SAMPLES = 96
NUM_LANES = 8
PER_SHARD = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_numbered_set(tmp_path_factory.mktemp("set"), NUM_SAMPLES, PER_SHARD)


@pytest.fixture(scope="module")
def entries(folder):
    """Index entry of each sample by (shard, sample)."""
    store = LocalStore(folder)
    return {
        (shard, number): ShardIndex.load(store, info)[number]
        for shard, info in enumerate(Manifest.load(store).shards)
        for number in range(info.num_samples)
    }


def open_loader(store, until=None, open_sample=decode_sample, **changes):
    config = make_config(**({"num_lanes": NUM_LANES, "num_reader_threads": 2} | changes))
    stream = PromptStream(ShardSource(store), config, open_sample=open_sample)
    return PromptLoader(stream, keys_of, until=until)


def places_of(loader, *batches):
    return {one.place[1:] for batch in batches for one in loader.stream.slot_places(*batch)}


def read_places(store, entries):
    """(shard, sample) of all samples that ranged reads touched, each as often as it was."""
    return sorted(
        place
        for name, offset, num_bytes in store.ranges
        for place, entry in entries.items()
        if name == f"shard-{place[0] * PER_SHARD:06d}.tar"
        and offset <= entry.offset < offset + num_bytes
    )


def arrived(one):
    """What came of a sample that was wanted alone."""
    there = threading.Event()
    one.pending.then(there.set)
    assert there.wait(10)
    return one.pending.take(one.number)


class TestTheFirstBatch:
    @pytest.mark.parametrize("num_reader_threads", [1, 2])
    @pytest.mark.parametrize("fetch_ahead_bytes", [1, 2**28])
    def test_takes_three_requests_in_a_row(
        self, folder, entries, num_reader_threads, fetch_ahead_bytes
    ):
        self.read_first(folder, entries, (0, 0), num_reader_threads, fetch_ahead_bytes)

    def test_after_resuming_too(self, folder, entries):
        self.read_first(folder, entries, (3, 7), 1, 2**28)

    def read_first(self, folder, entries, place, num_reader_threads, fetch_ahead_bytes):
        store = GatedStore(folder)
        done: Future[Any] = Future()

        def read():
            changes = {
                "num_reader_threads": num_reader_threads,
                "fetch_ahead_bytes": fetch_ahead_bytes,
            }
            with open_loader(store, **changes) as loader:
                done.set_result((loader.get(*place), loader))
                store.open()

        threading.Thread(target=read, daemon=True).start()
        try:
            with open_loader(str(folder)) as local:
                wanted = places_of(local, place)
                expected = local.get(*place)
            names = {shard: f"shard-{shard * PER_SHARD:06d}.tar" for shard, _ in wanted}
            store.let_go({(MANIFEST_NAME, None)})
            store.let_go({(index_name(name), None) for name in names.values()})
            # All at a time: each of them is the third request in its row.
            offsets = {(names[s], self.offset(store, entries, s, n)) for s, n in wanted}
            store.let_go(offsets)
            assert done.result(10)[0] == expected
        finally:
            store.open()

    def offset(self, store, entries, shard, number):
        """Where the run of samples starts that brings this one."""
        name, place = f"shard-{shard * PER_SHARD:06d}.tar", entries[shard, number].offset
        found: list[int] = []

        def is_asked_for():
            found[:] = [
                offset
                for other, offset, num_bytes in store.ranges
                if other == name and offset <= place < offset + num_bytes
            ]
            return found

        wait_for(is_asked_for)
        return found[0]


class TestUntil:
    @pytest.mark.parametrize(
        ("start", "until"),
        [
            ((0, 0), (0, 5)),
            ((0, 0), (1, 0)),
            ((0, 9), (0, 12)),
            ((0, 9), (1, 2)),
            ((1, 11), (2, 1)),
        ],
    )
    def test_nothing_beyond_it_is_read_and_all_before_it_is(self, folder, entries, start, until):
        store = RemoteStore(folder, 0.001)
        with open_loader(store, until) as loader:
            batches, place = [], start
            while place < until:
                batches.append(place)
                place = loader.stream.plan.place_after(*place, 1)
            loader.get(*start)
            expected = sorted(places_of(loader, *batches))
            # A sample of both epochs may come once for both.
            wait_for(lambda: sorted(set(read_places(store, entries))) == expected)
            for batch in batches[1:]:
                loader.get(*batch)
            assert loader.stream.counters.num_samples == NUM_LANES * len(batches)
        assert sorted(set(read_places(store, entries))) == expected
        assert len(expected) < NUM_SAMPLES or start == (0, 0)

    def test_without_it_an_epoch_s_end_stops(self, folder, entries):
        store = RemoteStore(folder)
        with open_loader(store) as loader:
            list(loader)
        assert read_places(store, entries) == sorted(entries)


class TestTheByteBudget:
    @pytest.mark.parametrize("num_reader_threads", [1, 3])
    @pytest.mark.parametrize("prefetch_batches", [1, 2])
    @pytest.mark.parametrize("budget", [1, 20_000, 60_000])
    def test_is_kept(self, folder, entries, num_reader_threads, prefetch_batches, budget):
        sizes = {PER_SHARD * s + n: entry.num_bytes for (s, n), entry in entries.items()}
        lock, held = threading.Lock(), [0, 0]  # now and at most

        def count(num_bytes):
            with lock:
                held[0] += num_bytes
                held[1] = max(held)

        def open_sample(sample, config):
            count(-sizes[int(sample.key)])
            return decode_sample(sample, config)

        store = RemoteStore(folder, 0.001)
        store.on_bytes = count
        with open_loader(
            store,
            open_sample=open_sample,
            num_reader_threads=num_reader_threads,
            prefetch_batches=prefetch_batches,
            fetch_ahead_bytes=budget,
        ) as loader:
            list(loader)
            num_batches = prefetch_batches + 2  # and the one that is in use
        assert held[0] == 0
        assert held[1] <= budget + num_batches * NUM_LANES * max(sizes.values())
        if budget > 1:
            assert held[1] >= budget // 2


class TestNeighbours:
    def test_wanted_together_come_by_one_request(self, tmp_path):
        folder = write_numbered_set(tmp_path, 48, 12)
        store = RemoteStore(folder)
        with open_loader(store, num_lanes=2, block_shards=1) as loader:
            assert list(loader) == epoch_keys(folder, num_lanes=2, block_shards=1)
        # What the first batches need comes by itself, and may part the runs of what is left.
        num_first = 3 * 2
        assert len(store.ranges) <= 2 * num_first + 4
        assert sum(num_bytes for *_, num_bytes in store.ranges) <= 4 * 12 * 4096

    def test_a_run_is_bounded(self, tmp_path, monkeypatch):
        folder = write_numbered_set(tmp_path, 48, 12)
        longest = 3 * 2048
        monkeypatch.setattr(sources, "_MAX_RUN_BYTES", longest)
        monkeypatch.setattr(fetcher, "_MAX_CALL_BYTES", longest)
        store = RemoteStore(folder)
        with open_loader(store, num_lanes=2, block_shards=1) as loader:
            assert list(loader) == epoch_keys(folder, num_lanes=2, block_shards=1)
        assert max(num_bytes for *_, num_bytes in store.ranges) <= longest
        assert len(store.ranges) > 6

    def test_what_lies_between_two_samples_is_not_read(self, folder, entries):
        store = RemoteStore(folder)
        source = ShardSource(store)
        assert source.runs(3, [0, 3, 1]) == [[0, 1], [3]]
        wanted = [
            FetchRequest(0, Place(0, 3, sample), PendingSamples(1), 0) for sample in (0, 3, 1, 0)
        ]
        fetcher = Fetcher([source], 2)
        fetcher.start(wanted)
        keys = [arrived(one).sample().key for one in wanted]
        fetcher.close()
        assert keys == ["000012", "000015", "000013", "000012"]
        assert read_places(store, entries) == [(3, 0), (3, 1), (3, 3)]
        assert len(store.ranges) == 2

    @pytest.mark.parametrize(
        ("is_urgent", "calls"),
        [
            (False, [[0, 2, 4, 6, 8, 10, 12, 14], [16, 18, 20]]),
            (True, [[n] for n in range(0, 22, 2)]),
        ],
    )
    def test_requests_to_one_shard_share_calls_by_urgency(self, tmp_path, is_urgent, calls):
        store = RemoteStore(write_numbered_set(tmp_path, 24, 24))
        source = ShardSource(store)
        _, index = source._index(0)
        offsets = [[index[n].offset for n in call] for call in calls]
        wanted = [FetchRequest(n, Place(0, 0, n), PendingSamples(1), 0) for n in range(0, 22, 2)]
        fetcher = Fetcher([source], 1)
        fetcher.start(wanted[::-1], is_urgent=is_urgent)
        assert [arrived(one).sample().key for one in wanted] == [
            f"{n:06d}" for n in range(0, 22, 2)
        ]
        fetcher.close()
        assert store.calls == offsets

    def test_samples_that_come_by_one_call_are_damaged_alone(self, tmp_path):
        folder = write_numbered_set(tmp_path, 24, 24)
        source = ShardSource(RemoteStore(folder))
        path = next(folder.glob("*.tar"))
        path.write_bytes(path.read_bytes()[: source._index(0)[1][4].offset + 700])
        wanted = [FetchRequest(n, Place(0, 0, n), PendingSamples(1), 0) for n in (0, 2, 4, 6)]
        fetcher = Fetcher([source], 1)
        fetcher.start(wanted)
        assert [arrived(one).sample().key for one in wanted[:2]] == ["000000", "000002"]
        for one in wanted[2:]:
            with pytest.raises(StoreError, match="short_read"):
                arrived(one)
        fetcher.close()

    @pytest.mark.parametrize("fetch_ahead_bytes", [1, 2**28])
    def test_too_large_samples_are_refused_in_runs_too(self, folder, fetch_ahead_bytes):
        changes = {"block_shards": 1, "fetch_ahead_bytes": fetch_ahead_bytes}
        source = ShardSource(RemoteStore(folder), max_sample_bytes=100)
        stream = PromptStream(source, make_config(NUM_LANES, num_reader_threads=2, **changes))
        with (
            PromptLoader(stream, keys_of) as loader,
            pytest.raises(BadSamplesError, match="'sample_bytes'"),
        ):
            list(loader)

    def test_cancelled_ones_are_not_fetched(self, folder):
        store = RemoteStore(folder)
        fetcher = Fetcher([ShardSource(store)], 1)
        gone, wanted = (FetchRequest(n, Place(0, n, 0), PendingSamples(1), 0) for n in range(2))
        gone.pending.cancel()
        fetcher.start([gone, wanted])
        arrived(wanted)
        fetcher.close()
        assert len(store.ranges) == 1
