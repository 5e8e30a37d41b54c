"""The shared prefix on one and two ZeRO-3 ranks over gloo, against trl's path on the same ranks."""

import json
from pathlib import Path

import pytest

from grpo_stream.train.models.tiny import make_tiny_policy
from tests.multiprocess.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
NUM_BATCHES = 2  # generation batches of each run, of 2 global steps each

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow(reason="five trainings under ZeRO-3 on one rank, and again on two"),
]


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def seen(request, tmp_path_factory):
    """What each rank saw of each run."""
    folder = tmp_path_factory.mktemp("prefix")
    records = json.loads((ROOT / "data/screenshots/records.json").read_text())[:8]
    (folder / "records.json").write_text(json.dumps(records))
    make_tiny_policy(folder / "tiny", [record["prompt"] for record in records])
    words = ["tests.multiprocess.prefix_probe", folder]
    run_ranks(lambda _: words, timeout=400, num_ranks=request.param)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("name", ["shared", "checkpointing"])
def test_equals_trls_own_path(seen, name):
    for rank in seen:
        found, expected = rank[name], rank["plain"]
        assert found["shared_prefix"]
        assert not expected["shared_prefix"]
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert found["weights"] == pytest.approx(expected["weights"], abs=1e-6)
    if len(seen) == 2:
        assert seen[0]["shared"]["losses"] != seen[1]["shared"]["losses"]


def test_a_frozen_tower_runs_once_per_generation_batch_on_every_rank(seen):
    for rank in seen:
        assert rank["frozen"]["num_tower_calls"] == NUM_BATCHES
        # Once for the old log-probabilities, once for each of two iterations.
        assert rank["shared"]["num_tower_calls"] == NUM_BATCHES * 3
        assert rank["frozen"]["losses"][0] == pytest.approx(rank["plain"]["losses"][0], abs=1e-5)


@pytest.mark.parametrize("seen", [2], indirect=True, ids=["two ranks"])
def test_a_rank_that_has_ended_samples_along_until_the_other_has(seen):
    lengths = [[len(row) for row in rank["sampled"]["completions"][0]] for rank in seen]
    assert set(lengths[1]) == {1}
    assert max(lengths[0]) == 8
