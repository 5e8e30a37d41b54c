import json
import os

import pytest

from benchmarks.__main__ import main
from benchmarks.servers.s3_server import serve
from grpo_stream.errors import StoreError
from grpo_stream.storage.store import open_store

pytest.importorskip("obstore")


def test_prints_figures_of_both_builds(capsys, tmp_path):
    words = "upload --num-samples 30 --samples-per-shard 10 --latency-ms 10 --rounds 1"
    words += " --check header --workers 1 --json"
    assert main([*words.split(), "--folder", str(tmp_path)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["builds"]) == ["header, 1"]
    found = figures["builds"]["header, 1"]
    # Three files and a result a shard, and what says that it is one data set.
    assert found["requests"] > 3 * 4
    assert found["bucket"] > found["local"] > 0
    assert found["last_shard"] > 3 * 0.010
    assert found["ratio"] == pytest.approx(
        found["bucket"] / (found["local"] + found["last_shard"]), rel=0.05
    )
    assert 0 < found["apart"] < found["ratio"]
    assert figures["settings"]["num_samples"] == "30"
    assert not list(tmp_path.iterdir())


def test_table(capsys, tmp_path):
    words = "upload --num-samples 4 --latency-ms 0 --rounds 1 --check header decode --workers 1"
    assert main([*words.split(), "--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == ["header, 1", "decode, 1"]


@pytest.fixture(scope="module")
def server():
    with serve(0) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


def test_the_bucket_is_one_to_its_client(server):
    store = open_store(f"{server.url}/folder")
    store.write("a & b.json", b"0123456789")
    store.write("below/c", b"")
    assert store.read("a & b.json") == b"0123456789"
    assert store.read_range("a & b.json", 2, 3) == b"234"
    assert store.open_stream("a & b.json").read() == b"0123456789"
    assert store.size("a & b.json") == 10
    assert store.list_names() == ["a & b.json"]
    assert store.walk() == ["a & b.json", "below/c"]
    assert open_store(f"{server.url}/fold").walk() == []
    store.delete("a & b.json")
    store.delete("a & b.json")
    assert not store.exists("a & b.json")
    with pytest.raises(StoreError, match="not_found"):
        store.read("a & b.json")


@pytest.mark.parametrize("num_bytes", [100, 20 * 2**20])
def test_large_files_come_in_parts_and_leave_their_size(server, tmp_path, num_bytes):
    path = tmp_path / "shard.tar"
    path.write_bytes(os.urandom(num_bytes))
    store = open_store(f"{server.url}/parts")
    before = server.usage()
    store.put_file("shard.tar", path)
    used = server.usage().since(before)
    assert used.num_bytes == num_bytes
    assert used.num_requests == (1 if num_bytes == 100 else 2 + 3)
    assert used.cpu_seconds > 0
    assert store.size("shard.tar") == num_bytes


def test_answers_are_late(server):
    with serve(60) as slow:
        assert slow.address != server.address
        before = slow.usage()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", slow.environment["AWS_ENDPOINT_URL"])
            store = open_store(slow.url)
        assert slow.usage().since(before).num_requests == 0
        from time import perf_counter

        start = perf_counter()
        store.exists("nothing")
        assert perf_counter() - start > 0.06
        assert slow.usage().since(before).num_requests == 1
