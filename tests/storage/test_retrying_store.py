"""Reading through real S3 and http stores from a server that goes wrong."""

import time

import pytest

from benchmarks.servers.object_server import ObjectServer
from grpo_stream.errors import StoreError
from grpo_stream.storage.retrying_store import RetryingStore, RetryRules, open_retrying
from grpo_stream.storage.store import LocalStore, open_store
from grpo_stream.stream.sources import ShardSource
from tests.shards.support import make_sample, write_set
from tests.storage.fault_rules import RULES, rules_for

pytest.importorskip("obstore")

MIB = 2**20
DATA = bytes(range(256)) * 400
TRANSIENT = {
    "slow_down": "unavailable",
    "internal": "unavailable",
    "too_many": "unavailable",
    "reset": "broken_off",
    "truncated": "broken_off",
    "stall": "timed_out",
    "silent": "timed_out",
}
LASTING = {
    "gone": "not_found",
    "denied": "forbidden",
    "unauthorized": "forbidden",
    "expired": "forbidden",
    "not_implemented": "unreadable",
}


@pytest.fixture
def server(server):
    server.objects["bucket/set/x"] = DATA
    return server


@pytest.fixture(params=["s3", "http"])
def url(server, request):
    return "s3://bucket/set" if request.param == "s3" else f"{server.url}/bucket/set"


def read_range(store):
    return store.read_range("x", 1000, 50_000)


def read(store):
    return store.read("x")


def read_stream(store):
    with store.open_stream("x") as stream:
        return stream.read()


WAYS = [(read_range, DATA[1000:51_000]), (read, DATA), (read_stream, DATA)]


@pytest.mark.parametrize(("way", "expected"), WAYS)
@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_passes_is_got_over(server, url, fault, way, expected):
    rules, certain = rules_for([fault])
    store = open_retrying(url, rules)
    server.faults = [fault] * (2 if certain else 1)
    num_faults = len(server.faults)
    assert way(store) == expected
    assert server.faults == []
    counts = store.counters.snapshot()
    assert counts.num_requests - 1 == counts.num_retries >= num_faults
    assert counts.num_bytes == len(expected)
    if certain:
        assert counts.num_retries == num_faults
        assert getattr(counts, f"num_{TRANSIENT[fault]}") == num_faults
    else:
        assert getattr(counts, f"num_{TRANSIENT[fault]}") >= num_faults
    assert counts.num_failures == 0


@pytest.mark.parametrize(("way", "expected"), WAYS)
@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_told_at_once(server, url, fault, way, expected):
    store = open_retrying(url, RULES)
    server.always = {"x": fault}
    with pytest.raises(StoreError) as caught:
        way(store)
    assert caught.value.cause == LASTING[fault]
    assert f"{url}: x: " in caught.value.detail
    assert len(server.gets) == 1
    assert store.counters.snapshot().num_failures == 1


def test_refused_credentials_name_the_variables(server):
    server.always = {"x": "expired"}
    with pytest.raises(StoreError, match=r"forbidden: .*AWS_SESSION_TOKEN.*AWS_REGION"):
        open_retrying("s3://bucket/set", RULES).read("x")


RANGES = [(0, 10), (10, 20), (5_000, 1), (90_000, 500)]  # the first two are one request
CONTENT = [DATA[offset : offset + num_bytes] for offset, num_bytes in RANGES]


class TestSeveralRanges:
    def test_neighbours_come_by_one_request(self, server, url):
        store = open_retrying(url, RULES)
        assert store.read_ranges("x", RANGES) == CONTENT
        assert sorted(wanted for _, wanted in server.gets) == [
            "bytes=0-29",
            "bytes=5000-5000",
            "bytes=90000-90499",
        ]
        counts = store.counters.snapshot()
        assert (counts.num_requests, counts.num_retries, counts.num_bytes) == (3, 0, 531)

    @pytest.mark.parametrize("fault", ["slow_down", "reset", "truncated", "short", "stall"])
    @pytest.mark.parametrize("num_faults", [1, 5])
    def test_what_passes_is_got_over_one_by_one(self, server, url, fault, num_faults):
        rules, certain = rules_for([fault])
        store = open_retrying(url, rules)
        server.faults = [fault] * (num_faults if certain else 1)
        assert store.read_ranges("x", RANGES) == CONTENT
        counts = store.counters.snapshot()
        assert server.faults == []
        assert counts.num_retries >= 1
        assert counts.num_failures == 0
        assert counts.num_bytes == 531

    def test_what_lasts_is_told_at_once(self, server, url):
        server.always = {"x": "denied"}
        store = open_retrying(url, RULES)
        with pytest.raises(StoreError, match="forbidden"):
            store.read_ranges("x", RANGES)
        assert len(server.gets) <= 3
        assert store.counters.snapshot().num_failures == 1

    @pytest.mark.parametrize("offset", [len(DATA) - 10, len(DATA) + 10])
    def test_beyond_the_end(self, url, offset):
        for ranges in ([(0, 10), (offset, 20)], [(offset - 30, 30), (offset, 20)]):
            with pytest.raises(StoreError, match="short_read: "):
                open_retrying(url, RULES).read_ranges("x", ranges)


def test_a_burst_outlasts_the_deadline(server, url):
    rules = RetryRules(0.01, 0.02, retry_deadline_seconds=0.4, stall_timeout_seconds=0.1)
    store = open_retrying(url, rules)
    server.always = {"x": "slow_down"}
    start = time.monotonic()
    with pytest.raises(StoreError, match=r"unavailable: .*503.*given up after \d+ tries in 0\.\d"):
        read_range(store)
    assert time.monotonic() - start < 2
    assert len(server.gets) == store.counters.snapshot().num_requests > 5


def test_a_server_that_does_not_know_ranges(server, url):
    server.always = {"x": "no_range"}
    store = open_retrying(url, RULES)
    with pytest.raises(StoreError, match=r"range_ignored: .*--cache_dir"):
        read_range(store)
    assert len(server.gets) == 2  # it may have been a cache on the way
    assert store.read("x") == DATA


def test_a_range_beyond_the_end_is_no_broken_connection(server, url):
    store = open_retrying(url, RULES)
    for offset in (len(DATA) - 10, len(DATA) + 10):
        server.requests.clear()
        with pytest.raises(StoreError, match="short_read: "):
            store.read_range("x", offset, 20)
        assert len(server.gets) == 1


def test_a_shorter_range_than_asked_for_is_read_again(server, url):
    store = open_retrying(url, RULES)
    server.faults = ["short"]
    assert read_range(store) == DATA[1000:51_000]


def test_a_large_object_goes_on_where_it_broke_off(server, url):
    data = server.objects["bucket/set/x"] = bytes(range(256)) * (12 * MIB // 256)
    store = open_retrying(url, RULES)
    # The second break is followed by a refusal: that one is waited for.
    server.faults = ["truncated", "truncated", "slow_down", "truncated"]
    assert store.read("x") == data
    offsets = [int(wanted[6:].partition("-")[0] or 0) for _, wanted in server.gets]
    assert offsets[0] == 0
    assert 5 * MIB < offsets[1] <= 6 * MIB
    assert offsets[2] == offsets[3] > offsets[1]
    assert offsets[4] > offsets[3]
    assert store.counters.snapshot().num_unavailable == 1


def test_a_stream_without_ranges_breaks_as_something_that_may_pass(server, url):
    server.objects["bucket/set/x"] = bytes(4 * MIB)
    server.faults = ["truncated", "no_range"]
    with (
        open_retrying(url, RULES).open_stream("x") as stream,
        pytest.raises(StoreError, match="broken_off"),
    ):
        stream.read()
    server.faults = ["truncated"] * 2
    server.always = {}
    assert len(open_retrying(url, RULES).read("x")) == 4 * MIB


def test_nobody_there(unused_port):
    rules = RetryRules(0.01, 0.02, retry_deadline_seconds=0.2, stall_timeout_seconds=0.1)
    store = open_retrying(f"http://127.0.0.1:{unused_port}/set", rules)
    with pytest.raises(StoreError, match=r"unavailable: .*given up"):
        store.read("x")


@pytest.fixture
def unused_port():
    with ObjectServer() as server:
        return server.port


def test_the_builder_keeps_obstores_own_tries(server, url):
    server.faults = ["slow_down"] * 2
    assert open_store(url).read("x") == DATA


def test_a_data_set_through_all_that(server, url, tmp_path):
    samples = [make_sample(f"{i:06d}", f"Click {i}") for i in range(20)]
    write_set(tmp_path, samples, per_shard=5)
    server.add_folder(tmp_path, "bucket/set")
    faults = ["slow_down", "", "reset", "slow_down", "slow_down", "truncated", "", "internal"]
    server.faults = faults * 6
    store = open_retrying(url, RULES)
    source = ShardSource(store)
    local = ShardSource(str(tmp_path))
    assert source.digest == local.digest
    found = [source.read(shard, i) for shard in range(4) for i in range(5)]
    assert found == samples == [local.read(shard, i) for shard in range(4) for i in range(5)]
    counts = store.counters.snapshot()
    # One manifest, four indexes, twenty samples: each came once, whatever went wrong between.
    assert counts.num_requests - counts.num_retries == 25
    assert counts.num_requests == len(server.gets)
    assert counts.num_bytes == sum(
        path.stat().st_size for path in tmp_path.glob("*") if path.suffix in (".json", ".index")
    ) + sum(s.num_bytes - 1024 for s in local.manifest.shards)


def test_one_missing_shard_is_named(server, url, tmp_path):
    write_set(tmp_path, [make_sample(f"{i:06d}") for i in range(4)])
    server.add_folder(tmp_path, "bucket/set")
    del server.objects["bucket/set/shard-000002.tar"]
    source = ShardSource(open_retrying(url, RULES))
    assert source.read(0, 1).key == "000001"
    with pytest.raises(StoreError, match=r"not_found: .*shard-000002\.tar"):
        source.read(1, 0)


def test_a_folder_is_read_as_it_is(tmp_path):
    store = open_retrying(tmp_path)
    assert isinstance(store, RetryingStore)
    store.write("sub/x", DATA)
    assert store.url == str(tmp_path)
    assert (read_stream(store.__class__(LocalStore(tmp_path / "sub")))) == DATA
    assert store.read_range("sub/x", 5, 10) == DATA[5:15]
    assert (store.size("sub/x"), store.exists("sub/x"), store.exists("y")) == (
        len(DATA),
        True,
        False,
    )
    (tmp_path / "f").write_bytes(b"12")
    store.put_file("g", tmp_path / "f")
    assert store.list_names() == ["f", "g"]
    assert store.sizes() == {"f": 2, "g": 2}
    assert store.walk() == ["f", "g", "sub/x"]
    store.delete("g")
    assert not store.exists("g")
    assert store.counters.snapshot().num_bytes == 10
