import dataclasses
import json

import pytest

from grpo_stream.errors import ConfigError, CursorError
from grpo_stream.order.cursor import Cursor

CURSOR = Cursor("d" * 64, seed=3, num_lanes=8, block_shards=4, epoch=2, batch_index=17)


BLEND = dataclasses.replace(CURSOR, digest="aa+bb", weights="7/10 3/10")
SEGMENTED = dataclasses.replace(CURSOR, segments=((16, 5), (4, 0)))


@pytest.mark.parametrize("cursor", [CURSOR, BLEND, SEGMENTED])
def test_round_trip_through_json(cursor):
    assert Cursor.from_dict(json.loads(json.dumps(cursor.to_dict()))) == cursor


def test_reads_version_1():
    saved = {
        "digest": "d" * 64,
        "seed": 3,
        "num_lanes": 8,
        "block_shards": 4,
        "epoch": 2,
        "batch_index": 17,
        "version": 1,
    }
    assert Cursor.from_dict(saved) == CURSOR
    with pytest.raises(CursorError, match="fields"):
        Cursor.from_dict(saved | {"segments": []})


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
        ({"weights": 1}, "weights=1 is damaged"),
        ({"segments": [[8]]}, "segments"),
        ({"segments": [[0, 1]]}, "segments"),
        ({"segments": [[8, -1]]}, "segments"),
        ({"segments": [[8, "1"]]}, "segments"),
        ({"segments": None}, "segments"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(CursorError, match=message):
        Cursor.from_dict(CURSOR.to_dict() | change)


@pytest.mark.parametrize("missing", ["epoch", "digest", "version", "segments"])
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
    CURSOR.check_same_order(SEGMENTED)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"digest": "e" * 64}, "manifest digest"),
        ({"seed": 4}, "seed: saved 4, now 3"),
        ({"num_lanes": 16}, "prompts per generation batch: saved 16, now 8"),
        ({"weights": "1/2 1/2"}, "weights of the data sets: saved '1/2 1/2', now '1'"),
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


class TestReopened:
    @pytest.mark.parametrize(
        ("batch_index", "before", "after"),
        [
            (17, (), ((8, 17),)),
            (0, (), ()),
            (3, ((16, 5),), ((16, 5), (8, 3))),
            (0, ((16, 5),), ((16, 5),)),
        ],
    )
    def test_begins_a_segment(self, batch_index, before, after):
        cursor = dataclasses.replace(CURSOR, batch_index=batch_index, segments=before)
        new = dataclasses.replace(CURSOR, batch_index=0, segments=after, num_lanes=12)
        assert cursor.reopened(12) == new

    def test_as_many_lanes_as_before(self):
        assert SEGMENTED.reopened(8) is SEGMENTED

    def test_no_lanes(self):
        with pytest.raises(ConfigError, match="at least 1"):
            CURSOR.reopened(0)

    def test_a_blend_that_has_begun(self):
        with pytest.raises(ConfigError, match="continue with 8"):
            BLEND.reopened(16)
        start = dataclasses.replace(BLEND, epoch=0, batch_index=0)
        assert start.reopened(16) == dataclasses.replace(start, num_lanes=16)
