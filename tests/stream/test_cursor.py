import dataclasses
import json

import pytest

from grpo_stream.errors import CursorError
from grpo_stream.stream.cursor import Cursor

CURSOR = Cursor("d" * 64, seed=3, num_lanes=8, block_shards=4, epoch=2, batch_index=17)


def test_round_trip_through_json():
    assert Cursor.from_dict(json.loads(json.dumps(CURSOR.to_dict()))) == CURSOR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3"),
        ({"version": None}, "version None"),
        ({"rank": 0}, "rank"),
        ({"epoch": -1}, "epoch=-1"),
        ({"batch_index": "17"}, "batch_index='17'"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"num_lanes": True}, "num_lanes=True"),
        ({"digest": 3}, "digest=3"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(CursorError, match=message):
        Cursor.from_dict(CURSOR.to_dict() | change)


@pytest.mark.parametrize("missing", ["epoch", "digest", "version"])
def test_refuses_a_missing_field(missing):
    state = CURSOR.to_dict()
    del state[missing]
    with pytest.raises(CursorError, match=missing):
        Cursor.from_dict(state)


@pytest.mark.parametrize("state", [None, [], "cursor", 3])
def test_refuses_what_is_no_object(state):
    with pytest.raises(CursorError, match="no cursor"):
        Cursor.from_dict(state)


def test_another_place_in_the_same_order():
    CURSOR.check_same_order(dataclasses.replace(CURSOR, epoch=0, batch_index=0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"digest": "e" * 64}, "manifest digest"),
        ({"seed": 4}, "seed: saved 4, now 3"),
        ({"num_lanes": 16}, "prompts per generation batch: saved 16, now 8"),
        ({"block_shards": 1}, "block_shards: saved 1, now 4"),
    ],
)
def test_names_the_setting_that_differs(change, words):
    with pytest.raises(CursorError, match=words) as info:
        CURSOR.check_same_order(dataclasses.replace(CURSOR, **change))
    assert str(info.value).count(": saved ") == 1


def test_names_all_settings_that_differ():
    other = dataclasses.replace(CURSOR, seed=4, block_shards=1)
    with pytest.raises(CursorError, match=r"seed: .*block_shards: "):
        CURSOR.check_same_order(other)
