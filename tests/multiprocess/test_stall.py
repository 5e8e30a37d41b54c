"""A rank whose data never come ends all ranks, and is named. For rewards: test_step_calls.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_stream.train.watchdog import EXIT_STALLED
from tests.multiprocess.test_zero3 import free_port
from tests.stream.support import write_numbered_set

ROOT = Path(__file__).resolve().parents[2]
NUM_RANKS = 2

pytestmark = pytest.mark.multiprocess


def test_all_ranks_end_and_the_one_that_stalled_is_named(tmp_path):
    write_numbered_set(tmp_path / "shards", 24)
    port = free_port()
    ranks = [start(rank, port, tmp_path) for rank in range(NUM_RANKS)]
    try:
        told = [rank.communicate(timeout=60)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [EXIT_STALLED] * NUM_RANKS, told
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


def start(rank, port, folder):
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": NUM_RANKS, "MASTER_PORT": port}
    words = {name: str(value) for name, value in world.items()}
    return subprocess.Popen(
        [sys.executable, "tests/multiprocess/stall_probe.py", folder / "shards", folder / "stalls"],
        env={**os.environ, "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT), **words},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
