"""Under ZeRO-3 every rank calls the same modules equally often; a reward that stalls is named."""

import json

import pytest

from grpo_stream.train.models.tiny import make_tiny_policy
from grpo_stream.train.observe.watchdog import EXIT_STALLED
from tests.multiprocess.ranks import run_ranks
from tests.shards.support import write_set
from tests.train.support import make_mixed_sample

SIZES = [(28, 28), (140, 56), (60, 112), (84, 84), (400, 90), (33, 200), (56, 28), (112, 112)]
NUM_IMAGES = (1, 0, 2, 1)

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow(reason="three global steps under ZeRO-3, and twenty seconds of a stall"),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the ranks printed, and the folder they wrote to."""
    folder = tmp_path_factory.mktemp("calls")
    make_tiny_policy(folder / "policy", ["Click on the red circle", "(1, 2)"])
    samples = [
        make_mixed_sample(
            f"{number:06d}",
            [SIZES[number % 8], SIZES[number % 5]][: NUM_IMAGES[number % 4]],
            prompt=f"Click on the red circle{' now' * number}",
        )
        for number in range(24)
    ]
    write_set(folder / "shards", samples, 4)
    words = ["tests.multiprocess.step_probe", folder / "policy", folder / "shards", folder]
    return folder, run_ranks(lambda _: words, timeout=200, exit_code=EXIT_STALLED)


def test_every_rank_calls_every_module_equally_often(told):
    folder, _ = told
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2))
    # They had reason not to: other images or none, and completions of other lengths.
    assert max(first["lengths"]) == 8 > max(second["lengths"])
    assert len(set(first["sizes"] + second["sizes"])) >= 4
    assert "[]" in first["sizes"] + second["sizes"]
    assert first["sizes"] != second["sizes"]
    assert first["calls"] == second["calls"]
    tower = "model.visual.blocks.0"
    layer = "model.language_model.layers.0"
    # The proof that groups give plain rows' numbers comes with the first batch's inputs.
    stages = [("device_input", "policy"), ("rollout", "policy")]
    stages += [("scoring", "reference"), ("update", "policy")]
    called = {name for name in first["calls"] if name.endswith((tower, layer))}
    assert called == {
        f"{stage}: {model}.{module}" for stage, model in stages for module in (tower, layer)
    }
    # Rank 1 needed a second rollout in each of 2 steps: a prefill, and 8 tokens behind it.
    assert first["calls"][f"rollout: policy.{tower}"] == 4
    assert first["calls"][f"rollout: policy.{layer}"] == 4 * (1 + 8)


def test_a_reward_that_stalls_ends_both_ranks_and_is_named(told):
    folder, (waiting, stalled) = told
    report = json.loads((folder / "stalls/rank-00001.json").read_text())
    assert (report["stage"], report["global_step"]) == ("rewards", 2)
    assert report["place"].startswith("rewards_that_stall (")
    assert len(report["in_use"]) == 2
    assert "no progress within step_timeout_seconds=20: rank 1 " in stalled
    assert "behind: rank 1 " in waiting
    assert "at rewards_that_stall (" in waiting
    assert "rank 0: in all_gather" in waiting
