import os
import threading
import time
from pathlib import Path

import pytest

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.shards.cache import CacheCounts
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
    used_bytes,
    wait_for,
)


def test_announced_shards_arrive_once_and_are_read_from_the_cache(data, folder):
    store = StreamStore(data)
    with open_cache(data, folder, store=store) as cache:
        bring(cache, names(0, 1))
        for name in names(0, 1):
            assert cache.read_range(name, 17, 100) == content(data, name)[17:117]
        cache.announce(names(1))
        assert cache.read_range("0.tar", 0, SHARD_BYTES) == content(data, "0.tar")
        assert not store.ranges
        assert store.streams == {"0.tar": 1, "1.tar": 1}
        assert cache.snapshot() == CacheCounts(
            num_hits=3, num_downloads=2, num_bytes_downloaded=2 * SHARD_BYTES
        )


def test_reads_do_not_wait_for_a_shard_that_arrives(data, folder):
    store = StreamStore(data)
    store.gate.clear()
    with open_cache(data, folder, store=store) as cache:
        cache.announce(names(0))
        wait_for(lambda: parts(folder))
        assert cache.read_range("0.tar", 5, 7) == content(data, "0.tar")[5:12]
        assert store.ranges == {"0.tar": 1}
        store.gate.set()
        wait_for(lambda: cached(folder))
        wait_for(lambda: cache.read_range("0.tar", 5, 7) and cache.snapshot().num_hits)
    assert not parts(folder)


def test_what_is_not_announced_is_read_by_range(data, folder):
    store = StreamStore(data)
    with open_cache(data, folder, store=store) as cache:
        cache.read_range("3.tar", 0, 10)
        assert cache.snapshot().num_misses == 1
        assert not store.streams


def test_all_else_is_the_wrapped_stores_own(data, folder):
    store = StreamStore(data)
    with open_cache(data, folder, store=store) as cache:
        assert cache.url == str(data)
        cache.write("note", b"abc")
        assert cache.read("note") == b"abc"
        assert cache.read_range("note", 1, 2) == b"bc"
        with cache.open_stream("note") as stream:
            assert stream.read(10) == b"abc"
        cache.put_file("copy", data / "note")
        assert cache.exists("copy")
        assert cache.size("copy") == 3
        cache.delete("copy")
        assert cache.list_names() == cache.walk() == sorted(cache.sizes())
        assert cache.snapshot().num_misses == 0, "only shards are counted"


def test_a_range_beyond_the_end_is_the_stores_own_error(data, folder):
    with open_cache(data, folder) as cache:
        bring(cache, names(0))
        with pytest.raises(StoreError, match="short_read"):
            cache.read_range("0.tar", SHARD_BYTES - 1, 2)
        assert cached(folder) == names(0)


def test_downloads_follow_the_order_of_need_in_bounded_pieces(data, folder):
    store = StreamStore(data, piece_bytes=300)
    order: list[str] = []
    store.on_open = order.append
    with open_cache(data, folder, store=store, num_threads=1) as cache:
        bring(cache, names(2, 0, 3, 1))
    assert order == names(2, 0, 3, 1)
    assert store.most_asked == 2**20


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_download_at_the_same_time(data, folder, num_threads):
    store = StreamStore(data)
    store.gate.clear()
    with open_cache(data, folder, store=store, num_threads=num_threads) as cache:
        cache.announce(names(0, 1, 2, 3))
        wait_for(lambda: len(parts(folder)) == num_threads)
        time.sleep(0.05)
        assert len(store.streams) == num_threads
        store.gate.set()


def test_a_second_cache_finds_what_is_there(data, folder):
    with open_cache(data, folder) as cache:
        bring(cache, names(0, 1))
    store = StreamStore(data)
    with open_cache(data, folder, store=store) as cache:
        cache.announce(names(0, 1))
        assert cache.read_range("0.tar", 0, 9) == content(data, "0.tar")[:9]
        assert not store.ranges
        assert not store.streams


def test_data_sets_of_other_content_share_the_folder_and_the_bound(tmp_path, data, folder):
    other = tmp_path / "other"
    make_set(other, num_bytes=SHARD_BYTES - 1)
    with (
        open_cache(data, folder, 3 * SHARD_BYTES) as cache,
        open_cache(other, folder, 3 * SHARD_BYTES) as second,
    ):
        bring(cache, names(0, 1))
        bring(second, names(0))
        assert len(cached(folder)) == 3
        assert second.read_range("0.tar", 0, 9) == content(other, "0.tar")[:9]
        cache.announce([])
        second.announce(names(0, 1, 2))
        wait_for(lambda: second.snapshot().num_downloads == 3)
        assert used_bytes(folder) <= 3 * SHARD_BYTES
        assert second.snapshot().num_evictions == 2


def test_least_recently_used_is_evicted_first(data, folder):
    with open_cache(data, folder, 3 * SHARD_BYTES, num_threads=1) as cache:
        bring(cache, names(0, 1, 2))
        for age, name in enumerate(names(1, 2, 0)):
            path = next(folder.glob(f"*/{name}"))
            os.utime(path, (time.time() - 100 + age,) * 2)
        cache.announce([])
        cache.read_range("1.tar", 0, 1)  # the oldest becomes the youngest
        bring(cache, names(3))
        assert cached(folder) == names(0, 1, 3)
        assert cache.snapshot().num_evictions == 1


def test_what_is_announced_stays_and_what_does_not_fit_is_read_by_range(data, folder):
    store = StreamStore(data)
    with open_cache(data, folder, 2 * SHARD_BYTES + 10, store=store) as cache:
        bring(cache, names(0, 1))
        cache.announce(names(0, 1, 2, 3))
        wait_for(lambda: cache.read_range("2.tar", 0, 9) and cache.snapshot().num_misses_full)
        for _ in range(3):
            for name in names(0, 1, 2, 3):
                assert cache.read_range(name, 1, 9) == content(data, name)[1:10]
        assert cached(folder) == names(0, 1)
        counts = cache.snapshot()
        assert (counts.num_downloads, counts.num_evictions, counts.num_hits) == (2, 0, 6)
        assert counts.num_misses >= 7
        cache.announce(names(2, 3))
        wait_for(lambda: cached(folder) == names(2, 3))
        assert cache.snapshot().num_evictions == 2


def test_what_another_cache_has_announced_is_not_evicted(data, folder):
    with (
        open_cache(data, folder, 2 * SHARD_BYTES) as cache,
        open_cache(data, folder, 2 * SHARD_BYTES) as second,
    ):
        bring(cache, names(0, 1))
        second.announce(names(2))
        wait_for(lambda: second.read_range("2.tar", 0, 9) and second.snapshot().num_misses_full)
        assert cached(folder) == names(0, 1)
        cache.close()
        wait_for(lambda: "2.tar" in cached(folder))


def test_nothing_is_evicted_where_that_would_not_make_enough_room(tmp_path, folder):
    data = tmp_path / "data"
    make_set(data, num_bytes=[1000, 1000, 2500])
    with open_cache(data, folder, 3000) as cache:
        bring(cache, names(0, 1))
        cache.announce(names(0, 2))
        wait_for(lambda: cache.read_range("2.tar", 0, 9) and cache.snapshot().num_misses_full)
        assert cached(folder) == names(0, 1)


def test_nothing_is_evicted_where_another_process_holds_the_rest(tmp_path, folder):
    data = tmp_path / "data"
    make_set(data, num_bytes=[1000, 1000, 2500])
    with open_cache(data, folder, 3000) as cache, open_cache(data, folder, 3000) as second:
        bring(cache, names(0, 1))
        cache.announce(names(1))
        second.announce(names(2))
        wait_for(lambda: second.read_range("2.tar", 0, 9) and second.snapshot().num_misses_full)
        assert cached(folder) == names(0, 1)


def test_room_is_taken_before_the_first_byte_comes(data, folder):
    store = StreamStore(data)
    store.gate.clear()
    with open_cache(data, folder, 3 * SHARD_BYTES // 2, store=store) as cache:
        cache.announce(names(0, 1))
        wait_for(lambda: cache.read_range("1.tar", 0, 9) and cache.snapshot().num_misses_full)
        assert used_bytes(folder) == SHARD_BYTES
        wait_for(lambda: store.streams)  # the room is taken before
        assert len(store.streams) == 1
        store.gate.set()


def test_files_of_others_are_neither_counted_nor_touched(data, folder):
    (folder / "thesis").mkdir(parents=True)
    (folder / "thesis" / "chapter.tex").write_bytes(b"x" * 5000)
    (folder / "notes.part").write_bytes(b"x")
    with open_cache(data, folder, SHARD_BYTES) as cache:
        for name in names(0, 1, 2):
            bring(cache, [name])
    assert (folder / "thesis" / "chapter.tex").stat().st_size == 5000
    assert (folder / "notes.part").exists()


@pytest.mark.parametrize("name", ["..tar", ".x.part", "a/b.tar", "a%2Fb.tar", "ü ö.tar"])
def test_any_name_is_a_file_of_its_own(tmp_path, folder, name):
    data = tmp_path / "data"
    make_set(data)
    manifest = (data / "manifest.json").read_text()
    (data / "manifest.json").write_text(manifest.replace("0.tar", name).replace('"digest"', '"_"'))
    (data / name).parent.mkdir(exist_ok=True)
    (data / "0.tar").rename(data / name)
    with open_cache(data, folder) as cache:
        cache.announce([name])
        wait_for(lambda: cache.snapshot().num_downloads == 1)
        wait_for(lambda: cache.read_range(name, 0, 9) and cache.snapshot().num_hits)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 2  # the lock and it


def test_unknown_names_are_ignored(data, folder):
    with open_cache(data, folder) as cache:
        bring(cache, names(0))
        cache.announce(["manifest.json", "9.tar", "0.tar", "0.tar"])
        assert list(cache._fetcher._wanted) == names(0)


def test_close_ends_at_once_and_leaves_no_part(data, folder):
    store = StreamStore(data, piece_bytes=1)
    cache = open_cache(data, folder, store=store)
    store.gate.clear()
    cache.announce(names(0, 1))
    wait_for(lambda: len(parts(folder)) == 2)
    threading.Timer(0.1, store.gate.set).start()
    start = time.monotonic()
    cache.close()
    assert time.monotonic() - start < 1.5
    assert not any(thread.is_alive() for thread in cache._fetcher._threads)
    assert not parts(folder)
    assert not cached(folder)
    assert cache.read_range("0.tar", 0, 9) == content(data, "0.tar")[:9]
    cache.close()


def test_close_does_not_wait_for_a_stalled_request(data, folder):
    store = StreamStore(data)
    store.gate.clear()
    cache = open_cache(data, folder, store=store)
    cache.announce(names(0))
    wait_for(lambda: parts(folder))
    start = time.monotonic()
    cache.close()
    assert time.monotonic() - start < 2
    store.gate.set()
    wait_for(lambda: not parts(folder))


def num_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left_open(data, folder):
    before = num_descriptors()
    with open_cache(data, folder) as cache:
        for _ in range(3):
            bring(cache, names(0, 1, 2, 3))
            for name in names(0, 1, 2, 3):
                cache.read_range(name, 0, 9)
            cache.announce([])
            cache.read_range("0.tar", 0, 9)
    assert num_descriptors() == before


def test_a_thread_goes_on_reading_what_another_lets_go(data, folder):
    expected = {name: content(data, name) for name in names(0, 1, 2, 3)}
    wrong: list[str] = []
    stop = threading.Event()

    def read(cache, number):
        while not stop.is_set():
            wrong.extend(
                name
                for name in names(*range(4))
                if cache.read_range(name, number, 500) != expected[name][number : number + 500]
            )

    with open_cache(data, folder, 2 * SHARD_BYTES) as cache:
        threads = [threading.Thread(target=read, args=(cache, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(40):
            cache.announce(names(turn % 4, (turn + 1) % 4))
            time.sleep(0.005)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert cache.snapshot().num_failures == 0


def test_a_bound_below_the_largest_shard_is_refused(tmp_path, folder):
    data = tmp_path / "data"
    make_set(data, num_bytes=[10, 3000, 20])
    with pytest.raises(ConfigError, match="3000 or more") as caught:
        open_cache(data, folder, 2999)
    assert caught.value.field == "cache_bytes"
    open_cache(data, folder, 3000).close()


def test_a_folder_that_cannot_be_written_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="can be written") as caught:
        open_cache(data, tmp_path / "file")
    assert caught.value.field == "cache_dir"


def test_a_forked_child_is_told(data, folder):
    with open_cache(data, folder) as cache:
        cache._pid += 1
        with pytest.raises(StoreError, match="forked"):
            cache.read_range("0.tar", 0, 9)
        with pytest.raises(StoreError, match="forked"):
            cache.announce(names(0))
