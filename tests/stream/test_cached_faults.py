"""The loader through the shard cache, which may cost or save time and changes nothing else."""

import errno
import shutil

import pytest

from grpo_stream.shards import cache_fetcher
from grpo_stream.shards.cache_folder import Download
from tests.shards.cache_support import cached, wait_for
from tests.stream.fault_support import URL, open_loader
from tests.stream.support import epoch_keys, write_numbered_set

pytest.importorskip("obstore")
pytestmark = pytest.mark.timeout(60)

NO_RANGES = {".index": "", ".tar": "no_range"}
SHARD = "shard-000008.tar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_numbered_set(tmp_path_factory.mktemp("set"), 24)


@pytest.fixture(scope="module")
def epoch(folder):
    return epoch_keys(folder)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def whole_gets(server):
    return sorted(name for name, _ in server.gets if name.endswith(".tar"))


def warm(cache):
    """Fills the cache with the whole data set."""
    with open_loader(URL, cache=cache) as loader:
        list(loader)
        wait_for(lambda: len(cached(cache)) == 6)


@pytest.mark.parametrize("fault", ["slow_down", "reset", "truncated"])
def test_faults_of_the_server(server, cache, epoch, fault):
    server.faults = [fault] * 20
    with open_loader(URL, cache=cache) as loader:
        assert list(loader) == epoch
        assert 1 <= loader.stream.metrics()["num_retries"] <= 20  # requests of a call fail as one


class TestAServerWithoutRanges:
    @pytest.mark.parametrize("scheme", ["s3", "http"])
    def test_whole_shards_do(self, server, cache, epoch, scheme):
        server.always = NO_RANGES
        url = URL if scheme == "s3" else f"{server.url}/bucket/set"
        with open_loader(url, cache=cache) as loader:
            assert list(loader) == epoch
            assert loader.stream.metrics()["cache/num_downloads"] == 6
            assert not loader.stream.counters.quarantine

    def test_it_is_asked_for_a_range_twice_and_for_each_shard_once(self, server, cache, epoch):
        server.always = NO_RANGES
        with open_loader(URL, cache=cache, num_fetch_threads=1) as loader:
            loader.stream.sources[0].cache.announce = lambda _: None  # else all may be here at once
            assert list(loader) == epoch
        assert len(whole_gets(server)) == len(set(whole_gets(server))) + 2 == 8  # a range twice

    def test_not_announced_shards_too(self, server, cache, epoch):
        server.always = NO_RANGES
        with open_loader(URL, cache=cache) as loader:
            loader.stream.sources[0].cache.announce = lambda _: None
            assert list(loader) == epoch
            assert loader.stream.metrics()["cache/num_downloads"] >= 6

    def test_a_shard_that_is_gone(self, server, cache):
        server.always = NO_RANGES
        del server.objects[f"bucket/set/{SHARD}"]
        with (
            open_loader(URL, cache=cache) as loader,
            pytest.raises(Exception, match=f"not_found: {URL}: {SHARD}"),
        ):
            list(loader)

    def test_a_cached_copy_that_is_damaged(self, server, cache, epoch):
        server.always = NO_RANGES
        warm(cache)
        flip(next(cache.glob(f"*/{SHARD}")))
        with open_loader(URL, cache=cache) as loader:
            assert list(loader) == epoch
            assert loader.stream.counters.num_read_again == 1

    def test_no_room(self, server, cache, folder, epoch):
        server.always = NO_RANGES
        largest = max(path.stat().st_size for path in folder.glob("*.tar"))
        with open_loader(URL, cache=cache, cache_bytes=largest) as loader:
            assert list(loader) == epoch

    def test_a_full_disk(self, server, cache, epoch, monkeypatch):
        server.always = NO_RANGES
        monkeypatch.setattr(Download, "write", refuse)
        with open_loader(URL, cache=cache) as loader:
            assert list(loader) == epoch
            assert loader.stream.metrics()["cache/num_failures"] >= 1


def refuse(self, data):
    raise OSError(errno.ENOSPC, "no space left on device")


def flip(path):
    """Another byte in the image of the second sample."""
    data = bytearray(path.read_bytes())
    data[data.index(b"\x89PNG", 1000) + 30] ^= 1
    path.write_bytes(data)


def test_a_warm_cache_asks_for_no_shard(server, cache, epoch):
    warm(cache)
    server.requests.clear()
    with open_loader(URL, cache=cache) as loader:
        assert list(loader) == epoch
        assert loader.stream.metrics()["cache/num_misses"] == 0
    assert whole_gets(server) == []


def test_a_cached_copy_that_is_damaged(server, cache, epoch):
    warm(cache)
    flip(next(cache.glob(f"*/{SHARD}")))
    server.requests.clear()
    with open_loader(URL, cache=cache) as loader:
        assert list(loader) == epoch
        assert loader.stream.counters.num_read_again == 1
        assert not loader.stream.counters.quarantine
        assert loader.stream.metrics()["cache/num_failures"] == 1
    assert set(whole_gets(server)) == {f"bucket/set/{SHARD}"}
    assert SHARD not in cached(cache)


def test_a_cached_copy_that_was_cut_short(server, cache, epoch):
    warm(cache)
    path = next(cache.glob(f"*/{SHARD}"))
    path.write_bytes(path.read_bytes()[:3000])
    with open_loader(URL, cache=cache) as loader:
        assert list(loader) == epoch
        assert not loader.stream.counters.quarantine


def test_the_folder_is_deleted_while_running(server, cache, epoch):
    warm(cache)
    with open_loader(URL, cache=cache, fetch_ahead_bytes=1, prefetch_batches=1) as loader:
        batches = iter(loader)
        read = [next(batches), next(batches)]
        shutil.rmtree(cache)
        assert read + list(batches) == epoch


def test_a_full_disk(server, cache, epoch, monkeypatch, caplog):
    monkeypatch.setattr(Download, "write", refuse)
    with open_loader(URL, cache=cache, fetch_ahead_bytes=1, prefetch_batches=1) as loader:
        assert list(loader) == epoch
        wait_for(lambda: loader.stream.metrics()["cache/num_failures"])
        assert loader.stream.metrics()["cache/num_downloads"] == 0
    assert "the disk of the cache is full" in caplog.text
    assert not cached(cache)


def test_another_process_that_never_ends_its_download(server, cache, epoch, folder, monkeypatch):
    """A living process that was stopped holds the part of a shard that only comes whole."""
    monkeypatch.setattr(cache_fetcher, "_BUSY_SECONDS", 0.3)
    server.always = NO_RANGES
    with open_loader(URL, cache=cache) as other:
        source = other.stream.sources[0]
        size = (folder / SHARD).stat().st_size
        held = source.cache._fetcher._folder.reserve(SHARD, size, ())
        with open_loader(URL, cache=cache) as loader:
            assert list(loader) == epoch
        held.discard()
