"""JSON that is JSON and kills whoever uses it later."""

import io
import json

import pytest

from grpo_stream.checksum import crc32
from grpo_stream.errors import RecordError, ShardFormatError
from grpo_stream.records.formats.rules import Rules
from grpo_stream.records.validate import judge
from grpo_stream.shards.index import IndexEntry
from grpo_stream.shards.sample import MAX_PROMPT_CHARS, parse_meta
from grpo_stream.shards.sample_runs import iter_runs
from grpo_stream.shards.tar import iter_samples, parse_sample
from grpo_stream.shards.tar_headers import iter_members
from shard_builder.datasets.index_tars import index_tars
from tests.shards.support import image_bytes, tar_of

META = {
    "prompt": "Click",
    "solution": [1, 2, 3, 4],
    **dict.fromkeys(("width", "original_width"), 8),
    **dict.fromkeys(("height", "original_height"), 6),
}
HOSTILE = {
    "half a surrogate pair": ("prompt", '"\\ud800 x"', "half of a surrogate pair"),
    "half a pair in a field": ("note", '["\\udfff"]', "half of a surrogate pair"),
    "huge side": ("original_width", "1" + "0" * 400, "no number of pixels"),
    "very huge side": ("height", "1" + "0" * 5000, "bad_json|no number of pixels"),
    "long prompt": ("prompt", json.dumps("word " * (MAX_PROMPT_CHARS // 4)), "at most 100000"),
    "huge corner": ("solution", "[1, 2, 3, 1" + "0" * 400 + "]", "no finite numbers"),
}


def hostile_tar(name):
    field, text, _ = HOSTILE[name]
    lines = {key: json.dumps(value) for key, value in META.items()} | {field: text}
    meta = "{" + ",".join(f'"{key}":{value}' for key, value in lines.items()) + "}"
    return meta.encode(), tar_of([("a.png", image_bytes()), ("a.json", meta.encode())])


@pytest.mark.parametrize("name", HOSTILE)
def test_wherever_a_sample_is_read(name, tmp_path):
    meta, tar = hostile_tar(name)
    words = HOSTILE[name][2]
    with pytest.raises(ShardFormatError, match=words):
        parse_meta(meta, "x")
    with pytest.raises(ShardFormatError, match=words):
        list(iter_samples(io.BytesIO(tar), "x.tar"))
    (tmp_path / "x.tar").write_bytes(tar)
    with pytest.raises(ShardFormatError, match=words) as caught:
        index_tars(str(tmp_path))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", HOSTILE)
def test_the_short_way_of_the_stream_sees_it_too(name):
    """An index that somebody else's program made of such a tar."""
    meta, tar = hostile_tar(name)
    sound = tar_of([("a.png", image_bytes()), ("a.json", make_sample_meta(len(meta)))])
    (run,) = iter_runs(iter_members(io.BytesIO(sound), "x.tar", is_whole=True), "x.tar")
    entry = run.index_entry()
    parts = (entry.parts[0], entry.parts[1]._replace(crc32=crc32(meta)))
    with pytest.raises(ShardFormatError, match=HOSTILE[name][2]):
        parse_sample(tar[: entry.num_bytes], "x.tar", IndexEntry(0, entry.num_bytes, parts))


def make_sample_meta(num_bytes):
    """Sound JSON of a length."""
    text = json.dumps(META)
    return text.encode() + b" " * (num_bytes - len(text))


def test_escapes_that_are_whole_are_taken():
    meta = json.dumps(META | {"prompt": "\U0001f600 é"}).encode()
    tar = tar_of([("a.png", image_bytes()), ("a.json", meta)])
    (sample,) = iter_samples(io.BytesIO(tar), "x.tar")
    assert sample.prompt == "\U0001f600 é"


def test_a_record_of_a_million_words():
    record = {"image": "a.png", "prompt": "word " * 200_000, "solution": [1, 2]}
    with pytest.raises(RecordError, match="prompt_too_long: 1000000 characters"):
        judge(record, "000000000_a", Rules(), lambda _: pytest.fail("it was opened"))
