"""This trainer beside ``trl.GRPOTrainer`` itself: the same numbers from a fraction of the work."""

import pytest
import torch
from peft import LoraConfig

from tests.train.side_by_side import SideBySide
from tests.train.support import load_model

LORA = {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8}

CASES = {
    "dapo": {"loss_type": "dapo"},
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "cispo": {"loss_type": "cispo"},
    "sapo": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "eight": {"num_generations": 8},
    "kl": {"beta": 0.1},
    "iterations": {"num_iterations": 2, "learning_rate": 0.5},
    "entropy mask": {"top_entropy_quantile": 0.5},
    "temperature": {"temperature": 0.7},
    "checkpointing": {"gradient_checkpointing": True},
    "frozen": {"freeze_vision_tower": True, "beta": 0.1},
    "lora": {"peft_config": LORA, "beta": 0.1, "num_iterations": 2, "learning_rate": 0.5},
    "lora, checkpointing": {"peft_config": LORA, "gradient_checkpointing": True},
    "dense": {"shared_prefix_attention": "dense"},
}


@pytest.fixture(scope="module")
def pair(tiny_folder, processor, tmp_path_factory):
    return SideBySide(tiny_folder, processor, tmp_path_factory.mktemp("pair"))


def run_both(pair, settings):
    runs = []
    for run in (pair.ours, pair.theirs):
        changes = dict(settings)
        if "peft_config" in changes:
            changes["peft_config"] = LoraConfig(**changes["peft_config"])
        if run == pair.theirs:
            changes.pop("shared_prefix_attention", None)
        runs.append(run(**changes))
    return runs


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_the_same_numbers(pair, settings):
    ours, theirs = run_both(pair, settings)
    assert len(theirs.losses) == len(theirs.log_probs) == len(theirs.gradients) == 2
    for name in ("log_probs", "entropies"):
        for found, expected in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            assert found.keys() == expected.keys()
            for completion, values in expected.items():
                torch.testing.assert_close(found[completion], values, rtol=0, atol=1e-5)
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-5)
    for found, expected in zip(ours.gradients, theirs.gradients, strict=True):
        assert expected.norm() > 1e-3
        assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_a_whole_run_with_given_completions_ends_at_the_same_weights(pair):
    settings = {"max_steps": 8, "learning_rate": 0.2, "beta": 0.02}
    ours, theirs = run_both(pair, settings)
    start = dict(load_model(pair.policy, is_prepared=False).named_parameters())
    for name, weight in theirs.weights.items():
        moved = (weight - start[name]).norm()
        assert moved > 0, name
        assert (ours.weights[name] - weight).norm() < 1e-4 * moved + 1e-6, name
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-5)


def test_bfloat16_is_as_far_from_float32_as_trls_own(pair):
    exact = pair.theirs(max_steps=1)
    ours, theirs = run_both(pair, {"max_steps": 1, "bf16": True})
    assert distance(theirs, exact) > 1e-3
    assert distance(ours, exact) < 1.25 * distance(theirs, exact)
    gradient = exact.gradients[0]
    errors = [(run.gradients[0] - gradient).norm() / gradient.norm() for run in (ours, theirs)]
    assert errors[0] < 1.25 * errors[1]


def distance(run, exact):
    """Root mean square of the difference between log-probabilities."""
    (found,), (expected,) = run.log_probs, exact.log_probs
    errors = torch.cat([found[key] - values for key, values in expected.items()])
    return errors.square().mean().sqrt()
