import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.errors import RecordError
from tools.shard_builder import records
from tools.shard_builder.records import read_records

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


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_an_array_is_read_in_pieces_of_any_size(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(records, "_CHUNK_CHARS", chunk)
    rows = [*ROWS, 12, -1.5e3, "text, with ] marks", None, [[]], 3]
    for indent in (None, 2):
        assert read(tmp_path, json.dumps(rows, indent=indent)) == rows


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
