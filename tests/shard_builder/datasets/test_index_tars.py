"""Tars that others made, from plain members to a set that streams."""

import json
import tarfile
from dataclasses import replace

import pytest

from grpo_stream.errors import ConfigError, ShardFormatError, StoreError
from grpo_stream.shards.index import PART_KINDS, ShardIndex, energon_index_name, index_name
from grpo_stream.shards.manifest import MANIFEST_NAME, Manifest
from grpo_stream.shards.tar import read_sample
from grpo_stream.storage.store import LocalStore, open_store
from shard_builder.datasets.index_tars import index_tars
from shard_builder.datasets.verify import VerifyError, verify
from tests.shard_builder.support import files_of
from tests.shards.support import (
    image_bytes,
    make_multi_sample,
    make_older,
    make_sample,
    make_text_sample,
    tar_of,
    write_set,
)


def foreign(*keys, image=None, **fields):
    """Members as others have them: no sizes in the JSON, and a text beside."""
    meta = {"prompt": "Click", "solution": [1, 2, 8, 6]} | fields
    image = image or image_bytes()
    return [
        member
        for key in keys
        for member in (
            (f"{key}.json", json.dumps(meta).encode()),
            (f"{key}.png", image),
            (f"{key}.txt", b"aside"),
        )
    ]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.tar").write_bytes(tar_of(foreign("2", "d/3")))
    (tmp_path / "a.tar").write_bytes(tar_of(foreign("0", "1"), tarfile.GNU_FORMAT))
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


@pytest.mark.parametrize("workers", [1, 3])
def test_a_set_that_others_made(folder, workers):
    tars = files_of(folder)
    told = []
    manifest = index_tars(folder, workers=workers, on_progress=lambda n, _: told.append(n))
    assert [info.name for info in manifest.shards] == ["a.tar", "b.tar"]
    assert len(told) == manifest.num_samples == 4
    assert manifest.totals["num_samples"] == 4
    assert manifest.totals["num_multi_image"] == manifest.totals["num_multi_box"] == 0
    after = files_of(folder)
    assert set(after) - set(tars) == {
        "a.tar.index", "a.tar.idx", "b.tar.index", "b.tar.idx", MANIFEST_NAME,
    }  # fmt: skip
    assert {name: after[name] for name in tars} == tars
    store = LocalStore(folder)
    assert Manifest.load(store) == manifest
    index = ShardIndex.load(store, manifest.shards[1])
    samples = [read_sample(store, "b.tar", index[i]) for i in range(2)]
    assert [(s.key, s.prompt, s.size, s.original_size) for s in samples] == [
        ("2", "Click", (8, 6), (8, 6)),
        ("d/3", "Click", (8, 6), (8, 6)),
    ]
    assert [PART_KINDS[part.kind] for part in index[0].parts] == ["json", "png", "other"]
    assert verify(store, manifest).num_samples == 4


def test_again_and_again_gives_the_same(folder):
    first = index_tars(folder)
    before = files_of(folder)
    assert index_tars(folder) == first
    assert files_of(folder) == before
    assert index_tars(folder, overwrite=True) == first
    assert files_of(folder) == before


def test_indexes_of_a_built_set_are_renewed_and_its_manifest_stays(tmp_path):
    samples = [make_sample(f"{i}", f"Click {i}") for i in range(3)]
    samples.append(make_multi_sample("9"))
    manifest = write_set(tmp_path, samples)
    before = files_of(tmp_path)
    name = manifest.shards[0].name
    for path in (tmp_path / index_name(name), tmp_path / energon_index_name(name)):
        path.write_bytes(b"of an older version")
    assert index_tars(tmp_path) == manifest
    assert files_of(tmp_path) == before


def test_several_images_and_boxes_are_counted(tmp_path):
    boxes = [make_multi_sample("0"), make_multi_sample("1", (1, 2), (2,)), make_sample("2")]
    write_set(tmp_path, boxes)
    totals = index_tars(tmp_path, overwrite=True).totals
    assert (totals["num_multi_image"], totals["num_multi_box"]) == (2, 1)


def test_samples_without_images_are_counted(tmp_path):
    write_set(tmp_path, [make_sample("0"), make_text_sample("1"), make_text_sample("2")])
    manifest = index_tars(tmp_path, overwrite=True)
    assert manifest.totals["num_text_only"] == 2
    assert "num_schema_3" not in manifest.totals
    assert verify(LocalStore(tmp_path), manifest).num_samples == 3
    wrong = replace(manifest, totals=manifest.totals | {"num_text_only": 1})
    with pytest.raises(VerifyError, match="num_text_only is 1 in its totals, found are 2"):
        verify(LocalStore(tmp_path), wrong)


def test_places_that_are_not_those_of_the_images(tmp_path):
    meta = make_multi_sample("0").meta | {"prompt": "<image>"}
    members = [("0.png", image_bytes()), ("0.json", json.dumps(meta).encode())]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    with pytest.raises(ShardFormatError, match="1 places for images, and there are 3"):
        index_tars(tmp_path)


def test_a_tar_that_the_manifest_does_not_know(folder):
    index_tars(folder)
    (folder / "c.tar").write_bytes(tar_of(foreign("9")))
    before = files_of(folder)
    with pytest.raises(ConfigError, match=r"c\.tar.*--overwrite"):
        index_tars(folder)
    assert files_of(folder) == before
    assert index_tars(folder, overwrite=True).num_samples == 5


def test_a_damaged_manifest(folder):
    (folder / MANIFEST_NAME).write_text("{")
    with pytest.raises(ConfigError, match="--overwrite replaces it"):
        index_tars(folder)
    assert index_tars(folder, overwrite=True).num_samples == 4


PADDED = tar_of(foreign("9"))


@pytest.mark.parametrize(
    ("tar", "message"),
    [
        (tar_of(foreign("9", prompt="")), r"bad_meta: c\.tar .*key='9': prompt='' .*--format webd"),
        (tar_of(foreign("9", solution=None)), r"key='9': solution=None .*--format webdataset"),
        (tar_of(foreign("9", solution=[0, 0, 9, 6])), r"key='9': solution=\(0, 0, 9, 6\) is out"),
        (tar_of(foreign("9", solution=[[0, 0], [8, 6]])), r"solution=\(8, 6\) is outside 8x6"),
        (tar_of(foreign("9", width=9)), r"size_mismatch: c\.tar: key='9': the image is"),
        (tar_of(foreign("9", width="9")), r"bad_meta: .*key='9': width='9'"),
        (tar_of(foreign("9", image=b"x")), r"bad_meta: .*key='9': .*image_unreadable"),
        (tar_of([("9.png", b"x"), ("9.json", b"[]")]), r"bad_json: .*key='9'"),
        (tar_of([("9.png", b"x"), ("8.json", b"{}")]), r"missing_member: .*key='9'.*side by side"),
        (tar_of(foreign("9", "1")), r"duplicate_key: c\.tar: key='1' is in a\.tar too"),
        (tar_of(foreign("9", "9")), r"duplicate_member: .*key='9'"),
        (tar_of([("README", b"x")]), r"no_samples: c\.tar"),
        (PADDED[:700], r"truncated: c\.tar"),
        (PADDED + PADDED, r"trailing_data: c\.tar"),
        (b"", r"truncated: c\.tar"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_written(folder, tar, message):
    (folder / "c.tar").write_bytes(tar)
    (folder / "d.tar").write_bytes(b"worse")
    before = files_of(folder)
    with pytest.raises(ShardFormatError, match=message):
        index_tars(folder, workers=3)
    assert files_of(folder) == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x.txt"], "must be a folder or bucket with .tar files"),
        (["train/0.tar", "val/0.tar"], "one of the folders in it, for example train"),
        (["0.tar.gz"], "compressed tars only"),
    ],
)
def test_no_tars(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=message):
        index_tars(tmp_path)


def test_places_that_cannot_be_indexed(tmp_path):
    with pytest.raises(ConfigError, match=r"must be a folder or bucket with \.tar files"):
        index_tars(tmp_path / "absent")
    pytest.importorskip("obstore")
    with pytest.raises(ConfigError, match="web servers take no uploads"):
        index_tars("https://host/set")


def test_an_unfinished_build_is_no_set_of_others(folder):
    (folder / "_build").mkdir()
    (folder / "_build" / "build.json").write_text("{}")
    before = sorted(folder.iterdir())
    with pytest.raises(ConfigError, match=r"unfinished build: give its command again .*overwrite"):
        index_tars(folder)
    assert sorted(folder.iterdir()) == before
    assert index_tars(folder, overwrite=True).num_samples == 4


def test_workers_must_be_positive(folder):
    with pytest.raises(ConfigError, match="--workers"):
        index_tars(folder, workers=0)


def test_a_bucket(folder, server):
    expected = index_tars(folder)
    for name in ("a.tar", "b.tar"):
        server.objects[f"bucket/set/{name}"] = (folder / name).read_bytes()
    assert index_tars("s3://bucket/set", workers=2) == expected
    found = {name.rpartition("/")[2]: data for name, data in server.objects.items()}
    assert found == {k: v for k, v in files_of(folder).items() if k != "notes.txt"}
    writes = [one.name for one in server.requests if one.method == "PUT"]
    assert writes[-1] == f"bucket/set/{MANIFEST_NAME}"
    store = open_store("s3://bucket/set")
    assert verify(store, expected, workers=2).num_samples == 4
    server.always[index_name("b.tar")] = "denied"
    with pytest.raises(StoreError, match=r"unwritable: .*b\.tar\.index"):
        index_tars("s3://bucket/set")


def test_an_older_set_gets_its_check_values_and_keeps_its_digest(tmp_path):
    built = write_set(tmp_path, [make_sample(f"{i}", f"Click {i}") for i in range(3)])
    before = files_of(tmp_path)
    older = make_older(tmp_path)
    assert files_of(tmp_path) != before
    assert verify(LocalStore(tmp_path), older).num_samples == 3
    assert index_tars(tmp_path) == built
    assert older.digest == built.digest
    assert files_of(tmp_path) == before
