import json
import random
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shards.cache_support import (
    SHARD_BYTES,
    StreamStore,
    cached,
    make_set,
    names,
    open_cache,
    parts,
    start_process,
    used_bytes,
    wait_for,
)

_NUM_SHARDS = 12

# A rank: walks through shards in an order of its own and prints what it counted.
_RANK = """
import json, random, sys
from dataclasses import asdict
from pathlib import Path
from tests.shards.cache_support import StreamStore, names, open_cache
data, folder, max_bytes, seed, num_shards, num_rounds = Path(sys.argv[1]), *sys.argv[2:]
store = StreamStore(data, piece_bytes=100)
chance = random.Random(int(seed))
wrong = 0
with open_cache(data, folder, int(max_bytes), store=store) as cache:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(num_rounds)):
        order = names(*chance.sample(range(int(num_shards)), int(num_shards)))
        for place, name in enumerate(order):
            cache.announce(order[place : place + 3])
            for _ in range(5):
                start = chance.randrange(900)
                expected = (data / name).read_bytes()[start : start + 100]
                wrong += cache.read_range(name, start, 100) != expected
    if int(num_rounds) == 1:  # stay until all is here
        import time
        end = time.monotonic() + 10
        cache.announce(order)
        while len(cache._fetcher._held) < int(num_shards) and time.monotonic() < end:
            time.sleep(0.01)
    counts = asdict(cache.snapshot())
    print(json.dumps(counts | {"wrong": wrong, "streams": store.streams}), flush=True)
"""


def run_ranks(data, folder, max_bytes, num_rounds, look=lambda: None):
    """What two processes counted that started together; ``look`` is called while they run."""
    ranks = [
        start_process(_RANK, data, folder, max_bytes, seed, _NUM_SHARDS, num_rounds)
        for seed in range(2)
    ]
    try:
        for rank in ranks:
            assert rank.stdout.readline() == "ready\n"
        for rank in ranks:
            rank.stdin.write("go\n" * 10)
            rank.stdin.flush()
        while any(rank.poll() is None for rank in ranks):
            look()
        return [json.loads(rank.stdout.readline()) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
            rank.stdin.close()
            rank.stdout.close()


def test_two_processes_fetch_each_shard_once(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "cache"
    make_set(data, _NUM_SHARDS)
    counts = run_ranks(data, folder, 10**6, num_rounds=1)
    fetched = sorted(name for count in counts for name in count["streams"])
    assert fetched == sorted(names(*range(_NUM_SHARDS)))
    assert sum(count["num_downloads"] for count in counts) == _NUM_SHARDS
    assert [count["wrong"] + count["num_failures"] for count in counts] == [0, 0]
    assert len(cached(folder)) == _NUM_SHARDS


def test_two_processes_stay_within_the_bound(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "cache"
    make_set(data, _NUM_SHARDS)
    bound = 5 * SHARD_BYTES + 17
    seen = []
    counts = run_ranks(data, folder, bound, 20, lambda: seen.append(used_bytes(folder)))
    assert 0 < max(seen) <= bound
    assert [count["wrong"] + count["num_failures"] for count in counts] == [0, 0]
    assert sum(count["num_evictions"] for count in counts) > 0
    assert sum(count["num_hits"] for count in counts) > 0
    assert not parts(folder)


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=6),
    spare=st.integers(0, 3000),
    steps=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_the_bound_holds_at_any_moment(tmp_path_factory, sizes, spare, steps, seed):
    tmp_path = tmp_path_factory.mktemp("bound")
    data, folder = tmp_path / "data", tmp_path / "cache"
    make_set(data, num_bytes=sizes)
    bound = max(sizes) + spare
    chance = random.Random(seed)
    store = StreamStore(data, piece_bytes=500)
    over = []
    # While room is reserved and files are half full.
    store.on_open = lambda _: over.append(used_bytes(folder) > bound)
    with (
        open_cache(data, folder, bound, store=store) as cache,
        open_cache(data, folder, bound, store=store) as second,
    ):
        for step in steps:
            wanted = names(*(number for number in step if number < len(sizes)))
            one = chance.choice((cache, second))
            one.announce(wanted)
            for name in wanted:
                size = len((data / name).read_bytes())
                start = chance.randrange(size)
                expected = (data / name).read_bytes()[start:]
                assert one.read_range(name, start, size - start) == expected
            over.append(used_bytes(folder) > bound)
    assert not any(over)
    assert cache.snapshot().num_failures == second.snapshot().num_failures == 0


def test_threads_of_many_caches_fetch_each_shard_once(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "cache"
    make_set(data, _NUM_SHARDS)
    stores = [StreamStore(data) for _ in range(4)]
    caches = [open_cache(data, folder, store=store) for store in stores]
    start = threading.Barrier(4)

    def announce(cache, number):
        start.wait()
        cache.announce(names(*((place + number) % _NUM_SHARDS for place in range(_NUM_SHARDS))))

    threads = [
        threading.Thread(target=announce, args=(cache, number))
        for number, cache in enumerate(caches)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for cache in caches:
        wait_for(lambda cache=cache: len(cache._fetcher._held) == _NUM_SHARDS)
        cache.close()
    fetched = sorted(name for store in stores for name in store.streams.elements())
    assert fetched == sorted(names(*range(_NUM_SHARDS)))
