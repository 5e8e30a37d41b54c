"""The loader against a store, a network and a machine that fail: nothing lost, nothing twice."""

import contextlib
import os
import shutil
import threading
import time
from concurrent.futures import CancelledError

import pytest

from benchmarks.servers.object_server import ObjectServer
from grpo_stream.errors import BadSamplesError, StoreError
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.retrying_store import RetryRules
from grpo_stream.storage.store import LocalStore
from tests.shards.cache_support import wait_for
from tests.storage import real_servers
from tests.storage.fault_rules import RULES, rules_for
from tests.stream.fault_support import URL, open_loader
from tests.stream.support import epoch_keys, write_numbered_set

pytest.importorskip("obstore")
pytestmark = pytest.mark.timeout(60)  # what hangs should not hang for long

NUM_SAMPLES = 24
SHARD = "shard-000008.tar"  # the third


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_numbered_set(tmp_path_factory.mktemp("set"), NUM_SAMPLES)


@pytest.fixture(scope="module")
def epochs(folder):
    """The keys of two epochs: 6 batches of 4 each."""
    first = epoch_keys(folder)
    state = {"epoch": 1}
    with open_loader(str(folder)) as loader:
        state = loader.state_dict() | state
    return first + epoch_keys(folder, state=state)


def two_epochs(loader):
    return [keys for _ in range(2) for keys in loader]


def counts(loader):
    return loader.stream.metrics()


def sample_ranges(server):
    return [name for name, wanted in server.gets if wanted and name.endswith(".tar")]


class TestWhatPasses:
    @pytest.mark.parametrize(
        ("faults", "counter"),
        [
            (["slow_down"] * 12, "num_unavailable"),
            (["internal", "too_many"] * 4, "num_unavailable"),
            (["reset"] * 6, "num_broken_off"),
            (["truncated"] * 6, "num_broken_off"),
            (["short"] * 3, "num_broken_off"),
            (["stall", "silent"], "num_timed_out"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else value,
    )
    @pytest.mark.parametrize("scheme", ["s3", "http"])
    def test_is_got_over(self, server, epochs, faults, counter, scheme):
        url = URL if scheme == "s3" else f"{server.url}/bucket/set"
        rules, certain = rules_for(faults)
        with open_loader(url, rules=rules) as loader:
            read = list(loader)  # all indexes are here: what comes is of samples
            server.faults = list(faults)
            read += list(loader)
            assert read == epochs
            assert server.faults == []
            metrics = counts(loader)
            assert 1 <= metrics[counter] <= metrics["num_retries"]
            if certain:  # requests of one call fail as one
                assert metrics[counter] == metrics["num_retries"] <= len(faults)
            assert metrics["num_failures"] == 0
            assert metrics["num_requests"] >= len(server.gets)
            assert not loader.stream.counters.quarantine

    @pytest.mark.parametrize("fault", ["slow_down", "reset", "truncated"])
    def test_from_the_first_request_on(self, server, epochs, fault):
        server.faults = [fault] * 20
        with open_loader(URL) as loader:
            assert two_epochs(loader) == epochs
            assert 1 <= counts(loader)["num_retries"] <= 20

    def test_an_index_that_came_short_is_read_again(self, server, epochs):
        with open_loader(URL) as loader:
            server.faults = ["short"]
            assert two_epochs(loader) == epochs
            assert loader.stream.counters.num_read_again == 0
            assert not loader.stream.counters.quarantine

    def test_in_processes(self, server, epochs):
        with open_loader(URL, num_decode_processes=1) as loader:
            server.faults = ["slow_down", "reset", "truncated"] * 4
            assert two_epochs(loader) == epochs
            assert 1 <= counts(loader)["num_retries"] <= 12

    @pytest.mark.parametrize("url", [real_servers.moto], indirect=True)
    def test_a_real_s3(self, url, epochs):
        with open_loader(url) as loader:
            assert two_epochs(loader) == epochs
            assert counts(loader)["num_retries"] == 0

    def test_the_server_is_gone_for_a_while(self, server, folder, epochs):
        rules = RetryRules(0.01, 0.05, 20.0, connect_timeout_seconds=1.0, stall_timeout_seconds=0.5)
        url = f"{server.url}/bucket/set"
        with open_loader(url, rules=rules, fetch_ahead_bytes=1) as loader:
            read = [loader.get(0, 0), loader.get(0, 1)]
            server.stop()
            again = ObjectServer(server.port)
            again.add_folder(folder, "bucket/set")
            coming = threading.Timer(0.5, again.start)
            coming.start()
            try:
                read += [loader.get(*divmod(number, 6)) for number in range(2, 12)]
            finally:
                coming.join()
                again.stop()
            assert read == epochs
            assert counts(loader)["num_unavailable"] > 0
            assert counts(loader)["num_failures"] == 0


@pytest.fixture
def url(request, folder, tmp_path, monkeypatch):
    with request.param(folder, tmp_path) as (url, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield url


class TestWhatLasts:
    @pytest.mark.parametrize("processes", [0, 1])
    def test_a_shard_that_is_gone(self, server, processes):
        with open_loader(URL, num_decode_processes=processes) as loader:
            server.always[SHARD] = ""  # its index is there
            del server.objects[f"bucket/set/{SHARD}"]
            for _ in range(2):  # it is told again, whoever goes on asking
                started = time.monotonic()
                with pytest.raises(StoreError, match=rf"not_found: {URL}: {SHARD}"):
                    list(loader)
                assert time.monotonic() - started < RULES.retry_deadline_seconds
            assert not loader.stream.counters.quarantine
            assert counts(loader)["num_retries"] == 0

    def test_an_index_that_is_gone(self, server):
        del server.objects[f"bucket/set/{SHARD}.index"]
        expected = rf"not_found: .*{SHARD}\.index.*shard-builder index {URL}"
        with open_loader(URL) as loader, pytest.raises(StoreError, match=expected):
            list(loader)

    @pytest.mark.parametrize("fault", ["expired", "denied", "unauthorized"])
    def test_credentials_that_ran_out_in_mid_epoch(self, server, fault):
        with open_loader(URL, fetch_ahead_bytes=1, prefetch_batches=1) as loader:
            batches = iter(loader)
            next(batches)
            server.always[""] = fault
            for _ in range(2):
                with pytest.raises(StoreError, match=r"forbidden: .*AWS_SESSION_TOKEN"):
                    list(loader)
            server.always.clear()
            assert loader.state_dict()["batch_index"] < 6

    @pytest.mark.parametrize("fault", ["slow_down", "reset", "silent"])
    def test_the_deadline(self, server, epochs, fault):
        rules = RetryRules(0.01, 0.02, 0.3, stall_timeout_seconds=0.1, request_timeout_seconds=0.5)
        with open_loader(URL, rules=rules, fetch_ahead_bytes=1, prefetch_batches=1) as loader:
            read = [loader.get(0, 0)]
            server.always[""] = fault
            for _ in range(2):
                started = time.monotonic()
                with pytest.raises(StoreError, match=r"given up after \d+ tr"):
                    read += [loader.get(0, number) for number in range(len(read), 6)]
                assert time.monotonic() - started < 5
            server.always.clear()  # and it is back, for whoever asks again
            read += [loader.get(*divmod(number, 6)) for number in range(len(read), 12)]
            assert read == epochs

    def test_a_server_without_ranges(self, server):
        server.always = {".index": "", ".tar": "no_range"}
        with (
            open_loader(URL) as loader,
            pytest.raises(StoreError, match=r"range_ignored: .*--cache_dir"),
        ):
            list(loader)


def give_up(loader):
    with contextlib.suppress(CancelledError, StoreError):
        list(loader)


def own_threads():
    names = ("fetcher", "decoder", "assembler", "shard-cache")
    return {thread for thread in threading.enumerate() if thread.name.startswith(names)}


class TestClose:
    @pytest.mark.parametrize("fault", ["silent", "slow_down"])
    @pytest.mark.parametrize("with_cache", [False, True])
    def test_while_requests_hang(self, server, tmp_path, fault, with_cache):
        rules = RetryRules(1.0, 30.0, 60.0, stall_timeout_seconds=50.0)
        cache = tmp_path / "cache" if with_cache else None
        before = set(threading.enumerate())
        with open_loader(URL, rules=rules, cache=cache) as loader:
            server.always = {".index": "", ".tar": fault}
            caller = threading.Thread(target=give_up, args=(loader,), daemon=True)
            caller.start()
            wait_for(lambda: sample_ranges(server))
            started = time.monotonic()
        assert time.monotonic() - started < 4
        caller.join(5)
        assert not caller.is_alive()
        if fault == "slow_down":  # nobody waits for another try, let alone makes one
            wait_for(lambda: not own_threads() & set(threading.enumerate()) - before, 2)

    def test_while_a_batch_is_being_asked_for(self, server):
        with open_loader(URL) as loader:
            start, closing = loader._start_decoding, threading.Thread(target=loader.close)

            def start_decoding(work):
                if closing.ident is None:
                    closing.start()
                    closing.join(0.2)
                return start(work)

            loader._start_decoding = start_decoding
            with contextlib.suppress(CancelledError):
                loader.get(0, 0)
            closing.join(10)
            assert not closing.is_alive()
            with pytest.raises(CancelledError):
                loader.get(0, 1)

    def test_while_a_stand_in_is_read(self, server):
        rules = RetryRules(1.0, 30.0, 60.0, stall_timeout_seconds=50.0)
        with open_loader(URL, rules=rules) as loader:
            read = loader.stream.attempt

            def attempt(one, encoded=None):
                if encoded is None:
                    server.always = {".index": "", ".tar": "silent"}
                    hangs.set()
                return read(one, encoded)

            hangs = threading.Event()
            loader.stream.attempt = attempt
            server.flips[".tar"] = [542, 10**6]
            caller = threading.Thread(target=give_up, args=(loader,), daemon=True)
            caller.start()
            assert hangs.wait(10)
            started = time.monotonic()
        assert time.monotonic() - started < 4


class TestDamage:
    def place(self, folder, sample=1):
        """A byte of the image of a sample of the third shard, and the sample's key."""
        info = Manifest.load(LocalStore(folder)).shards[2]
        entry = ShardIndex.load(LocalStore(folder), info)[sample]
        return entry.parts[0].offset + 30, f"{8 + sample:06d}"

    def test_a_byte_that_was_wrong_once(self, server, folder, epochs):
        place, _ = self.place(folder)
        server.flips[SHARD] = [place, 1]
        with open_loader(URL) as loader:
            assert two_epochs(loader) == epochs
            assert loader.stream.counters.num_read_again == 1
            assert not loader.stream.counters.quarantine

    @pytest.mark.parametrize("processes", [0, 1])
    def test_a_byte_that_stays_wrong(self, server, folder, epochs, processes):
        place, key = self.place(folder)
        digest = Manifest.load(LocalStore(folder)).digest[:12]
        server.flips[SHARD] = [place, 10**6]
        with open_loader(URL, num_decode_processes=processes, num_lanes=5) as loader:
            first = list(loader)
            server.requests.clear()
            second = list(loader)
            asked = [wanted for name, wanted in server.gets if name.endswith(SHARD)]
            bounds = [map(int, wanted[6:].split("-")) for wanted in asked]
            assert not any(start <= place <= end for start, end in bounds), "it was fetched again"
            assert loader.stream.counters.num_bad_by_cause == {"checksum": 1}
            assert list(loader.stream.counters.quarantine) == [f"{digest}: {SHARD} sample 1"]
        for epoch, read in enumerate((first, second)):
            whole = reference(folder, epoch, num_lanes=5)
            kept = [(a, b) for a, b in zip(flat(whole), flat(read), strict=True) if a != key]
            assert all(a == b for a, b in kept)
            assert key not in flat(read)
            assert len(kept) >= 19

    def test_above_the_tolerance(self, server, folder):
        server.flips[SHARD] = [self.place(folder)[0], 10**6]
        with (
            open_loader(URL, max_bad_samples=0) as loader,
            pytest.raises(BadSamplesError, match=rf"max_bad_samples=0.*{SHARD} sample 1"),
        ):
            list(loader)

    @pytest.mark.parametrize("processes", [0, 1])
    def test_a_local_tar_that_was_cut_short(self, folder, epochs, tmp_path, processes):
        copy = shutil.copytree(folder, tmp_path / "copy")
        with open_loader(str(copy), num_lanes=5, num_decode_processes=processes) as loader:
            size = (copy / SHARD).stat().st_size
            os.truncate(copy / SHARD, size // 2)
            first, second = list(loader), list(loader)
            bad = loader.stream.counters
        lost = {f"{8 + int(where.rpartition(' ')[2]):06d}" for where in bad.quarantine}
        assert 1 <= len(lost) <= 3
        assert bad.num_bad_by_cause == {"short_read": len(lost)}
        for epoch, read in enumerate((first, second)):
            pairs = zip(flat(reference(folder, epoch, num_lanes=5)), flat(read), strict=True)
            assert all((before == after) != (before in lost) for before, after in pairs)

    @pytest.mark.parametrize("num_left", [0, 1, 3000, 4096])
    def test_an_object_that_was_cut_short(self, server, folder, tmp_path, num_left):
        copy = shutil.copytree(folder, tmp_path / "copy")
        os.truncate(copy / SHARD, num_left)
        server.add_folder(copy, "bucket/set")
        expected = [reference(copy, epoch, num_lanes=5) for epoch in range(2)]
        for fetch_ahead_bytes in (1, 2**20):  # alone, and by one request with neighbours
            with open_loader(URL, num_lanes=5, fetch_ahead_bytes=fetch_ahead_bytes) as loader:
                assert [list(loader), list(loader)] == expected
                bad = loader.stream.counters.num_bad_by_cause
                assert bad == {"short_read": 4 - num_left // 2048}


def reference(folder, epoch, **changes):
    with open_loader(str(folder), num_reader_threads=0, **changes) as loader:
        return [loader.get(epoch, number) for number in range(len(loader))]


def flat(batches):
    return [key for batch in batches for key in batch]
