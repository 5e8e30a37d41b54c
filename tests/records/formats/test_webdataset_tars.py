import json

import pytest

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.inline_image import InlineImage
from tests.records.formats.support import read_all, write
from tests.shards.support import image_bytes, make_sample, tar_of, write_shard

PNG = image_bytes()
META = json.dumps({"caption": "Click", "box": [1, 2, 3, 4]}).encode()


def test_image_and_json(tmp_path):
    data = tar_of([
        ("./a/0.JPG", PNG), ("./a/0.json", META), ("./a/0.txt", b"words"), ("./a/0.cls", b"7"),
        ("./b/0.json", META), ("./b/0.png", PNG),
    ])  # fmt: skip
    stored: list[bytes] = []
    source, records = read_all(write(tmp_path / "a.tar", data), on_bytes=stored.append)
    assert (source.format, source.container) == ("webdataset", "tar")
    record = json.loads(META)
    first = record | {"image": InlineImage("./a/0.JPG", PNG), "txt": "words"}
    assert records == [(0, first), (1, record | {"image": InlineImage("./b/0.png", PNG)})]
    assert b"".join(stored) == data  # the padding after the end too


def test_several_images_and_the_users_key(tmp_path):
    data = tar_of([("0.jpg", PNG), ("0.10.png", b"11"), ("0.2.png", b"3"), ("0.mask.png", b""),
                   ("0.json", META)])  # fmt: skip
    _, ((_, record),) = read_all(write(tmp_path / "noname", data), image_key="screen")
    assert [image.data for image in record["screen"]] == [PNG, b"3", b"11"]


def test_our_own_shards(tmp_path):
    samples = [make_sample("000000_a"), make_sample("000001_b", "Click b")]
    write_shard(tmp_path / "shard-000000.tar", samples)
    _, records = read_all(str(tmp_path / "shard-000000.tar"))
    assert [(r["prompt"], r["image"].data) for _, r in records] == [
        (sample.prompt, sample.image) for sample in samples
    ]


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ([("0.jpg", PNG)], "json_missing"),
        ([("0.json", META)], "image_missing"),
        ([("0.json", b"{"), ("0.jpg", PNG)], "record_not_json"),
        ([("0.json", b"\xff"), ("0.jpg", PNG)], "record_not_json"),
        ([("0.json", b"[" * 50_000), ("0.jpg", PNG)], "record_not_json"),
    ],
)
def test_samples_that_are_none(tmp_path, members, cause):
    _, records = read_all(
        write(tmp_path / "a.tar", tar_of([*members, ("1.json", META), ("1.jpg", PNG)]))
    )
    assert isinstance(records[0][1], RecordError)
    assert records[0][1].cause == cause
    assert records[1][1]["caption"] == "Click"


def meta(number):
    return json.dumps({"number": number}).encode()


@pytest.mark.parametrize("order", [("jpg", "json"), ("json", "jpg")])
def test_joined_tars_of_one_sample_each(tmp_path, order):
    members = [
        (f"image.{suffix}", meta(number) if suffix == "json" else PNG + bytes([number]))
        for number in range(5)
        for suffix in order
    ]
    _, records = read_all(write(tmp_path / "a.tar", tar_of(members)))
    assert [record["number"] for _, record in records] == list(range(5))
    assert [record["image"].data[-1] for _, record in records] == list(range(5))


@pytest.mark.parametrize(
    "names", [("jpg", "jpg", "json", "json"), ("jpg", "jpg", "json"), ("json", "json", "jpg")]
)
def test_what_belongs_together_is_not_guessed(tmp_path, names):
    members = [(f"a.{suffix}", META if suffix == "json" else PNG) for suffix in names]
    after = [("b.jpg", PNG), ("b.json", META)]
    _, records = read_all(write(tmp_path / "a.tar", tar_of([*members, *after])))
    *bad, (_, good) = records
    assert {error.cause for _, error in bad} == {"key_repeated"}
    assert good["caption"] == "Click"


@pytest.mark.parametrize("keep", [100, 600, 5000])
def test_a_tar_that_is_cut_short(tmp_path, keep):
    data = tar_of([("0.jpg", bytes(5000)), ("0.json", META)])
    with pytest.raises(RecordError, match="input_unreadable"):
        read_all(write(tmp_path / "a.tar", data[:keep]))
