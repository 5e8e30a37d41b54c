import struct

import pytest

from grpo_stream.errors import ShardFormatError, StoreError
from grpo_stream.shards.index import ENTRY_DTYPE, IndexEntry, ShardIndex, index_name
from grpo_stream.shards.manifest import ShardInfo
from grpo_stream.shards.store import LocalStore

ENTRIES = [
    IndexEntry(0, 2048, 640, 480, 1, 2),
    IndexEntry(2048, 2**40, 1920, 1080, 2**32 - 1, 4),
]
INDEX = ShardIndex.from_entries(ENTRIES, 2**41)


def test_round_trip():
    index = ShardIndex.from_bytes(INDEX.to_bytes(), "s.tar")
    assert [index[i] for i in range(len(index))] == ENTRIES
    assert index.num_bytes == 2**41
    assert index[1].size == (1920, 1080)


def test_width_of_an_entry_is_fixed():
    assert ENTRY_DTYPE.itemsize == 32
    assert len(INDEX.to_bytes()) == 32 + 2 * 32 + 4


def test_empty_index():
    assert len(ShardIndex.from_bytes(ShardIndex.from_entries([], 1024).to_bytes(), "s.tar")) == 0


def test_every_flipped_byte_is_noticed():
    data = INDEX.to_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(ShardFormatError, match=r"bad_index: s\.tar\.idx"):
            ShardIndex.from_bytes(bytes(damaged), "s.tar")


def test_every_cut_is_noticed():
    data = INDEX.to_bytes()
    for end in range(len(data)):
        with pytest.raises(ShardFormatError, match="bad_index"):
            ShardIndex.from_bytes(data[:end], "s.tar")


def test_another_version_says_what_to_do():
    data = bytearray(INDEX.to_bytes())
    struct.pack_into("<I", data, 8, 7)
    with pytest.raises(ShardFormatError, match=r"version 7.*rebuild"):
        ShardIndex.from_bytes(bytes(data), "s.tar")


@pytest.mark.parametrize(
    "entries",
    [
        [IndexEntry(0, 2048, 1, 1, 0, 0), IndexEntry(1024, 512, 1, 1, 0, 0)],
        [IndexEntry(2048, 512, 1, 1, 0, 0), IndexEntry(0, 512, 1, 1, 0, 0)],
        [IndexEntry(4096, 512, 1, 1, 0, 0)],
    ],
)
def test_samples_lie_in_order_inside_the_tar(entries):
    data = ShardIndex.from_entries(entries, 4096).to_bytes()
    with pytest.raises(ShardFormatError, match="overlap or lie outside"):
        ShardIndex.from_bytes(data, "s.tar")


def test_load_compares_with_the_manifest(tmp_path):
    store = LocalStore(tmp_path)
    with pytest.raises(StoreError, match="not_found"):
        ShardIndex.load(store, ShardInfo("s.tar", 2, 2**41, "x"))
    store.write(index_name("s.tar"), INDEX.to_bytes())
    assert len(ShardIndex.load(store, ShardInfo("s.tar", 2, 2**41, "x"))) == 2
    for info in (ShardInfo("s.tar", 3, 2**41, "x"), ShardInfo("s.tar", 2, 1, "x")):
        with pytest.raises(ShardFormatError, match="the manifest of"):
            ShardIndex.load(store, info)
