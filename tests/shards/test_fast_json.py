import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.shards import fast_json
from grpo_stream.shards.fast_json import parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def outcome(parse, data):
    try:
        return repr(parse(data))  # tells 1 from 1.0 and nan from nan
    except (ValueError, RecursionError) as error:
        return isinstance(error, RecursionError)


def by_json(data):
    return json.loads(data.decode())


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_what_json_writes(value, is_ascii, indent):
    data = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode("utf-8", "surrogatepass")
    assert outcome(parse_json, data) == outcome(by_json, data)


@pytest.mark.parametrize(
    "text",
    [
        "18446744073709551616", "-9223372036854775809", "1" * 400, "1e400", "-1e400", "1e-400",
        "1E5", "-0", "-0.0", "0.1", "5e-324", "9007199254740993.0", "NaN", "[Infinity]",
        '"\\ud800"', '"\\ud83d\\ude00"', '{"a":1,"a":2}', " 1 ", "\u00a0 1", "\ufeff1", "1 x",
        "[1,]", "01", "1.", "", '"a\tb"', '"\\u0000"', '"\\x"', "[" * 10_000, "nul",
    ],
)  # fmt: skip
def test_odd_text(text):
    assert outcome(parse_json, text.encode()) == outcome(by_json, text.encode())


@given(st.binary(max_size=20))
def test_any_bytes(data):
    assert outcome(parse_json, data) == outcome(by_json, data)


def test_without_the_faster_code(monkeypatch):
    monkeypatch.setattr(fast_json, "_parse", None)
    assert math.isnan(parse_json(b"[NaN]")[0])
    with pytest.raises(ValueError, match="Expecting"):
        parse_json(b"{")
