"""A data set read over real HTTP from this machine, by ranges, through ``open_store``."""

import pytest

from grpo_stream.errors import StoreError
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.tar import read_sample
from grpo_stream.storage.store import open_store
from tests.shards.support import make_sample, write_set

SAMPLES = [make_sample(f"{i:06d}", f"Click {i}") for i in range(5)]


def test_samples_by_range(server, tmp_path):
    write_set(tmp_path, SAMPLES)
    server.add_folder(tmp_path, "set")
    store = open_store(f"{server.url}/set")
    manifest = Manifest.load(store)
    found = []
    for info in manifest.shards:
        index = ShardIndex.load(store, info)
        found += [read_sample(store, info.name, index[i]) for i in range(len(index))]
    assert found == SAMPLES
    entry = ShardIndex.load(store, manifest.shards[0])[1]
    ranges = [one for one in server.gets if one[1]]
    wanted = f"bytes={entry.offset}-{entry.offset + entry.num_bytes - 1}"
    assert ranges[1] == (f"set/{manifest.shards[0].name}", wanted)
    assert len(ranges) == len(SAMPLES)
    assert not store.exists("absent.tar")
    with pytest.raises(StoreError, match=r"short_read: .*shard-000000\.tar"):
        store.read_range("shard-000000.tar", manifest.shards[0].num_bytes - 10, 20)
