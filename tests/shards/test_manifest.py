import json
from dataclasses import replace

import pytest

from grpo_stream.errors import ManifestError
from grpo_stream.shards.manifest import MANIFEST_NAME, Manifest, ShardInfo
from grpo_stream.shards.store import LocalStore

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
        ({"version": 2}, "version 2, this program reads version 1"),
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
