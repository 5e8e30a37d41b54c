import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.errors import RecordError
from grpo_stream.records.formats import json_stream
from grpo_stream.records.formats.json_stream import (
    JsonText,
    parse_lines,
    parse_records,
    read_records,
)

ROWS = [{"image": "a.png", "n": 1}, {"image": "ü 😀", "nested": [{"x": [1, 2]}]}, {}]


def read(tmp_path, data):
    path = tmp_path / "records.json"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_records(path))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False),
        "\ufeff" + json.dumps(ROWS),
        "\n".join(map(json.dumps, ROWS)),
        "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n \n",
    ],
    ids=["array", "indented", "bom", "lines", "lines with blanks"],
)
def test_formats(tmp_path, text):
    assert read(tmp_path, text) == ROWS


def pieces(data, num_bytes):
    data = data if isinstance(data, bytes) else data.encode()
    return iter([data[i : i + num_bytes] for i in range(0, len(data), num_bytes)])


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_in_pieces_of_any_size(monkeypatch, num_bytes, indent):
    monkeypatch.setattr(json_stream, "_CHUNK_CHARS", num_bytes)
    rows = [*ROWS, 12, -1.5e3, "text, with ] marks", None, [[]], 3]
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    assert list(parse_records(pieces(text, num_bytes), "a")) == rows


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 7, 64])
def test_lines_are_read_in_pieces_of_any_size(num_bytes):
    text = "\ufeff\n" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    assert list(parse_records(pieces(text, num_bytes), "a")) == ROWS


@pytest.mark.parametrize(
    "text", ['["{long}"]', '[1, {{"a": "{long}', '{{"a": "{long}"}}', "{long}"]
)
def test_a_record_has_a_largest_size(monkeypatch, text):
    monkeypatch.setattr(json_stream, "_MAX_RECORD_CHARS", 1000)
    monkeypatch.setattr(json_stream, "_CHUNK_CHARS", 100)
    endless = pieces(text.format(long="x" * 100_000), 50)
    with pytest.raises(RecordError, match=r"input_not_json: a: .*64 MiB"):
        list(parse_records(endless, "a"))
    assert next(endless, None) is not None  # it did not read on to the end


def test_members_come_one_by_one(monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK_CHARS", 3)
    text = '{"info": {"a": [1]}, "images": [{"id": 1}, {"id": 2}], "none": [], "n": 3}'
    reader = JsonText(pieces(text, 3), "a")
    assert list(reader.members()) == [
        ("info", None, {"a": [1]}),
        ("images", 0, {"id": 1}),
        ("images", 1, {"id": 2}),
        ("n", None, 3),
    ]
    reader.end()


@pytest.mark.parametrize("text", ["{1: 2}", '{"a" 2}', '{"a": [1}', '{"a": 1', "[]", ""])
def test_damaged_objects(text):
    with pytest.raises(RecordError, match="input_not_json"):
        list(JsonText(pieces(text, 9), "a").members())


def test_lines_may_be_arrays_when_the_user_says_so():
    assert list(parse_lines(pieces("[1]\n[2]\n", 4), "a")) == [[1], [2]]


def test_a_line_that_is_no_utf8_is_one_bad_record():
    good, bad, last = parse_records(iter([b'{"a": 1}\n"\xff"\n{"a": 2}']), "a")
    assert (good, last) == ({"a": 1}, {"a": 2})
    assert isinstance(bad, RecordError)
    assert (bad.cause, "line 2" in bad.detail) == ("record_not_utf8", True)


def test_an_empty_array(tmp_path):
    assert read(tmp_path, " [ ] ") == []


def test_a_bad_line_is_one_bad_record(tmp_path):
    good, bad, last = read(tmp_path, '{"a": 1}\n{"a": \n{"a": 2}\n')
    assert (good, last) == ({"a": 1}, {"a": 2})
    assert isinstance(bad, RecordError)
    assert (bad.cause, "line 2" in bad.detail) == ("record_not_json", True)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "input_empty"),
        (b" \n ", "input_empty"),
        (b'[{"a": 1}, {"a"', "input_not_json"),
        (b'[{"a": 1} {"a": 2}]', "input_not_json"),
        (b'[{"a": 1},]', "input_not_json"),
        (b'[{"a": 1}] x', "input_not_json"),
        (b"[" * 50_000, "input_not_json"),
        (b"[" + b"9" * 10_000 + b"]", "input_not_json"),
        (b'{\n "a": 1\n}', "input_not_list"),
        (b"<html>", "input_not_list"),
        ('["né"]'.encode("latin-1"), "input_not_utf8"),
        (b"\x80\x02binary", "input_not_utf8"),
    ],
)
def test_damaged_files(tmp_path, data, cause):
    with pytest.raises(RecordError, match=rf"{cause}: .*records\.json"):
        read(tmp_path, data)


def test_an_error_tells_the_place(tmp_path):
    rows = ",".join(['{"a": 1}'] * 1000)
    with pytest.raises(RecordError, match=f"at character {len(rows) + 3}"):
        read(tmp_path, f"[{rows}, x]")


def test_a_folder_is_no_input(tmp_path):
    with pytest.raises(RecordError, match="input_unreadable"):
        list(read_records(tmp_path))


@given(st.binary(max_size=60))
def test_any_bytes_give_records_or_a_named_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "records.json"
    for start in (b"", b"["):
        path.write_bytes(start + data)
        try:
            list(read_records(path))
        except RecordError as error:
            assert error.cause.startswith("input_")  # noqa: PT017 - the other outcome is fine
