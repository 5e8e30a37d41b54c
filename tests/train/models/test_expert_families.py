"""Mixtures of experts: their balancing loss, in each way and beside trl's own trainer."""

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from grpo_stream.train.models.tiny import make_tiny_policy
from grpo_stream.train.prefix.router_balance import RouterRecord
from grpo_stream.train.prefix.ways import FORKED, PLAIN
from tests.train.models.test_families import (
    assert_equal,
    make_args,
    make_family_groups,
    train_ours,
    train_theirs,
    vector,
)
from tests.train.prefix.test_packing import LENGTHS, make_completions
from tests.train.support import TASK_TEXTS, load_model

pytestmark = pytest.mark.slow(reason="four trainings of each of two families")
FAMILIES = ("qwen3_vl_moe", "qwen3_5_moe")
COEFFICIENT = 5.0
"""Large, so that the loss is felt beside the policy's."""


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    made = tmp_path_factory.mktemp(request.param)
    return make_tiny_policy(made, TASK_TEXTS, family=request.param)


def balance(model, way, groups, ids, mask):
    """The loss, and the gradient that it gives every weight."""
    record = RouterRecord(model)
    way.score(model, groups, ids, mask, compute_entropy=False, router=record)
    model.zero_grad()
    loss = record.loss()
    loss.backward()
    return loss.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("lengths", [list(LENGTHS), [1] * 8, [3, 0] * 4])
def test_a_prompt_counts_for_each_of_its_completions(folder, lengths):
    _, groups = make_family_groups(folder, 4)
    model = load_model(folder, is_prepared=False)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ids, mask = make_completions(groups, lengths)
    expected, expected_gradients = balance(model, PLAIN, groups, ids, mask)
    assert expected > 1
    for is_checkpointed in (False, True):
        if is_checkpointed:
            model.train().activation_checkpointing_enable()
        found, gradients = balance(model, FORKED, groups, ids, mask)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert gradients.keys() == expected_gradients.keys()
        error = (vector(gradients) - vector(expected_gradients)).norm()
        assert error < 1e-5 * vector(expected_gradients).norm()


def test_a_step_is_trls(folder, shapes, tmp_path):
    changes = {"router_aux_loss_coef": COEFFICIENT}
    found = {}
    for way in ("forked", "off"):
        args = make_args(tmp_path, **changes)
        found[way], samples, texts = train_ours(folder, shapes, args, shared_prefix=way)
    without, *_ = train_ours(folder, shapes, make_args(tmp_path), shared_prefix="forked")
    args = make_args(tmp_path, shuffle_dataset=False, **changes)
    expected = train_theirs(folder, args, samples, texts)
    for one in found.values():
        assert_equal(one, expected)
    assert abs(without[0] - expected[0]) > 1
