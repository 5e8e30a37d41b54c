"""A rank whose data never come ends all ranks, and is named. For rewards: test_step_calls.py."""

import json

import pytest

from grpo_stream.train.observe.watchdog import EXIT_STALLED
from tests.multiprocess.ranks import run_ranks
from tests.stream.support import write_numbered_set

pytestmark = pytest.mark.multiprocess


def test_all_ranks_end_and_the_one_that_stalled_is_named(tmp_path):
    write_numbered_set(tmp_path / "shards", 24)
    words = ["tests.multiprocess.stall_probe", tmp_path / "shards", tmp_path / "stalls"]
    told = run_ranks(lambda _: words, timeout=200, exit_code=EXIT_STALLED)
    waiting, stalled = (
        json.loads((tmp_path / f"stalls/rank-0000{rank}.json").read_text()) for rank in range(2)
    )
    assert waiting["stage"] == stalled["stage"] == "data_wait"
    assert waiting["collective"].startswith("all_gather")
    assert stalled["collective"] is None
    assert stalled["place"].startswith("_take (")
    assert len(stalled["in_use"]) == 2
    assert set(stalled["in_use"]).isdisjoint(waiting["in_use"])
    assert "stage data_wait" in told[1]
    assert "behind: rank 1 " in told[0]
    assert f"rank 0: in {waiting['collective']}, stage data_wait" in told[0]
    assert all(key in told[0] for key in stalled["in_use"])
    assert "the run has stalled" not in told[1]
