"""The records of a chunk as bytes, and back."""

import pytest

from grpo_stream.errors import RecordError, StoreError
from grpo_stream.records.formats.inline_image import InlineImage
from shard_builder.build.chunk_plan import Place, pack_row, unpack_row
from shard_builder.parts.row_files import decode_rows, encode_rows


def decoded(data):
    return [unpack_row(row) for row in decode_rows(data, "some rows")]


RECORDS = [
    {"image": "a.png", "prompt": "Klick \U0001f600 \ud800", "solution": [1, 2.5, -0.0, 1e300]},
    "no object",
    None,
    {"@0": 1, "nested": {"@0": ["@1", '"@0"', {"@2": None}]}, "n": 2**70, "inf": float("inf")},
    {"image": InlineImage("one", b"\x00\xff" * 50), "more": [InlineImage("two", b""), 3]},
]


@pytest.mark.parametrize("is_packed", [False, True])
def test_every_kind_of_record_comes_back(is_packed):
    rows = [(Place(number * 7, 1, number), number % 2, one) for number, one in enumerate(RECORDS)]
    found = decoded(encode_rows([pack_row(row) for row in rows] if is_packed else rows))
    assert found == rows
    assert str(found[0][2]["solution"][2]) == "-0.0"
    assert isinstance(found[0][0], Place)


def test_a_record_that_could_not_be_read_stays_its_error():
    error = RecordError("record_nested", "nested deeply")
    ((_, _, found),) = decoded(encode_rows([(Place(0, 0, 0), 0, error)]))
    assert (type(found), found.cause, found.detail) == (RecordError, error.cause, error.detail)


@pytest.mark.parametrize("length", [0, 10, 40, -1])
def test_damage_is_named(length):
    data = encode_rows([(Place(0, 0, 0), 0, RECORDS[4])])
    with pytest.raises(StoreError, match="unreadable: some rows is damaged"):
        decoded(data[:length])
