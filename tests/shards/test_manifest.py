import json
from dataclasses import asdict, replace

import pytest

from grpo_stream.errors import ManifestError
from grpo_stream.shards.manifest import MANIFEST_NAME, Manifest, ShardInfo
from grpo_stream.shards.shard_table import ShardTable
from grpo_stream.storage.store import LocalStore

SHARDS = (ShardInfo("a.tar", 3, 4096, "aa"), ShardInfo("b.tar", 2, 2048, "bb"))
MANIFEST = Manifest(1, SHARDS, {"rules": {"k": 1}}, "0.1", {"num_samples": 5}, {"box_empty": 2})


def test_round_trip(tmp_path):
    store = LocalStore(tmp_path)
    MANIFEST.save(store)
    assert Manifest.load(store) == MANIFEST
    assert Manifest.load(store).num_samples == 5


def test_no_manifest_no_data_set(tmp_path):
    with pytest.raises(ManifestError, match="no manifest, no data set: run shard-builder build"):
        Manifest.load(LocalStore(tmp_path))


def test_digest_is_of_the_content_alone():
    same = replace(MANIFEST, settings={}, builder_version="9", totals={}, rejects={})
    assert same.digest == MANIFEST.digest
    assert replace(same, shards=(replace(SHARDS[0], num_bytes=1), SHARDS[1])).digest == same.digest


@pytest.mark.parametrize(
    "shards",
    [
        SHARDS[::-1],
        SHARDS[:1],
        (replace(SHARDS[0], name="c.tar"), SHARDS[1]),
        (replace(SHARDS[0], num_samples=4), SHARDS[1]),
        (replace(SHARDS[0], sha256="cc"), SHARDS[1]),
    ],
)
def test_digest_sees_every_change(shards):
    assert replace(MANIFEST, shards=shards).digest != MANIFEST.digest


def test_digest_stays_what_it_was():
    # Saved cursors are bound to it: another value here orphans every checkpoint.
    expected = "d86cda7773bfa11637275a0500bdb70ae554d40f54b567c63126ee617f1f5f59"
    assert MANIFEST.digest == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3, this program reads versions 1 to 2"),
        ({"shards": None}, "missing or wrong field"),
        ({"shards": [{"name": "a.tar"}]}, "missing or wrong field"),
        ({"settings": 3}, "missing or wrong field"),
        ({"digest": "00"}, "digest does not fit"),
    ],
)
def test_wrong_manifests(change, message):
    raw = json.loads(MANIFEST.to_json()) | change
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(json.dumps(raw).encode())


@pytest.mark.parametrize("field", ["name", "num_samples", "num_bytes", "sha256"])
@pytest.mark.parametrize("value", [None, -1, [], True, ""])
def test_wrong_shard_lines(field, value):
    raw = json.loads(MANIFEST.to_json())
    raw["shards"][0][field] = value
    with pytest.raises(ManifestError):
        Manifest.from_json(json.dumps(raw).encode())


def test_a_shard_twice():
    data = replace(MANIFEST, shards=(SHARDS[0], SHARDS[0])).to_json()
    with pytest.raises(ManifestError, match="names a shard twice"):
        Manifest.from_json(data)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b"\xff"])
def test_no_manifest_at_all(data):
    with pytest.raises(ManifestError, match=MANIFEST_NAME):
        Manifest.from_json(data)


class TestManyShards:
    """What is read is kept in columns; it is what was written all the same."""

    SHARDS = tuple(
        ShardInfo(f"train/{i:03d} {'x' * (i % 7)}.tar", i % 5, 10**10 + i, f"{i:064x}")
        for i in range(5000)
    )

    @pytest.fixture
    def read(self):
        manifest = Manifest(1, self.SHARDS, {"rules": {"k": [1, {"name": "a"}]}})
        return Manifest.from_json(manifest.to_json())

    def test_is_equal_to_what_was_written(self, read):
        written = Manifest(1, self.SHARDS, {"rules": {"k": [1, {"name": "a"}]}})
        assert isinstance(read.shards, ShardTable)
        assert read == written
        assert written == read
        assert read.digest == written.digest
        assert read.to_json() == written.to_json()
        assert read.num_samples == written.num_samples

    def test_columns(self, read):
        assert read.sample_counts.tolist() == [shard.num_samples for shard in self.SHARDS]
        assert read.byte_counts.tolist() == [shard.num_bytes for shard in self.SHARDS]
        assert replace(read, shards=self.SHARDS).byte_counts.tolist() == read.byte_counts.tolist()

    def test_is_a_sequence(self, read):
        assert len(read.shards) == 5000
        assert read.shards[7] == self.SHARDS[7]
        assert read.shards[-1] == self.SHARDS[-1]
        assert read.shards[3:9] == self.SHARDS[3:9]
        assert read.shards != self.SHARDS[:-1]
        assert read.shards != (*self.SHARDS[:-1], self.SHARDS[0])
        with pytest.raises(IndexError):
            read.shards[5000]

    def test_takes_less_than_a_hundred_bytes_a_shard(self, read):
        table = read.shards
        columns = (table._names, table.num_samples, table.num_bytes, table._sha256)
        assert sum(column.nbytes for column in columns) < 100 * len(table)

    def test_sizes_by_name(self, read):
        sizes = read.sizes()
        assert dict(sizes) == {shard.name: shard.num_bytes for shard in self.SHARDS}
        assert sizes == replace(read, shards=self.SHARDS).sizes()
        assert len(sizes) == 5000
        for name in ("", "train", "train/", self.SHARDS[7].name + "x", "zzz", "ä"):
            assert name not in sizes
            assert sizes.get(name) is None

    @pytest.mark.parametrize(
        "shard",
        [
            ShardInfo('quote".tar', 1, 1, "0" * 64),
            ShardInfo("ä.tar", 1, 1, "0" * 64),
            ShardInfo("a.tar", 1, 1, "no digest"),
            ShardInfo("a.tar", 1, 2**70, "0" * 64),
        ],
    )
    def test_one_of_another_kind_is_read_too(self, shard):
        manifest = Manifest(1, (*self.SHARDS[:3], shard))
        read = Manifest.from_json(manifest.to_json())
        assert read == manifest
        assert read.digest == manifest.digest

    def test_settings_that_look_like_a_shard(self):
        manifest = Manifest(1, self.SHARDS[:3], {"like": asdict(self.SHARDS[0])})
        assert Manifest.from_json(manifest.to_json()) == manifest

    def test_a_shard_twice(self):
        with pytest.raises(ManifestError, match="names a shard twice"):
            Manifest.from_json(Manifest(1, (*self.SHARDS, self.SHARDS[3])).to_json())
