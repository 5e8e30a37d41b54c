"""A data set read over real HTTP from this machine, by ranges, through ``open_store``."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from grpo_stream.errors import StoreError
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.tar import read_sample
from grpo_stream.storage.store import open_store
from tests.shards.support import make_sample, write_set

SAMPLES = [make_sample(f"{i:06d}", f"Click {i}") for i in range(5)]


@pytest.fixture
def served(tmp_path):
    """The URL of a folder and the list of ranges that were asked for."""
    ranges = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = tmp_path / self.path.removeprefix("/set/")
            if not path.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = path.read_bytes()
            total = len(data)
            if wanted := re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                first, last = int(wanted[1]), min(int(wanted[2]), total - 1)
                ranges.append((path.name, first, last + 1))
                data = data[first : last + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Last-Modified", "Thu, 01 Jan 1970 00:00:00 GMT")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815 - the base class's spelling

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/set", ranges
        server.shutdown()
        thread.join()


def test_samples_by_range(served, tmp_path):
    pytest.importorskip("obstore")
    url, ranges = served
    write_set(tmp_path, SAMPLES)
    store = open_store(url)
    manifest = Manifest.load(store)
    found = []
    for info in manifest.shards:
        index = ShardIndex.load(store, info)
        found += [read_sample(store, info.name, index[i]) for i in range(len(index))]
    assert found == SAMPLES
    entry = ShardIndex.load(store, manifest.shards[0])[1]
    assert ranges[1] == (manifest.shards[0].name, entry.offset, entry.offset + entry.num_bytes)
    assert len(ranges) == len(SAMPLES)
    assert not store.exists("absent.tar")
    with pytest.raises(StoreError, match=r"short_read: .*shard-000000\.tar"):
        store.read_range("shard-000000.tar", manifest.shards[0].num_bytes - 10, 20)
