"""The formulas against the tensors that a tiny policy really keeps."""

from dataclasses import replace

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from grpo_stream.train.models.policy import policy_config
from grpo_stream.train.prefix.attention import use_shared_prefix_attention
from grpo_stream.train.setup.memory.group_memory import Batch
from grpo_stream.train.setup.memory.memory_estimate import Zero, activation_bytes, estimate
from grpo_stream.train.setup.memory.model_sizes import MetaModel, find_config
from tests.train.prefix.test_packing import make_completions, score_together
from tests.train.support import make_groups

GB = 10**9
MODEL, BATCH = MetaModel(find_config("3B")), Batch()


def deeper(folder, model_class, layers, blocks):
    config = policy_config(folder)
    config.text_config.num_hidden_layers = layers
    config.text_config.layer_types = ["full_attention"] * layers
    config.vision_config.depth = blocks
    model = model_class(config)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    use_shared_prefix_attention(model)
    return model.train(), MetaModel(config)


def saved_bytes(model, run):
    """Bytes of the tensors that autograd keeps, weights apart."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_activations_of_packed_groups(tiny_folder, processor, model, gradient_checkpointing):
    groups = make_groups(processor, ((280, 280), (280, 280)), 4)
    ids, mask = make_completions(groups, [24] * groups.num_rows)
    batch = Batch(len(groups.prompt_ids[0]), 100, 24, 4, groups_per_micro_step=2)
    zero = Zero(1, element_bytes=4, gradient_checkpointing=gradient_checkpointing)
    measured, computed = [], []
    # The difference of two depths: what is outside of layers and blocks is not in the formula.
    for layers, blocks in ((2, 1), (4, 3)):
        own, counted = deeper(tiny_folder, type(model), layers, blocks)
        if gradient_checkpointing:
            own.activation_checkpointing_enable({"use_reentrant": False})
        measured.append(saved_bytes(own, lambda own=own: score_together(own, groups, ids, mask)))
        computed.append(activation_bytes(counted, zero, batch))
    assert [len(own["pixel_values"]) for own in groups.media] == [400, 400]
    assert computed[1] - computed[0] == pytest.approx(measured[1] - measured[0], rel=0.05)


@pytest.mark.parametrize("name", ["3B", "7B"])
def test_sixteen_bytes_a_weight_are_shared_out(name):
    model = MetaModel(find_config(name))
    num_weights = model.num_weights
    alone, shared = (estimate(model, Zero(ranks), BATCH) for ranks in (1, 8))
    assert alone.states == 16 * num_weights
    assert shared.states == pytest.approx(2 * num_weights, rel=1e-6)
    assert shared.rollout_weights == alone.rollout_weights == 2 * num_weights


def test_the_figures_of_the_docs():
    """Those of 3B on 8 GPUs, in GB (docs/scale.md)."""
    found = estimate(MODEL, Zero(8), BATCH)
    peaks = [found.states, found.update_peak, found.rollout_peak]
    assert [round(peak / GB, 1) for peak in peaks] == [7.5, 12.4, 15.8]


def test_offload_moves_states_to_the_host():
    zero = Zero(8, offload_optimizer=True)
    found, without = estimate(MODEL, zero, BATCH), estimate(MODEL, Zero(8), BATCH)
    assert found.states + found.host == without.states
    assert (found.states, found.host) == (without.weights, without.gradients + without.optimizer)
    everything = estimate(MODEL, replace(zero, offload_param=True), BATCH)
    assert (everything.states, everything.host) == (0, without.states)


@pytest.mark.parametrize(
    ("term", "changes", "factor"),
    [
        ("weights", {"num_ranks": 16}, 1 / 2),
        ("weights", {"with_reference": True}, 2),
        ("gathered", {"max_live_weights": 5 * 10**8}, 1 / 2),
        ("kv_cache", {"element_bytes": 4}, 2),
        ("rollout_weights", {"gather_for_generation": False}, 2 * 10**9 / 7_509_245_952),
    ],
)
def test_what_a_setting_changes(term, changes, factor):
    before = estimate(MODEL, Zero(8), BATCH)
    after = estimate(MODEL, replace(Zero(8), **changes), BATCH)
    assert getattr(after, term) == pytest.approx(factor * getattr(before, term), rel=1e-6)


def test_the_largest_module_is_gathered_at_least():
    found = estimate(MODEL, Zero(8, max_live_weights=10**6), BATCH)
    assert found.gathered == 2 * 151_936 * 2048


def test_the_prefix_is_kept_once():
    few, many = (
        estimate(MODEL, Zero(8), replace(BATCH, num_generations=group)).kv_cache
        for group in (1, 65)
    )
    a_token = 2 * 2 * 36 * 256
    assert few == a_token * 4 * (1300 + 64)
    assert many - few == a_token * 4 * 64 * 64


def test_peaks_are_sums():
    found = estimate(MODEL, Zero(8), BATCH)
    sums = found.to_dict()
    assert sums["update_peak"] == found.states + found.gathered + found.activations + found.head
    assert sums["peak"] == max(found.update_peak, found.rollout_peak)
    assert 7 * GB < found.states < 8 * GB
