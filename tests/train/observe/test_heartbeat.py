import json
import os
import socket
import time

import pytest

from grpo_stream.train.observe.heartbeat import (
    ENDED,
    Beat,
    Heartbeat,
    missing_ranks,
    read_beats,
    table,
)


def beat(rank, at, world_size=3, **changes):
    fields = {"host": f"host{rank}", "pid": 1, "global_step": 7, "stage": "rollout"}
    return Beat(rank, world_size, **{**fields, "time": at, **changes})


def test_a_rank_says_where_it_stands(tmp_path):
    Heartbeat(tmp_path, 3, 8).beat(41, "rollout", [f"key{n}" for n in range(20)])
    (found,) = read_beats(tmp_path)
    assert (found.rank, found.world_size, found.global_step) == (3, 8, 41)
    assert (found.stage, found.host, found.pid) == ("rollout", socket.gethostname(), os.getpid())
    assert found.keys == [f"key{n}" for n in range(8)]
    assert abs(found.time - time.time()) < 60
    assert [path.name for path in (tmp_path / "heartbeat").iterdir()] == ["rank-00003.json"]


def test_it_beats_at_most_once_in_a_while(tmp_path):
    heart = Heartbeat(tmp_path, 0, 1)
    heart.beat(1, "step")
    heart.beat(2, "step")
    assert read_beats(tmp_path)[0].global_step == 1
    heart.beat(2, ENDED)
    assert read_beats(tmp_path)[0].stage == ENDED
    often = Heartbeat(tmp_path, 0, 1, seconds=0.0)
    often.beat(3, "step")
    often.beat(4, "save")
    assert read_beats(tmp_path)[0].global_step == 4


def test_a_folder_that_cannot_be_written_costs_no_run(tmp_path):
    (tmp_path / "heartbeat").touch()
    Heartbeat(tmp_path, 0, 1).beat(1, "step")
    assert read_beats(tmp_path) == []


def test_who_never_spoke():
    assert missing_ranks([beat(0, 5.0), beat(2, 6.0)]) == [1]
    # Files of an earlier, larger run are in the folder, too.
    assert missing_ranks([beat(0, 9.0, world_size=2), beat(3, 5.0, world_size=4)]) == [1]
    assert missing_ranks([]) == []
    # Of very many ranks the first of each node speaks.
    nodes = [beat(rank, 5.0, world_size=512) for rank in range(0, 512, 8) if rank != 16]
    assert missing_ranks(nodes) == [16]


def test_the_most_silent_comes_first():
    _, first, second = table([beat(0, 90.0), beat(1, 40.0, keys=["a", "b", "c"])], 100.0).split(
        "\n"
    )
    assert first.split() == ["1", "60", "7", "rollout", "host1", "a", "b"]
    assert second.split() == ["0", "10", "7", "rollout", "host0"]


def test_a_file_is_plain_json(tmp_path):
    Heartbeat(tmp_path, 0, 1).beat(1, "step")
    assert json.loads((tmp_path / "heartbeat/rank-00000.json").read_text())["stage"] == "step"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"rank": "a"}'])
def test_a_file_that_is_none_is_passed_over_and_named(tmp_path, caplog, content):
    Heartbeat(tmp_path, 0, 2).beat(1, "step")
    (tmp_path / "heartbeat/rank-00001.json").write_bytes(content)
    found = read_beats(tmp_path)
    assert [one.rank for one in found] == [0]
    assert "rank-00001.json is no heartbeat" in caplog.text
    assert len(caplog.records) == 1
    assert missing_ranks(found) == [1]


def test_of_values_that_are_no_heartbeats_none_is_shown(tmp_path):
    fields = vars(beat(0, 5.0))
    (tmp_path / "heartbeat").mkdir()
    for number, wrong in enumerate(
        [{"time": None}, {"host": 3}, {"keys": None}, {"keys": [1]}, {"global_step": "x"}]
    ):
        path = tmp_path / f"heartbeat/rank-{number:05d}.json"
        path.write_text(json.dumps(fields | wrong))
    assert read_beats(tmp_path) == []
