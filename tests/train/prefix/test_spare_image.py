"""Prompts of one, no, two and three images: all ways give a completion's own numbers."""

import pytest
import torch

from grpo_stream.train.prefix.backbone import freeze_vision_tower
from grpo_stream.train.prefix.ways import FORKED, PLAIN, Packed
from tests.train.prefix.sampling.test_generation import generation_config
from tests.train.prefix.test_forked import difference
from tests.train.prefix.test_packing import (
    gradients,
    lengths_for,
    make_completions,
    score_one_by_one,
)
from tests.train.support import make_mixed_groups

PACKED = Packed("two_part", 0)
WAYS = {"packed": PACKED, "forked": FORKED, "plain": PLAIN}
ORDERS = {"mixed": (0, 1, 2), "text first": (1, 3, 0), "text alone": (1, 1), "several": (3, 2)}


def tower_calls(model):
    """Patches of each call of the vision tower from here on."""
    found: list[int] = []

    def note(_module, args, kwargs):
        found.append(len([*args, *kwargs.values()][0]))

    model.model.visual.register_forward_pre_hook(note, with_kwargs=True)
    return found


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_equals_every_completion_alone(model, processor, way, order):
    groups = make_mixed_groups(processor, order)
    ids, mask = make_completions(groups, lengths_for(groups))
    expected = score_one_by_one(model, groups, ids, mask)
    expected_gradients = gradients(model, expected[0])
    prepared = way.prepare(model, groups, torch.no_grad)
    log_probs, entropies = way.score(model, prepared, ids, mask, compute_entropy=True)
    torch.testing.assert_close(log_probs, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(entropies, expected[1], rtol=0, atol=1e-5)
    assert difference(gradients(model, log_probs), expected_gradients) < 1e-5


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_sampling_greedily(model, processor, way):
    groups = make_mixed_groups(processor, (0, 1, 2))
    config = generation_config(processor, max_new_tokens=5)
    found = way.sample(model, groups, config, 0)
    expected = torch.cat([PLAIN.sample(model, own, config, 0) for own in groups.each()])
    assert torch.equal(found, expected)


def test_a_frozen_tower_is_called_once(model, processor):
    freeze_vision_tower(model)
    groups = make_mixed_groups(processor, (1, 0, 3, 1))
    ids, mask = make_completions(groups, lengths_for(groups))
    expected, _ = PACKED.score(model, groups, ids, mask, compute_entropy=False)
    calls = tower_calls(model)
    prepared = PACKED.prepare(model, groups, torch.no_grad)
    for rows in (slice(0, 2), slice(2, 8)):  # the first ones are of a text
        part = prepared.rows(rows.start, rows.stop)
        found, _ = PACKED.score(model, part, ids[rows], mask[rows], compute_entropy=False)
        torch.testing.assert_close(found, expected[rows], rtol=0, atol=1e-5)
    assert len(calls) == 1


class TestSeveralRanks:
    """Whatever a rank's images, it calls the tower as often as all others."""

    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
    def test_a_text_calls_the_tower_with_no_effect(self, model, processor, way):
        alone, with_others = (
            make_mixed_groups(processor, (1, 1), num_ranks=number) for number in (1, 2)
        )
        ids, mask = make_completions(alone, lengths_for(alone))
        calls = tower_calls(model)
        expected, _ = way.score(model, alone, ids, mask, compute_entropy=False)
        assert calls == []
        found, _ = way.score(model, with_others, ids, mask, compute_entropy=False)
        assert len(calls) == (1 if way is PACKED else 2)
        assert torch.equal(found, expected)
        found = gradients(model, found)
        tower = [gradient for name, gradient in found.items() if ".visual." in name]
        assert len(tower) == sum(1 for _ in model.model.visual.parameters())
        assert not any(gradient.any() for gradient in tower)

    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
    def test_sampling_calls_it_too(self, model, processor, way):
        calls = tower_calls(model)
        config = generation_config(processor, max_new_tokens=3)
        counts = []
        for order in ((1,), (2,)):
            calls.clear()
            way.sample(model, make_mixed_groups(processor, order, num_ranks=2), config, 0)
            counts.append(len(calls))
        assert counts[0] == counts[1] == 1

    def test_a_frozen_tower(self, model, processor):
        freeze_vision_tower(model)
        groups = make_mixed_groups(processor, (1,), num_ranks=2)
        calls = tower_calls(model)
        prepared = PACKED.prepare(model, groups, torch.no_grad)
        assert len(calls) == 1
        ids, mask = make_completions(groups, lengths_for(groups))
        PACKED.score(model, prepared, ids, mask, compute_entropy=False)
        assert len(calls) == 1
