import io
import json

import pytest

from grpo_stream.errors import ShardFormatError
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import LocalStore
from shard_builder.datasets.index_tars import index_tars
from shard_builder.datasets.read_json_members import as_sample, iter_metas, read_meta, skip
from tests.shards.support import image_bytes, make_sample, tar_of, write_set


class Forwards(io.RawIOBase):
    """A stream that cannot seek, as a bucket's."""

    def __init__(self, data):
        self.rest = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.rest.readinto(buffer)


class Bucket(LocalStore):
    def open_stream(self, name):
        return io.BufferedReader(Forwards(self.read(name)))


@pytest.mark.parametrize("kind", [LocalStore, Bucket])
def test_every_json_in_order_whether_or_not_the_store_can_seek(tmp_path, kind):
    samples = [make_sample(f"{number:06d}", f"prompt {number}") for number in range(5)]
    manifest = write_set(tmp_path, samples, per_shard=3)
    store = kind(tmp_path)
    found = []
    for info in manifest.shards:
        index = ShardIndex.load(store, info)
        metas = list(iter_metas(store, info, index))
        assert metas == [read_meta(store, info.name, index[n]) for n in range(len(index))]
        found += metas
    assert found == [sample.meta for sample in samples]
    assert as_sample(found[3]).prompt == "prompt 3"


def test_sides_that_others_leave_out_come_from_the_index(tmp_path):
    meta = json.dumps({"prompt": "p", "solution": [1, 2]}).encode()
    members = [("k.json", meta), ("k.png", image_bytes((8, 6)))]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    index_tars(str(tmp_path), workers=1, overwrite=False)
    store = LocalStore(tmp_path)
    (shard,) = Manifest.load(store).shards
    (found,) = iter_metas(store, shard, ShardIndex.load(store, shard))
    assert as_sample(found).size == as_sample(found).original_size == (8, 6)


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"prompt": ""}', b"\xff"])
def test_a_damaged_json_is_named(tmp_path, text):
    manifest = write_set(tmp_path, [make_sample("000000")])
    (shard,) = manifest.shards
    index = ShardIndex.load(LocalStore(tmp_path), shard)
    part = index[0].parts[-1]
    with (tmp_path / shard.name).open("r+b") as file:
        file.seek(part.offset)
        file.write(text.ljust(part.num_bytes))
    with pytest.raises(ShardFormatError, match=f"shard-000000.tar at byte {part.offset}"):
        list(iter_metas(LocalStore(tmp_path), shard, index))
    with pytest.raises(ShardFormatError, match=r"shard-000000\.tar"):
        read_meta(LocalStore(tmp_path), shard.name, index[0])


def test_a_shard_that_ends_early_is_named(tmp_path):
    (shard,) = write_set(tmp_path, [make_sample("000000")]).shards
    index = ShardIndex.load(LocalStore(tmp_path), shard)
    for num_bytes in (700, 10):
        (tmp_path / shard.name).write_bytes(bytes(num_bytes))
        with pytest.raises(ShardFormatError, match="truncated"):
            list(iter_metas(LocalStore(tmp_path), shard, index))


def test_skipping_past_the_end_of_a_bucket_ends():
    skip(io.BufferedReader(Forwards(bytes(9))), 100)
