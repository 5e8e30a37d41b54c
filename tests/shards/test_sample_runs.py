"""Samples of several images, and members as others name them."""

import io
import json
import pickle
import tarfile

import pytest

from grpo_stream.errors import ShardFormatError
from grpo_stream.shards.index import PART_KINDS, ShardIndex
from grpo_stream.shards.sample_runs import iter_runs, split_name
from grpo_stream.shards.tar import iter_samples, read_sample
from grpo_stream.shards.tar_headers import iter_members
from grpo_stream.storage.store import LocalStore
from tests.shards.support import (
    image_bytes,
    make_multi_sample,
    make_sample,
    make_text_sample,
    tar_of,
    write_shard,
)

META = {"prompt": "p", "solution": [1, 2], "width": 8, "height": 6} | {
    "original_width": 8, "original_height": 6,
}  # fmt: skip


def runs(members):
    data = io.BytesIO(tar_of(members))
    return list(iter_runs(iter_members(data, "s.tar", is_whole=True), "s.tar"))


def as_json(**changes):
    meta = META | changes
    return json.dumps({name: value for name, value in meta.items() if value is not None}).encode()


def test_several_images_both_ways(tmp_path):
    samples = [make_sample("0"), make_multi_sample("1"), make_sample("2")]
    info = write_shard(tmp_path / "s.tar", samples)
    with tarfile.open(tmp_path / "s.tar") as tar:
        assert tar.getnames()[2:6] == ["1.png", "1.1.jpg", "1.2.webp", "1.json"]
    with (tmp_path / "s.tar").open("rb") as file:
        assert list(iter_samples(file, "s.tar")) == samples
    index = ShardIndex.load(LocalStore(tmp_path), info)
    assert [read_sample(LocalStore(tmp_path), "s.tar", index[i]) for i in range(3)] == samples
    parts = index[1].parts
    assert [(PART_KINDS[part.kind], part.image, part.width, part.height) for part in parts] == [
        ("png", 0, 8, 6), ("jpg", 1, 4, 2), ("webp", 2, 5, 7), ("json", 0, 0, 0),
    ]  # fmt: skip


def test_a_sample_without_images_both_ways(tmp_path):
    samples = [make_sample("0"), make_text_sample("1"), make_multi_sample("2"), make_sample("3")]
    info = write_shard(tmp_path / "s.tar", samples)
    with tarfile.open(tmp_path / "s.tar") as tar:
        assert tar.getnames()[2:4] == ["1.json", "2.png"]
    with (tmp_path / "s.tar").open("rb") as file:
        assert list(iter_samples(file, "s.tar")) == samples
    store = LocalStore(tmp_path)
    index = ShardIndex.load(store, info)
    assert [read_sample(store, "s.tar", index[i]) for i in range(4)] == samples
    assert index.sizes().tolist() == [[8, 6], [0, 0], [8, 6], [8, 6]]
    assert pickle.loads(pickle.dumps(samples[1])) == samples[1]  # noqa: S301 - our own


def test_no_image_is_a_fault_unless_the_json_says_so():
    meta = make_text_sample().meta
    (run,) = runs([("k.txt", b"note"), ("k.json", json.dumps(meta).encode())])
    assert [part.kind for part in run.parts] == ["other", "json"]
    with pytest.raises(ShardFormatError, match="missing_member"):
        runs([("k.json", json.dumps(meta | {"images": None}).encode())])
    with pytest.raises(ShardFormatError, match=r"bad_meta: .*must be \[\] in a sample without"):
        runs([("k.json", json.dumps(meta | {"solution": [1, 2]}).encode())])


def test_the_writers_index_is_what_the_reader_finds(tmp_path):
    info = write_shard(tmp_path / "s.tar", [make_sample("0"), make_multi_sample("1")])
    index = ShardIndex.load(LocalStore(tmp_path), info)
    with (tmp_path / "s.tar").open("rb") as file:
        found = list(iter_runs(iter_members(file, "s.tar", is_whole=True), "s.tar"))
    assert [run.index_entry() for run in found] == [index[0], index[1]]


def test_every_part_is_checked(tmp_path):
    info = write_shard(tmp_path / "s.tar", [make_multi_sample()])
    entry = ShardIndex.load(LocalStore(tmp_path), info)[0]
    data = (tmp_path / "s.tar").read_bytes()
    for part in entry.parts:
        damaged = bytearray(data)
        damaged[part.offset + part.num_bytes // 2] ^= 1
        (tmp_path / "s.tar").write_bytes(damaged)
        with pytest.raises(ShardFormatError):
            read_sample(LocalStore(tmp_path), "s.tar", entry)


IMAGES = {"images": [{"width": 8, "height": 6, "original_width": 8, "original_height": 6}] * 3}


@pytest.mark.parametrize(
    ("numbers", "cause"),
    [([1, 2], None), ([2, 1], None), ([1], "missing"), ([2, 3], "missing"), ([1, 2, 2], "dup")],
)
def test_further_images_are_those_that_the_json_tells_of(numbers, cause):
    images = [(f"k.{number}.PNG", b"%d" % number) for number in numbers]
    members = [*images, ("k.jpeg", b"0"), ("k.json", as_json(**IMAGES))]
    if cause is None:
        (run,) = runs(members)
        assert run.sample.image_suffix == "jpg"
        assert run.sample.more_images == (("png", b"1"), ("png", b"2"))
    else:
        with pytest.raises(ShardFormatError, match=rf"{cause}\w+: s\.tar at byte 0: key='k'"):
            runs(members)


def test_numbered_members_mean_nothing_where_the_json_tells_of_one_image():
    members = [("k.1.png", b"mask"), ("k.png", b"image"), ("k.json", as_json()), ("k.cls", b"3")]
    (run,) = runs(members)
    assert (run.sample.image, run.sample.more_images) == (b"image", ())
    assert [part.kind for part in run.parts] == ["other", "png", "json", "other"]
    assert run.index_entry().size == (8, 6)


def test_members_without_key_or_suffix_are_passed_over():
    members = [
        ("README", b"hello"), ("a.png", b"1"), ("._a.json", b"x"), ("a.json", as_json()),
        ("d/.hidden", b"x"), ("d/b.png", b"2"), ("d/b.json", as_json()), ("LICENSE", b""),
    ]  # fmt: skip
    assert [run.sample.key for run in runs(members)] == ["a", "d/b"]


@pytest.mark.parametrize(
    ("missing", "size", "original"),
    [
        (("width", "height", "original_width", "original_height"), (9, 5), (9, 5)),
        (("original_width", "original_height"), (8, 6), (8, 6)),
        (("width", "height"), (9, 5), (8, 6)),
    ],
)
def test_missing_sides_come_from_the_image(missing, size, original):
    meta = as_json(**dict.fromkeys(missing))
    (run,) = runs([("k.png", image_bytes((9, 5))), ("k.json", meta)])
    assert (run.sample.size, run.sample.original_size) == (size, original)


def test_missing_sides_of_an_image_that_has_none():
    with pytest.raises(ShardFormatError, match=r"bad_meta: .*key='k'.*image_unreadable"):
        runs([("k.png", b"x"), ("k.json", as_json(width=None))])


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("a.jpg", "a", "jpg"),
        ("a.B.JPG", "a", "b.jpg"),
        ("d.x/a.json", "d.x/a", "json"),
        ("a", "a", ""),
    ],
)
def test_split_name_as_webdataset(name, key, suffix):
    assert split_name(name) == (key, suffix)
