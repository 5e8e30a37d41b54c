import json
import threading
import time
from types import SimpleNamespace

import pytest

from grpo_stream.errors import BadSamplesError, CursorError
from grpo_stream.stream.loader import PromptLoader
from tests.stream.support import (
    damage,
    epoch_keys,
    keys_of,
    make_stream,
    write_numbered_set,
)

NUM_BATCHES = 5

pytestmark = pytest.mark.timeout(60)  # what hangs should not hang for long


@pytest.fixture
def folder(tmp_path):
    return write_numbered_set(tmp_path)  # 23 samples, 4 lanes: 5 batches


@pytest.fixture
def open_loader(folder):
    """Opens loaders and closes them after the test."""
    opened = []

    def open_one(transform=keys_of, state=None, **changes):
        loader = PromptLoader(make_stream(folder, **changes), transform)
        opened.append(loader)
        if state is not None:
            loader.load_state_dict(state)
        return loader

    yield open_one
    for loader in opened:
        loader.close()


def saved(loader):
    return json.loads(json.dumps(loader.state_dict()))


def wait_until_idle(loader):
    """The assembler has one thread and takes batches in turn: behind this, all are made."""
    loader._assembler.submit(10**9, int).result()


class TestOrder:
    @pytest.mark.parametrize("num_reader_threads", [0, 1, 3])
    @pytest.mark.parametrize("world_size", [1, 2, 4])
    def test_is_the_same_for_threads_and_world_sizes(self, folder, num_reader_threads, world_size):
        reference = epoch_keys(folder)
        assert epoch_keys(folder, world_size, num_reader_threads=num_reader_threads) == reference

    def test_an_epoch_and_the_next(self, open_loader):
        loader = open_loader(num_reader_threads=2)
        first, second = list(loader), list(loader)
        assert len(first) == len(second) == len(loader) == NUM_BATCHES
        assert first != second
        assert len({key for batch in first for key in batch}) == 20

    def test_slow_samples_do_not_change_it(self, folder, open_loader):
        def slow_first(samples):
            time.sleep(0.01 if samples[0].key < "000012" else 0)
            return keys_of(samples)

        assert list(open_loader(slow_first, num_reader_threads=3)) == epoch_keys(folder)


class TestResume:
    @pytest.mark.parametrize("num_reader_threads", [0, 2])
    @pytest.mark.parametrize("num_done", range(NUM_BATCHES + 1))
    def test_at_every_batch(self, open_loader, num_done, num_reader_threads):
        whole = open_loader(num_reader_threads=num_reader_threads)
        epochs = list(whole) + list(whole)
        stopped = open_loader(num_reader_threads=num_reader_threads)
        batches = iter(stopped)
        done = [next(batches) for _ in range(num_done)]
        state = saved(stopped)
        resumed = open_loader(state=state, num_reader_threads=num_reader_threads)
        rest = list(resumed)
        if num_done < NUM_BATCHES:  # else the cursor stands at the next epoch already
            rest += list(resumed)
        assert done + rest == epochs

    def test_of_a_resume_of_a_resume(self, open_loader):
        whole = open_loader()
        expected = [batch for _ in range(3) for batch in whole]
        read, state = [], None
        for _ in range(len(expected) // 3):  # three batches at a time, across epochs
            loader = open_loader(state=state, num_reader_threads=1)
            read += [next(iter(loader)) for _ in range(3)]
            state = saved(loader)
        assert read == expected

    def test_at_an_epochs_end_exactly(self, open_loader):
        loader = open_loader()
        list(loader)
        state = saved(loader)
        assert (state["epoch"], state["batch_index"]) == (1, 0)
        assert next(iter(open_loader(state=state))) == next(iter(loader))

    @pytest.mark.parametrize("world_size", [2, 4])
    def test_another_world_size_continues_the_same_order(self, folder, open_loader, world_size):
        loader = open_loader()
        batches = iter(loader)
        done = [next(batches), next(batches)]
        rest = epoch_keys(folder, world_size, state=saved(loader), num_reader_threads=1)
        assert done + rest == epoch_keys(folder)

    def test_the_state_is_the_same_on_every_rank_and_small(self, open_loader):
        states = []
        for rank in range(2):
            loader = open_loader(rank=rank, world_size=2, num_reader_threads=1)
            next(iter(loader))
            states.append(saved(loader))
        assert states[0] == states[1]
        assert len(json.dumps(states[0])) < 300

    def test_seeking_reads_nothing(self, folder, open_loader):
        loader = open_loader()
        loader.load_state_dict(loader.stream.cursor(0, 4).to_dict())
        assert not loader.stream.sources[0]._store.reads
        next(iter(loader))
        assert loader.stream.sources[0]._store.reads.total() == 4

    @pytest.mark.parametrize("change", [{"stream_seed": 1}, {"num_lanes": 2}, {"block_shards": 1}])
    def test_another_order_is_refused(self, open_loader, change):
        state = saved(open_loader())
        with pytest.raises(CursorError, match="another order"):
            open_loader(state=state, **change)

    def test_other_data_are_refused(self, open_loader, tmp_path):
        state = saved(open_loader())
        write_numbered_set(tmp_path / "other", num_samples=22)
        other = PromptLoader(make_stream(tmp_path / "other"), keys_of)
        with pytest.raises(CursorError, match="manifest digest"):
            other.load_state_dict(state)

    @pytest.mark.parametrize("batch_index", [NUM_BATCHES + 1, 10**6])
    def test_a_place_outside_the_epoch_is_refused(self, open_loader, batch_index):
        state = saved(open_loader()) | {"batch_index": batch_index}
        with pytest.raises(CursorError, match=f"batch {batch_index} .* {NUM_BATCHES}"):
            open_loader(state=state)


class TestReadingAhead:
    @pytest.fixture(autouse=True)
    def nothing_is_cheap(self, monkeypatch):
        """Else the caller makes what takes next to no time, as these images do."""
        monkeypatch.setattr("grpo_stream.stream.loader._CHEAP_SECONDS", 0)

    @pytest.mark.parametrize("prefetch_batches", [1, 3])
    def test_is_bounded(self, open_loader, prefetch_batches):
        made: list[object] = []
        loader = open_loader(made.append, num_reader_threads=3, prefetch_batches=prefetch_batches)
        assert made == []
        for number, _ in enumerate(loader):
            wait_until_idle(loader)
            expected = min(number + 1 + prefetch_batches, NUM_BATCHES)
            assert len(made) == expected
            assert loader.stream.counters.num_samples == 4 * expected

    @pytest.mark.parametrize(
        ("cheap_seconds", "transform_seconds", "makers"),
        [(0, 0, {"decoder"}), (60, 0, {"MainThread"}), (1, 1.5, {"decoder"})],
    )
    def test_what_takes_no_time_the_caller_makes(
        self, folder, open_loader, monkeypatch, cheap_seconds, transform_seconds, makers
    ):
        monkeypatch.setattr("grpo_stream.stream.loader._CHEAP_SECONDS", cheap_seconds / 4)
        monkeypatch.setattr("grpo_stream.stream.loader._MAX_WAITING", 10**6)
        clock = [0.0]
        times = SimpleNamespace(perf_counter=lambda: clock[0], thread_time=time.thread_time)
        monkeypatch.setattr("grpo_stream.stream.loader.time", times)

        def transform(samples):
            clock[0] += transform_seconds
            return keys_of(samples)

        loader = open_loader(transform, num_reader_threads=3, prefetch_batches=1)
        attempt, found = loader.stream.attempt, []

        def noted(*words):
            found.append(threading.current_thread().name.partition("-")[0])
            return attempt(*words)

        loader.stream.attempt = noted
        assert list(loader) == epoch_keys(folder)
        assert set(found[:4]) == {"decoder"}, "nothing is known of the first"
        assert set(found[-4:]) == makers

    def test_without_threads_only_what_is_asked_for(self, open_loader):
        made: list[object] = []
        loader = open_loader(made.append, prefetch_batches=3)
        next(iter(loader))
        assert len(made) == 1

    def test_a_batch_is_made_while_the_caller_works(self, open_loader):
        caller = threading.get_ident()
        loader = open_loader(lambda _: threading.get_ident(), num_reader_threads=1)
        assert all(maker != caller for maker in loader)

    def test_any_place_can_be_asked_for(self, folder, open_loader):
        reference = epoch_keys(folder)
        loader = open_loader(num_reader_threads=2)
        for batch_index in (3, 0, 0, 4, 1, 2):
            assert loader.get(0, batch_index) == reference[batch_index]
        assert len(loader._works) <= 2

    def test_waiting_is_measured(self, open_loader):
        loader = open_loader(lambda _: time.sleep(0.01), num_reader_threads=1)
        next(iter(loader))
        assert 0.01 <= loader.wait_seconds < 30


class TestErrors:
    @pytest.mark.parametrize("num_reader_threads", [0, 1, 3])
    def test_of_the_transform_reach_the_caller(self, open_loader, num_reader_threads):
        def fail_on_the_third(samples):
            if keys_of(samples) == third:
                raise ZeroDivisionError("in transform")
            return keys_of(samples)

        third = list(open_loader())[2]
        batches = iter(open_loader(fail_on_the_third, num_reader_threads=num_reader_threads))
        next(batches)
        next(batches)
        with pytest.raises(ZeroDivisionError, match="in transform"):
            next(batches)

    @pytest.mark.parametrize("num_reader_threads", [0, 1, 3])
    def test_of_reading_reach_the_caller(self, open_loader, num_reader_threads):
        loader = open_loader(num_reader_threads=num_reader_threads)

        def fail(shard, sample):
            raise MemoryError

        loader.stream.sources[0].read = fail
        with pytest.raises(MemoryError):
            next(iter(loader))

    @pytest.mark.parametrize("num_reader_threads", [0, 3])
    def test_too_many_bad_samples(self, open_loader, num_reader_threads):
        loader = open_loader(num_reader_threads=num_reader_threads, max_bad_samples=3)
        for shard in range(6):
            damage(loader.stream.sources[0], shard, 0)
        with pytest.raises(BadSamplesError, match="max_bad_samples=3"):
            list(loader)

    def test_the_cursor_does_not_pass_a_failed_batch(self, open_loader):
        second = list(open_loader())[1]

        def fail_on_the_second(samples):
            return 1 / (keys_of(samples) != second)

        loader = open_loader(fail_on_the_second, num_reader_threads=1)
        with pytest.raises(ZeroDivisionError):
            list(loader)
        assert saved(loader)["batch_index"] == 1


class TestClose:
    def own_threads(self):
        names = ("decoder", "assembler", "fetcher")
        return {t for t in threading.enumerate() if t.name.startswith(names)}

    def test_ends_the_threads(self, folder):
        before = self.own_threads()
        loader = PromptLoader(make_stream(folder, num_reader_threads=3), keys_of)
        next(iter(loader))
        assert self.own_threads() > before
        loader.close()
        loader.close()
        assert self.own_threads() == before

    def test_in_the_middle_of_reading_ahead(self, folder):
        before = self.own_threads()

        def slow(samples):
            time.sleep(0.02)
            return keys_of(samples)

        stream = make_stream(folder, num_reader_threads=2, prefetch_batches=4)
        with PromptLoader(stream, slow) as loader:
            next(iter(loader))
        assert self.own_threads() == before

    def test_after_an_error(self, folder):
        before = self.own_threads()
        stream = make_stream(folder, num_reader_threads=2)
        with pytest.raises(ZeroDivisionError), PromptLoader(stream, lambda _: 1 / 0) as loader:
            list(loader)
        assert self.own_threads() == before
