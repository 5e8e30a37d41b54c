import numpy as np
import pytest

from grpo_stream.errors import ConfigError, ManifestError, ShardFormatError, StoreError
from grpo_stream.shards.index import index_name
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import LocalStore
from grpo_stream.stream import sources
from grpo_stream.stream.sources import ShardSource
from tests.shards.support import write_set, write_shard
from tests.stream.support import CountingStore, damage, make_samples, write_numbered_set


class TestShardSource:
    def test_every_sample_by_its_place(self, tmp_path):
        source = ShardSource(str(write_numbered_set(tmp_path, num_samples=7, per_shard=3)))
        assert source.shard_counts.tolist() == [3, 3, 1]
        assert source.shard_counts.dtype == np.int64
        places = [(shard, sample) for shard in range(3) for sample in range(3)][:7]
        assert [source.read(*place) for place in places] == make_samples(7)
        assert source.digest == Manifest.load(LocalStore(tmp_path)).digest

    def test_one_ranged_read_per_sample_and_one_index_per_shard(self, tmp_path):
        store = CountingStore(write_numbered_set(tmp_path, num_samples=6, per_shard=3))
        source = ShardSource(store)
        for place in [(0, 0), (1, 2), (0, 1), (0, 2)]:
            source.read(*place)
        assert list(store.reads.values()) == [1, 1, 1, 1]
        shards = [info.name for info in source.manifest.shards]
        assert store.whole_reads == {"manifest.json": 1, **{index_name(name): 1 for name in shards}}

    def test_old_indexes_are_dropped(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "_NUM_OPEN_INDEXES", 2)
        source = ShardSource(str(write_numbered_set(tmp_path, num_samples=8, per_shard=2)))
        for shard in (0, 1, 0, 2):
            source.read(shard, 0)
        assert list(source._indexes) == [1, 2]

    def test_checksum(self, tmp_path):
        source = ShardSource(str(write_numbered_set(tmp_path)))
        damage(source, 1, 2)
        source.read(1, 1)
        with pytest.raises(ShardFormatError) as info:
            source.read(1, 2)
        assert info.value.cause == "checksum"
        assert "000006" in info.value.detail

    def test_an_index_of_another_build(self, tmp_path):
        source = ShardSource(str(write_numbered_set(tmp_path)))
        name = source.manifest.shards[0].name
        write_shard(tmp_path / "other.tar", make_samples(2))
        (tmp_path / index_name("other.tar")).replace(tmp_path / index_name(name))
        with pytest.raises(ShardFormatError, match="foreign_index"):
            source.read(0, 0)

    def test_a_shard_that_is_gone(self, tmp_path):
        source = ShardSource(str(write_numbered_set(tmp_path)))
        (tmp_path / source.manifest.shards[0].name).unlink()
        with pytest.raises(StoreError, match="not_found"):
            source.read(0, 0)

    def test_no_data_set(self, tmp_path):
        with pytest.raises(ManifestError, match="no manifest, no data set"):
            ShardSource(str(tmp_path))
        with pytest.raises(ConfigError, match="url"):
            ShardSource("")

    def test_the_digest_follows_the_content(self, tmp_path):
        write_set(tmp_path / "a", make_samples(4))
        write_set(tmp_path / "b", make_samples(4))
        write_set(tmp_path / "c", make_samples(5))
        a, b, c = (ShardSource(str(tmp_path / name)).digest for name in "abc")
        assert a == b != c
