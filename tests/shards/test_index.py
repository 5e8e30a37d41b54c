import struct

import pytest

from grpo_stream.errors import ShardFormatError, StoreError
from grpo_stream.shards.index import (
    PART_DTYPE,
    SAMPLE_DTYPE,
    IndexEntry,
    IndexPart,
    ShardIndex,
    energon_index,
    energon_index_name,
    index_name,
)
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.storage.store import LocalStore


def entry(offset, num_bytes, *parts):
    return IndexEntry(offset, num_bytes, tuple(IndexPart(*part) for part in parts))


ENTRIES = [
    entry(0, 2048, (512, 400, 640, 480, 1, 2, 0), (1536, 90, 0, 0, 2, 1, 0)),
    entry(
        2048,
        2**40,
        (4096, 2**33, 64, 48, 3, 3, 1),  # a further image may come first
        (2**39, 700, 1920, 1080, 2**32 - 1, 4, 0),
        (2**39 + 1024, 10, 0, 0, 5, 0, 0),
        (2**39 + 2048, 20, 0, 0, 6, 1, 0),
    ),
]
INDEX = ShardIndex.from_entries(ENTRIES, 2**41)


def test_round_trip():
    index = ShardIndex.from_bytes(INDEX.to_bytes(), "s.tar")
    assert [index[i] for i in range(len(index))] == ENTRIES
    assert index.num_bytes == 2**41
    assert index[-1] == ENTRIES[-1]
    for outside in (2, -3):
        with pytest.raises(IndexError, match=f"sample {outside} of 2"):
            index[outside]
    assert [index[i].size for i in range(2)] == [(640, 480), (1920, 1080)]
    assert index.sizes().tolist() == [[640, 480], [1920, 1080]]


def test_widths_are_fixed():
    assert (SAMPLE_DTYPE.itemsize, PART_DTYPE.itemsize) == (24, 32)
    assert len(INDEX.to_bytes()) == 80 + 2 * 24 + 6 * 32 + 4


def test_empty_index():
    empty = ShardIndex.from_entries([], 1024)
    assert len(ShardIndex.from_bytes(empty.to_bytes(), "s.tar")) == 0
    assert energon_index(empty, 0) == bytes(8)


def test_every_flipped_byte_is_noticed():
    data = INDEX.to_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(ShardFormatError, match=r"bad_index: s\.tar\.index"):
            ShardIndex.from_bytes(bytes(damaged), "s.tar")


def test_every_cut_is_noticed():
    data = INDEX.to_bytes()
    for end in range(len(data)):
        with pytest.raises(ShardFormatError, match="bad_index"):
            ShardIndex.from_bytes(data[:end], "s.tar")
    with pytest.raises(ShardFormatError, match="bad_index"):
        ShardIndex.from_bytes(data + b"\0", "s.tar")


def test_another_version_says_what_to_do():
    data = bytearray(INDEX.to_bytes())
    struct.pack_into("<I", data, 8, 1)
    with pytest.raises(ShardFormatError, match=r"version 1.*run shard-builder index"):
        ShardIndex.from_bytes(bytes(data), "s.tar")


PART = (512, 10, 0, 0, 0, 1, 0)


@pytest.mark.parametrize(
    "entries",
    [
        [entry(0, 2048, PART), entry(1024, 512)],
        [entry(2048, 512), entry(0, 512)],
        [entry(4096, 512)],
        [entry(0, 2**64 - 1)],
        [entry(0, 512, PART)],
        [entry(1024, 512, PART)],
        [entry(0, 2048, PART, PART)],
        [entry(0, 2048, (2**64 - 1, 10, 0, 0, 0, 1, 0))],
    ],
)
def test_samples_and_parts_lie_in_order_inside_the_tar(entries):
    data = ShardIndex.from_entries(entries, 4096).to_bytes()
    with pytest.raises(ShardFormatError, match="overlap or are outside"):
        ShardIndex.from_bytes(data, "s.tar")


def test_parts_belong_to_their_samples():
    samples = INDEX.samples.copy()
    samples["first_part"] = [1, 0]
    data = ShardIndex(samples, INDEX.parts, INDEX.num_bytes).to_bytes()
    with pytest.raises(ShardFormatError, match="bad_index"):
        ShardIndex.from_bytes(data, "s.tar")


def test_load_compares_with_the_manifest(tmp_path):
    store = LocalStore(tmp_path)
    with pytest.raises(StoreError, match=r"not_found: .*run shard-builder index .*") as caught:
        ShardIndex.load(store, ShardInfo("s.tar", 2, 2**41, "x"))
    assert str(tmp_path) in caught.value.detail
    store.write(index_name("s.tar"), INDEX.to_bytes())
    assert len(ShardIndex.load(store, ShardInfo("s.tar", 2, 2**41, "x"))) == 2
    for info in (ShardInfo("s.tar", 3, 2**41, "x"), ShardInfo("s.tar", 2, 1, "x")):
        with pytest.raises(ShardFormatError, match="the manifest of"):
            ShardIndex.load(store, info)


def test_energon_finds_offsets_and_the_end():
    assert energon_index_name("s.tar") == "s.tar.idx"
    assert struct.unpack("<3Q", energon_index(INDEX, 2**41 - 1024)) == (0, 2048, 2**41 - 1024)
