import contextlib
import errno
import os
import shutil
import signal
import subprocess

import pytest

from grpo_stream.errors import StoreError
from grpo_stream.shards import cache_fetcher
from grpo_stream.shards.cache_folder import Download
from tests.shards.cache_support import (
    SHARD_BYTES,
    StreamStore,
    bring,
    cached,
    content,
    make_set,
    names,
    open_cache,
    parts,
    start_process,
    used_bytes,
    wait_for,
)

_STALLED_DOWNLOAD = """
import sys
from tests.shards.cache_support import StreamStore, open_cache, parts, wait_for
from pathlib import Path
data, folder = map(Path, sys.argv[1:])
store = StreamStore(data)
store.gate.clear()
cache = open_cache(data, folder, store=store)
cache.announce(["0.tar"])
wait_for(lambda: parts(folder))
print("stalled", flush=True)
sys.stdin.read()
"""


def cached_path(folder, name):
    return next(folder.glob(f"*/{name}"))


def test_a_killed_downloader_leaves_no_lock_and_its_part_is_swept(data, folder):
    process = start_process(_STALLED_DOWNLOAD, data, folder)
    try:
        assert process.stdout.readline() == "stalled\n"
        store = StreamStore(data)
        with open_cache(data, folder, SHARD_BYTES, store=store) as cache:
            assert parts(folder), "the part of a living process stays"
            cache.announce(names(0))
            assert cache.read_range("0.tar", 0, 9) == content(data, "0.tar")[:9]
            assert not store.streams, "one download per machine"
            process.send_signal(signal.SIGKILL)
            process.wait()
            wait_for(lambda: cached(folder) == names(0))
            assert store.streams == {"0.tar": 1}
            assert not parts(folder)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_parts_of_dead_processes_are_swept_at_the_start(data, folder):
    open_cache(data, folder).close()
    own = next(folder.glob("grpo-stream-*"))
    (own / ".0.tar.part").write_bytes(b"half of it")
    open_cache(data, folder).close()
    assert not parts(folder)


@pytest.mark.parametrize("change", [-1, 1, -SHARD_BYTES])
def test_a_file_of_another_size_is_not_trusted(data, folder, change):
    with open_cache(data, folder) as cache:
        bring(cache, names(0))
    os.truncate(cached_path(folder, "0.tar"), SHARD_BYTES + change)
    store = StreamStore(data)
    with open_cache(data, folder, store=store) as cache:
        assert cache.read_range("0.tar", 0, 9) == content(data, "0.tar")[:9]
        assert store.ranges == {"0.tar": 1}
        bring(cache, names(0))
        assert store.streams == {"0.tar": 1}
        assert content(cached_path(folder, "0.tar").parent, "0.tar") == content(data, "0.tar")


def test_a_file_that_is_cut_while_it_is_open_is_dropped(data, folder, caplog):
    store = StreamStore(data)
    with open_cache(data, folder, store=store) as cache:
        bring(cache, names(0))
        os.truncate(cached_path(folder, "0.tar"), 500)
        assert cache.read_range("0.tar", 400, 200) == content(data, "0.tar")[400:600]
        assert not cached(folder)
        assert cache.snapshot().num_failures == 1
        assert "0.tar is thrown out, it was cut short" in caplog.text


def test_a_dropped_shard_is_read_from_the_store(data, folder):
    store = StreamStore(data)
    with open_cache(data, folder, store=store) as cache:
        bring(cache, names(0, 1))
        path = cached_path(folder, "0.tar")
        path.write_bytes(b"?" * SHARD_BYTES)
        assert cache.read_range("0.tar", 0, 2) == b"??"
        cache.drop("0.tar")
        assert not path.exists()
        cache.announce(names(0, 1, 2))
        wait_for(lambda: cached(folder) == names(1, 2))
        for _ in range(2):
            assert cache.read_range("0.tar", 0, 2) == content(data, "0.tar")[:2]
        assert store.streams["0.tar"] == 1, "it is not fetched again"
        assert store.ranges == {"0.tar": 2}
        cache.drop("0.tar")  # twice is no error


def test_dropping_spares_what_another_process_fetched_since(data, folder):
    with open_cache(data, folder) as cache, open_cache(data, folder) as second:
        bring(cache, names(0))
        cached_path(folder, "0.tar").unlink()
        bring(second, names(0))
        cache.drop("0.tar")
        assert cached(folder) == names(0)


def test_a_folder_deleted_while_running_is_made_again(data, folder, caplog):
    store = StreamStore(data)
    with open_cache(data, folder, store=store, pause_seconds=0.05) as cache:
        bring(cache, names(0))
        store.gate.clear()
        cache.announce(names(0, 1))
        wait_for(lambda: parts(folder))
        shutil.rmtree(folder)
        store.gate.set()
        for name in names(0, 1, 2):
            assert cache.read_range(name, 0, 9) == content(data, name)[:9]
        wait_for(lambda: cached(folder) == names(1))
        bring(cache, names(1, 2))
        assert cache.snapshot().num_failures == 1
    assert len(caplog.records) == 1


def test_a_download_of_a_deleted_folder_does_not_name_anothers_part(data, folder):
    stores = [StreamStore(data), StreamStore(data)]
    for store in stores:
        store.gate.clear()
    with (
        open_cache(data, folder, store=stores[0]) as cache,
        open_cache(data, folder, store=stores[1]) as second,
    ):
        cache.announce(names(0))
        wait_for(lambda: parts(folder))
        shutil.rmtree(folder)
        second.announce(names(0))
        wait_for(lambda: parts(folder))
        stores[0].gate.set()
        wait_for(lambda: cache.snapshot().num_failures)
        assert parts(folder)
        assert not cached(folder)
        stores[1].gate.set()
        wait_for(lambda: cached(folder) == names(0))
        assert cached_path(folder, "0.tar").read_bytes() == content(data, "0.tar")


def test_a_folder_that_cannot_be_made_again_costs_only_the_cache(data, folder, caplog):
    with open_cache(data, folder, pause_seconds=0.01) as cache:
        shutil.rmtree(folder)
        folder.write_text("in the way")
        cache.announce(names(0, 1))
        wait_for(lambda: cache.snapshot().num_failures > 2)
        assert cache.read_range("0.tar", 0, 9) == content(data, "0.tar")[:9]
        folder.unlink()
        wait_for(lambda: cached(folder) == names(0, 1))
    assert len(caplog.records) == 1
    assert "reads go to" in caplog.text


def test_a_full_disk_pauses_the_cache(data, folder, monkeypatch, caplog):
    write = Download.write
    is_full = True

    def write_or_fail(download, piece):
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(download, piece)

    monkeypatch.setattr(Download, "write", write_or_fail)
    store = StreamStore(data)
    with open_cache(data, folder, store=store, num_threads=1, pause_seconds=0.3) as cache:
        cache.announce(names(0, 1, 2))
        wait_for(lambda: cache.snapshot().num_failures)
        assert not parts(folder)
        for name in names(0, 1, 2):
            assert cache.read_range(name, 0, 9) == content(data, name)[:9]
        assert store.streams == {"0.tar": 1}, "it pauses"
        is_full = False
        wait_for(lambda: cached(folder) == names(0, 1, 2))
    assert len(caplog.records) == 1
    assert "the disk of the cache is full" in caplog.text


@contextlib.contextmanager
def small_disk(folder, num_bytes):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("only root can mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S607


def test_a_really_full_disk(tmp_path, folder, caplog):
    data = tmp_path / "data"
    make_set(data, num_bytes=300_000)
    store = StreamStore(data)
    with small_disk(folder, 700_000), open_cache(data, folder, 10**9, store=store) as cache:
        cache.announce(names(0, 1, 2, 3))
        wait_for(lambda: cache.snapshot().num_failures)
        wait_for(lambda: not parts(folder))
        for name in names(0, 1, 2, 3):
            assert cache.read_range(name, 299_990, 10) == content(data, name)[-10:]
        assert 1 <= len(cached(folder)) <= 2
        wait_for(lambda: "the disk of the cache is full" in caplog.text)  # said after it is counted


def test_a_store_that_fails_puts_off_that_shard_alone(data, folder, caplog):
    (data / "0.tar").unlink()
    store = StreamStore(data)
    with open_cache(data, folder, store=store, num_threads=1) as cache:
        cache.announce(names(0, 1))
        wait_for(lambda: cached(folder) == names(1))
        assert not parts(folder)
        with pytest.raises(StoreError, match="not_found") as caught:
            cache.read_range("0.tar", 0, 9)
        assert "0.tar" in caught.value.detail
        assert cache.snapshot().num_failures == 1
    assert "0.tar cannot be fetched" in caplog.text


@pytest.mark.parametrize("change", [-1, 1])
def test_an_object_of_another_size_is_not_kept(data, folder, change, monkeypatch):
    os.truncate(data / "0.tar", SHARD_BYTES + change)
    monkeypatch.setattr(cache_fetcher, "_RETRY_SECONDS", 0.01)
    with open_cache(data, folder) as cache:
        cache.announce(names(0))
        wait_for(lambda: cache.snapshot().num_failures > 2)
        assert not cached(folder)


def test_a_disk_error_of_the_store_is_not_taken_for_the_caches(data, folder):
    store = StreamStore(data)
    store.broken = "0.tar"
    with open_cache(data, folder, store=store, num_threads=1) as cache:
        cache.announce(names(0, 1))
        wait_for(lambda: cached(folder) == names(1))


def test_a_cached_file_that_cannot_be_read_is_dropped(data, folder, monkeypatch):
    with open_cache(data, folder) as cache:
        bring(cache, names(0))

        def fail(*_):
            raise OSError(errno.EIO, "bad sector")

        monkeypatch.setattr(cache._fetcher._held["0.tar"], "read_range", fail)
        assert cache.read_range("0.tar", 0, 9) == content(data, "0.tar")[:9]
        assert not cached(folder)


def test_an_evicted_shard_falls_back_to_the_store(data, folder):
    with open_cache(data, folder) as cache:
        bring(cache, names(0, 1))
        cache.announce(names(1))
        for name in names(0, 1):
            cached_path(folder, name).unlink()
            assert cache.read_range(name, 0, 9) == content(data, name)[:9]
        assert cache.snapshot().num_hits == 1, "an open file is read on"
    assert used_bytes(folder) == 0
