import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.records.formats.open_inputs import (
    FORMATS,
    InputSource,
    RuleFlags,
    expand_inputs,
    read_source,
    rules_of,
)
from grpo_stream.records.formats.rules import Rules
from tests.records.formats.support import COCO, read_all, write

ROWS = [{"image": "a.png", "prompt": "Click", "solution": [1, 2, 3, 4]}, 5, {"image": "b.png"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("text", "input_format", "found"),
    [
        (json.dumps(ROWS), "auto", ("json", "array")),
        (json.dumps(ROWS), "json", ("json", "array")),
        (LINES, "auto", ("jsonl", "lines")),
        (LINES, "json", ("json", "lines")),
        (LINES, "jsonl", ("jsonl", "lines")),
    ],
)
def test_plain_records(tmp_path, text, input_format, found):
    stored: list[bytes] = []
    path = write(tmp_path / "a.json", gzip.compress(text.encode()))
    source, records = read_all(path, input_format, on_bytes=stored.append)
    as_format, container = found
    is_told = input_format != "auto"
    assert source == InputSource(path, as_format, container, is_told=is_told)
    assert records == list(enumerate(ROWS))
    assert b"".join(stored) == (tmp_path / "a.json").read_bytes()


def test_many_words_keep_their_order(tmp_path):
    for name in ("c.json", "a.json", "b.jsonl"):
        write(tmp_path / name, [])
    words = [f"{tmp_path}/*.jsonl", tmp_path / "c.json", f"{tmp_path}/[ac].json"]
    names = [source.name.rpartition("/")[2] for source in expand_inputs(words)]
    assert names == ["b.jsonl", "c.json", "a.json", "c.json"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.parquet", b"PAR1", "write datasets:"),
        ("a.json", b"PAR1....", "write datasets:"),
        ("a.json", b"PK\x03\x04", "zip file"),
        ("a.pkl", b"", "pickle"),
    ],
)
def test_what_is_no_input(tmp_path, name, data, message):
    with pytest.raises(ConfigError, match=message):
        expand_inputs([write(tmp_path / name, data)])


@pytest.mark.parametrize("input_format", ["yaml", "datasets:hub/id", ""])
def test_formats_that_are_none(tmp_path, input_format):
    with pytest.raises(ConfigError, match="--format"):
        expand_inputs([write(tmp_path / "a.json", "[]")], input_format)


def test_settings_that_cannot_work(tmp_path):
    path = write(tmp_path / "a.json", COCO)
    with pytest.raises(ConfigError, match=r"--category-prompt='Find it'.*\{category\}"):
        expand_inputs([path], category_prompt="Find it")
    with pytest.raises(ConfigError, match="INPUT"):
        expand_inputs([])
    (source,) = expand_inputs([path], category_prompt="Find every {category}")
    assert next(read_source(source))[1]["prompt"] == "Find every cat"


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "input_empty"),
        (b"[1, 2", "input_not_json"),
        (b"[" * 50_000, "input_not_json"),
        (b"\xff\xfe", "input_not_utf8"),
        (b"hello", "input_not_list"),
        (gzip.compress(b"[1, 2]", mtime=0)[:-3], "input_unreadable"),
    ],
)
@pytest.mark.parametrize("input_format", ["auto", "json", "llava"])
def test_damage_is_told_when_it_is_read(tmp_path, data, cause, input_format):
    (source,) = expand_inputs([write(tmp_path / "a.json", data)], input_format)
    with pytest.raises(RecordError, match=cause):
        list(read_source(source))


def test_rules(tmp_path):
    (source,) = expand_inputs([write(tmp_path / "a.json", ROWS)])
    base = Rules(prompt_key="question", coords="per_mille")
    assert rules_of(source, base) == base
    flags = RuleFlags(image_key="path", box_format="xywh")
    assert rules_of(source, base, flags) == Rules(
        "path", "question", box_format="xywh", coords="per_mille"
    )


def test_a_bucket(server):
    server.objects["bucket/a.jsonl.gz"] = gzip.compress(LINES.encode())
    server.objects["bucket/b.json"] = json.dumps(ROWS).encode()
    sources = expand_inputs(["s3://bucket/*.json*"])
    assert [(s.name, s.format) for s in sources] == [
        ("s3://bucket/a.jsonl.gz", "jsonl"),
        ("s3://bucket/b.json", "json"),
    ]
    for source in sources:
        assert list(read_source(source)) == list(enumerate(ROWS))
    with pytest.raises(ConfigError, match=r"missing\.json.*cannot be read"):
        expand_inputs(["s3://bucket/missing.json"])
    del server.objects["bucket/b.json"]
    with pytest.raises(RecordError, match="input_unreadable"):
        list(read_source(sources[1]))


def test_a_signed_url(server):
    server.objects["sets/a b.jsonl"] = LINES.encode()
    server.always = {"": "no_range"}
    url = f"{server.url}/sets/a%20b.jsonl"
    source, records = read_all(f"{url}?X-Sig=a%2Fb&n=1")
    assert records == list(enumerate(ROWS))
    gets = [one.target for one in server.requests if one.method == "GET"]
    assert gets == ["/sets/a%20b.jsonl?X-Sig=a%2Fb&n=1"] * 2
    assert source.name == url
    assert "a%2Fb" not in repr(source)


WORDS = st.sampled_from(
    ["image", "images", "prompt", "solution", "bbox", "conversations", "from", "value", "human",
     "gpt", "[1, 2, 3, 4]", "annotations", "categories", "id", "image_id", "file_name", "caption",
     "sentences", "sent", "ann_id", "answer", "expressions", "category_id", "name", "img_filename"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=25,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


def always_ends(path, input_format):
    try:
        for index, record in read_all(str(path), input_format)[1]:
            assert isinstance(index, int)
            assert isinstance(record, (dict, list, str, int, float, type(None), RecordError))
    except ConfigError:
        pass
    except RecordError as error:
        assert error.cause.startswith("input_")  # noqa: PT017 - the other outcomes are fine


FILE_FORMATS = [name for name in FORMATS if name != "datasets"]


@pytest.mark.parametrize("input_format", FILE_FORMATS)
@settings(max_examples=60)
@given(value=JSON)
def test_any_json_gives_records_or_a_named_error(folder, input_format, value):
    path = folder / "a.json"
    path.write_text(json.dumps(value))
    always_ends(path, input_format)
    path.write_text(json.dumps([value]))
    always_ends(path, input_format)


@pytest.mark.parametrize("input_format", FILE_FORMATS)
@settings(max_examples=30)
@given(start=st.sampled_from([b"", b"[", b"{", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"]),
       data=st.binary(max_size=60))  # fmt: skip
def test_any_bytes_give_records_or_a_named_error(folder, input_format, start, data):
    path = folder / "b.json"
    path.write_bytes(start + data)
    always_ends(path, input_format)


@settings(max_examples=100)
@given(images=JSON, annotations=JSON, categories=JSON)
def test_any_document_gives_records_or_a_named_error(folder, images, annotations, categories):
    entry = {"id": 1, "file_name": "a", "image_id": 1}
    for value in (images, annotations, categories):
        if isinstance(value, list):
            value.append(entry)
    path = folder / "c.json"
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document))
    for input_format in ("auto", "coco", "refcoco"):
        always_ends(path, input_format)
