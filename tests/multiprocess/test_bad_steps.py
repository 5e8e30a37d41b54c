"""A loss or gradient of one rank that is not finite: no rank takes the step, all count it."""

import json

import pytest

from grpo_stream.train.models.tiny import make_tiny_policy
from grpo_stream.train.setup.memory.memory_estimate import Zero, state_memory
from tests.multiprocess.ranks import run_ranks
from tests.shards.support import make_sample, write_set

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow(reason="eleven short trainings, on two ranks and on one"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad_steps")
    make_tiny_policy(folder / "policy", ["Click on the red circle", "(1, 2)"])
    samples = [make_sample(f"{n:06d}", "Click on the red circle", (56, 56)) for n in range(32)]
    write_set(folder / "shards", samples, 8)
    return folder / "policy", folder / "shards"


@pytest.mark.parametrize(
    ("stage", "num_ranks", "precision"),
    [
        ("none", 2, "float32"),
        ("none", 2, "bf16"),
        ("0", 2, "float32"),
        ("0", 2, "bf16"),
        ("2", 2, "bf16"),
        ("3", 2, "float32"),
        ("3", 2, "bf16"),
        ("3", 1, "float32"),
        ("1", 2, "bf16, float32 sums"),
        ("2", 2, "bf16, float32 sums"),
        ("3", 2, "bf16, float32 sums"),
    ],
)
def test_no_rank_takes_the_step(data, tmp_path, stage, num_ranks, precision):
    words = ["tests.multiprocess.bad_step_probe", *data, tmp_path, stage, precision]
    told = run_ranks(lambda _: words, timeout=200, num_ranks=num_ranks)
    seen = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(num_ranks)]
    for rank in seen:
        assert rank["num_bad"] == 2
        assert rank["are_finite"]
        if stage in ("2", "3"):  # ds_configs/README.md; two micro-steps are added up here
            is_float32 = precision != "bf16"
            assert rank["sums"] == ("torch.float32" if is_float32 else "torch.bfloat16")
        if stage == "3":  # they take what the estimate says
            e, sums = (4 if precision == "float32" else 2), (4 if "sums" in precision else None)
            cut = Zero(1, element_bytes=e, gradient_bytes=sums)
            expected = state_memory(rank["num_weights"], cut).gradients
            assert (
                rank["gradient_bytes"]
                == expected
                == (e if sums is None else sums) * rank["num_weights"]
            )
        assert rank["is_kept"] == [False, True, True, False]
        last = num_ranks - 1
        assert f"the reward its is inf for sample b{last} " in rank["reward"]
    assert "global step 2: the loss of samples 0000" in told[0]
    assert "global step 3: the gradient of samples 0000" in told[0]
