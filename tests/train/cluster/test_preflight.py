"""Two real ranks over gloo: what one lacks, both say, and rank 0 shows a table."""

import json

import pytest

from grpo_stream.train.cluster.node_checks import node_name
from grpo_stream.train.cluster.preflight import RunChecks, run_preflight
from grpo_stream.train.cluster.preflight_report import Needs, PreflightError
from tests.multiprocess.ranks import NUM_RANKS, run_ranks
from tests.stream.support import write_numbered_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_numbered_set(tmp_path_factory.mktemp("set"), 24, per_shard=4)


@pytest.fixture(scope="module")
def seen(folder, tmp_path_factory):
    """What rank 0 and rank 1 saw."""
    out = tmp_path_factory.mktemp("out")
    run_ranks(lambda _: ["tests.train.cluster.preflight_probe", folder, out], timeout=200)
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(NUM_RANKS)]


@pytest.mark.multiprocess
def test_a_run_that_can_start(seen):
    first, second = (one["good"] for one in seen)
    assert (first["error"], second["error"], second["said"]) == (None, None, [])
    table, last = first["said"]
    title, _, *rows = table.splitlines()
    assert title.startswith("Preflight: 2 ranks on 2 nodes")
    assert [row.split()[:2] for row in rows] == [[node_name(), "0"], [node_name(), "1"]]
    assert abs(float(rows[1].split()[-1])) < 1000  # milliseconds between two clocks that are one
    assert "all-reduce" in last
    assert first["seconds"] < 20


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("store", "store http://127.0.0.1:9/bucket/set: found unavailable"),
        ("setting", "learning_rate: found 2e-06; needed: 1e-06, as rank 0 has it"),
        ("disk", "GB free; needed: at least 1000000000.0 GB"),
        ("output", "is no folder; needed: a folder that can be written"),
    ],
)
def test_what_a_node_lacks_stops_all(seen, case, words):
    first, second = (one[case] for one in seen)
    assert first["error"] == second["error"]
    assert words in first["error"]
    assert f"node {node_name()} (rank 1): " in first["error"]
    assert len(first["said"]) == 1  # the table, and no all-reduce
    assert "ranks on 2 nodes" in first["said"][0]


@pytest.mark.multiprocess
def test_a_silent_rank_is_named(seen):
    first, second = (one["silent"] for one in seen)
    assert first["error"].startswith("rank 1: preflight: found 1 of 2 ranks silent for 1 s")
    assert second["error"] == first["error"]
    assert first["seconds"] < 10


def test_one_process_alone(folder, tmp_path):
    said: list[str] = []
    run_preflight(RunChecks({}, [str(folder)], str(tmp_path)), say=said.append)
    assert "1 ranks on 1 node" in said[0]
    checks = RunChecks({}, [], str(tmp_path), needs=Needs(output_per_rank=10**18))
    with pytest.raises(PreflightError, match="disk of output_dir"):
        run_preflight(checks, say=said.append)
