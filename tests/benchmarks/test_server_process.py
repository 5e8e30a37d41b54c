import os
import time

import pytest

from benchmarks.servers.server_process import serve
from grpo_stream.errors import StoreError
from grpo_stream.storage.store import open_store

pytest.importorskip("obstore")

DELAY_MS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    (folder / "shard.tar").write_bytes(os.urandom(5000))
    (folder / "below").mkdir()
    (folder / "below/empty").touch()
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with serve(DELAY_MS, str(folder)) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


def test_the_bucket_serves_the_folder_and_tells_of_it(server, folder):
    store, local = open_store(server.url), open_store(folder)
    before = server.usage()
    assert store.read_range("shard.tar", 512, 700) == local.read_range("shard.tar", 512, 700)
    used = server.usage().since(before)
    assert (used.num_requests, used.num_sent_bytes, used.num_received_bytes) == (1, 700, 0)
    assert used.cpu_seconds > 0
    assert store.read("shard.tar") == local.read("shard.tar")
    assert store.read("below/empty") == b""
    assert {"shard.tar", "below/empty"} <= set(store.walk())
    assert store.size("shard.tar") == 5000


def test_the_bucket_is_one_to_its_client(server):
    store = open_store(f"{server.url}/folder")
    store.write("a & b.json", b"0123456789")
    store.write("below/c", b"")
    assert store.read("a & b.json") == b"0123456789"
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
    assert used.num_requests == (1 if num_bytes == 100 else 2 + 3)
    assert num_bytes <= used.num_received_bytes < num_bytes + 1000  # the list of the parts
    assert store.size("shard.tar") == num_bytes


def test_answers_are_late(server):
    store = open_store(server.url)
    before, start = server.usage(), time.perf_counter()
    assert not store.exists("nothing")
    assert time.perf_counter() - start > DELAY_MS / 1000
    assert server.usage().since(before).num_requests == 1
