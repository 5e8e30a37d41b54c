import hashlib
from dataclasses import replace

import pytest

from grpo_stream.boxes import Size
from grpo_stream.errors import StoreError
from grpo_stream.shards.index import IndexEntry, ShardIndex, index_name
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import make_meta
from grpo_stream.shards.store import LocalStore
from tests.shards.support import image_bytes, make_sample, write_set
from tools.shard_builder.verify import VerifyError, verify

SAMPLES = [make_sample(f"{i:06d}", f"Click {i}") for i in range(4)]


def run(folder):
    store = LocalStore(folder)
    return list(verify(store, Manifest.load(store)))


def test_a_sound_set(tmp_path):
    write_set(tmp_path, SAMPLES)
    assert run(tmp_path) == SAMPLES


@pytest.mark.parametrize("position", [0, 700, 1600, -600])
def test_a_flipped_byte(tmp_path, position):
    manifest = write_set(tmp_path, SAMPLES)
    path = tmp_path / manifest.shards[1].name
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerifyError, match=r"shard-000002\.tar: its SHA-256"):
        run(tmp_path)


def test_a_cut_or_missing_shard(tmp_path):
    manifest = write_set(tmp_path, SAMPLES)
    path = tmp_path / manifest.shards[0].name
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(VerifyError, match="the manifest says"):
        run(tmp_path)
    path.unlink()
    with pytest.raises(StoreError, match="not_found"):
        run(tmp_path)


def test_a_missing_or_foreign_index(tmp_path):
    manifest = write_set(tmp_path, SAMPLES)
    first, second = (tmp_path / index_name(shard.name) for shard in manifest.shards)
    second.write_bytes(first.read_bytes())
    with pytest.raises(VerifyError, match=r"shard-000002\.tar at byte 0: key='000002'"):
        run(tmp_path)
    first.unlink()
    with pytest.raises(StoreError, match="not_found"):
        run(tmp_path)


def test_an_index_that_leaves_a_sample_out(tmp_path):
    store = LocalStore(tmp_path)
    manifest = write_set(tmp_path, SAMPLES, per_shard=4)
    info = manifest.shards[0]
    index = ShardIndex.load(store, info)
    fewer = ShardIndex.from_entries([index[i] for i in range(3)], info.num_bytes)
    store.write(index_name(info.name), fewer.to_bytes())
    Manifest(1, (replace(info, num_samples=3),)).save(store)
    with pytest.raises(VerifyError, match="the index tells of 3 samples, the tar of more"):
        run(tmp_path)


def meta(solution, size=(8, 6)):
    return make_meta("p", solution, Size(*size), Size(*size), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": b"no image"}, "image_unreadable"),
        ({"image": image_bytes((9, 6))}, "sizes differ: image 9x6"),
        ({"meta": meta((1, 1, 9, 6))}, "is outside 8x6"),
        ({"meta": meta((3, 3, 3, 5))}, "is outside 8x6"),
        ({"meta": meta((8, 0))}, "is outside 8x6"),
        ({"meta": meta((1, 1), (5, 5))}, "sizes differ"),
        ({"key": "000001"}, "is not unique in the set"),
    ],
)
def test_a_well_packed_but_wrong_sample_is_named(tmp_path, change, message):
    wrong = replace(SAMPLES[2], **change)
    write_set(tmp_path, [*SAMPLES[:2], wrong, SAMPLES[3]])
    with pytest.raises(VerifyError, match=rf"shard-000002\.tar: key='{wrong.key}'.*{message}"):
        run(tmp_path)


def test_an_index_with_another_image_size(tmp_path):
    store = LocalStore(tmp_path)
    info = write_set(tmp_path, SAMPLES[:1]).shards[0]
    entry = ShardIndex.load(store, info)[0]
    wrong = IndexEntry(*entry)._replace(width=99)
    store.write(index_name(info.name), ShardIndex.from_entries([wrong], info.num_bytes).to_bytes())
    with pytest.raises(VerifyError, match="sizes differ"):
        run(tmp_path)


def test_a_hash_is_of_the_file(tmp_path):
    info = write_set(tmp_path, SAMPLES).shards[0]
    assert info.sha256 == hashlib.sha256((tmp_path / info.name).read_bytes()).hexdigest()
