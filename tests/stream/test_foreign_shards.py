"""Shards, indexes and manifests that do not belong together, of equal sizes, and in mid-run."""

import shutil
import zlib

import pytest

from grpo_stream.boxes import Size
from grpo_stream.errors import BadSamplesError, ShardFormatError
from grpo_stream.shards.index import index_name
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.storage.store import LocalStore
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.sources import ShardSource
from tests.shards.support import image_bytes, make_older, write_set
from tests.stream.support import keys_of, make_stream

SIZE = Size(8, 6)
SHARD = "shard-000004.tar"


def write(folder, prompt, num_samples=24, per_shard=4):
    """Sets of equal sizes and names, whatever the prompt's letters."""
    samples = []
    for number in range(num_samples):
        meta = make_meta(f"{prompt} {number:03d}", (1, 2, 7, 5), SIZE, SIZE, {})
        samples.append(Sample(f"{number:06d}", image_bytes(SIZE), "png", meta))
    return write_set(folder, samples, per_shard)


@pytest.fixture
def sets(tmp_path):
    """Folders of two builds, every file of one as long as that of the other."""
    ours, theirs = write(tmp_path / "a", "Click"), write(tmp_path / "b", "Press")
    assert ours.digest != theirs.digest
    assert ours.sizes() == theirs.sizes()
    return tmp_path / "a", tmp_path / "b"


def replace_files(target, source, *names):
    for name in names:
        shutil.copy(source / name, target / "new")
        (target / "new").replace(target / name)


def read_epoch(loader, epoch):
    return [loader.get(epoch, batch) for batch in range(loader.stream.num_batches)]


def read_all(folder, **changes):
    with PromptLoader(make_stream(folder, **changes), lambda samples: samples) as loader:
        return [sample for batch in loader for sample in batch]


def test_shards_and_indexes_of_another_build_under_a_manifest(sets):
    ours, theirs = sets
    for path in theirs.glob("shard-*"):
        replace_files(ours, theirs, path.name)
    with pytest.raises(ShardFormatError, match=r"foreign_index: .*shard-\d+\.tar\.index is of ano"):
        read_all(ours)


def test_an_index_alone_of_another_build(sets):
    ours, theirs = sets
    replace_files(ours, theirs, index_name(SHARD))
    with pytest.raises(ShardFormatError, match=rf"foreign_index: .*{SHARD}.*shard-builder index"):
        read_all(ours)


def test_an_index_of_the_same_tar_but_not_the_manifest_s(sets):
    ours, _ = sets
    store = LocalStore(ours)
    data = bytearray(store.read(index_name(SHARD)))
    data[80 + 4 * 24 + 16] ^= 1  # the width of a picture
    store.write(index_name(SHARD), bytes(data[:-4]) + zlib.crc32(data[:-4]).to_bytes(4, "little"))
    with pytest.raises(ShardFormatError, match=r"index is not the one that the manifest names"):
        read_all(ours)


@pytest.mark.parametrize("num_reader_threads", [0, 2])
def test_a_damaged_index_stops_the_run_and_names_its_shard(sets, num_reader_threads):
    ours, _ = sets
    path = ours / index_name(SHARD)
    path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    with pytest.raises(ShardFormatError, match=rf"bad_index: {SHARD}\.index"):
        read_all(ours, num_reader_threads=num_reader_threads)


@pytest.mark.parametrize("is_older", [False, True])
def test_a_shard_and_its_index_replaced_in_mid_run(sets, is_older):
    ours, theirs = sets
    if is_older:
        make_older(ours)
        make_older(theirs)
    stream = make_stream(ours, max_bad_samples=3)
    with PromptLoader(stream, keys_of) as loader:
        for batch in range(stream.num_batches):
            assert len(loader.get(0, batch)) == 4
        for path in theirs.glob("shard-*"):
            replace_files(ours, theirs, path.name)
        stream.sources[0]._store._open_files.clear()  # a second has gone by
        with pytest.raises(ShardFormatError, match=r"foreign_index: .*shard-\d+\.tar"):
            read_epoch(loader, 1)


def test_a_tar_alone_replaced_in_mid_run(sets):
    ours, theirs = sets
    stream = make_stream(ours, max_bad_samples=2)
    with PromptLoader(stream, keys_of) as loader:
        loader.get(0, 0)
        replace_files(ours, theirs, SHARD)
        stream.sources[0]._store._open_files.clear()
        with pytest.raises(BadSamplesError) as caught:
            read_epoch(loader, 1)
    assert f"{ours}: {SHARD} sample " in str(caught.value)
    assert "one of 3 bad samples of that shard" in str(caught.value)
    assert "shard-builder verify" in str(caught.value)


def test_older_sets_are_read_as_they_are(sets, tmp_path):
    ours, _ = sets
    before = [sample.key for sample in read_all(ours)]
    digest = Manifest.load(LocalStore(ours)).digest
    older = make_older(ours)
    assert older.digest == digest
    assert Manifest.load(LocalStore(ours)).is_older
    assert [sample.key for sample in read_all(ours)] == before


def test_a_moved_set_has_the_same_bad_samples(sets, tmp_path):
    ours, _ = sets
    here = ShardSource(str(ours)).identity(1, 2)
    ours.rename(tmp_path / "moved")
    assert ShardSource(str(tmp_path / "moved")).identity(1, 2) == here
