import copy

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.prefix.backbone import prompt_positions
from grpo_stream.train.prefix.packing import (
    pack_groups,
    score_packed,
    shared_prefix_obstacle,
)
from tests.train.support import make_groups

MIXED = ((56, 56), (112, 84), (28, 112))
LENGTHS = (3, 7, 1, 5, 4, 2, 6, 7)  # ragged; the longest is 7


def make_completions(groups, lengths, vocab_size=400):
    """Random completions of ``lengths``, padded on the right: ids and mask."""
    generator = torch.Generator().manual_seed(0)
    shape = (groups.num_rows, max(lengths))
    ids = torch.randint(20, vocab_size, shape, generator=generator)
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    return ids.masked_fill(mask == 0, 0), mask


def lengths_for(groups):
    return [LENGTHS[row % len(LENGTHS)] for row in range(groups.num_rows)]


def score_one_by_one(model, groups, ids, mask):
    """The meaning of it all: every completion behind its own prompt, no padding, no packing."""
    log_probs, entropies = torch.zeros(ids.shape), torch.zeros(ids.shape)
    row = 0
    for prompt, size in enumerate(groups.sizes):
        for _ in range(size):
            length = int(mask[row].sum())
            own = groups.prompt_ids[prompt]
            types = groups.mm_token_type_ids[prompt]
            logits = model(
                input_ids=torch.cat([own, ids[row, :length]])[None],
                mm_token_type_ids=torch.nn.functional.pad(types, (0, length))[None],
                **groups.media[prompt],
            ).logits[0, len(own) - 1 : len(own) - 1 + length]
            all_log_probs = logits.log_softmax(dim=-1)
            chosen = all_log_probs.gather(1, ids[row, :length, None])[:, 0]
            log_probs[row, :length] = chosen
            entropies[row, :length] = -(all_log_probs.exp() * all_log_probs).sum(dim=-1)
            row += 1
    return log_probs, entropies


def score_together(model, groups, ids, mask, *, compute_entropy=True, attention="two_part"):
    positions = prompt_positions(model.model, groups)
    packed = pack_groups(groups, ids, mask, positions, pad_token_id=0, attention=attention)
    return score_packed(model, packed, groups, mask, compute_entropy=compute_entropy)


def gradients(model, log_probs):
    weights = torch.linspace(-1, 1, log_probs.numel()).reshape(log_probs.shape)
    model.zero_grad()
    (log_probs * weights).sum().backward()
    named = model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize(
    ("sizes", "num_generations", "lengths"),
    [
        (MIXED[:1], 1, [4]),
        (MIXED[:1], 2, [4, 6]),
        (MIXED[:1], 8, list(LENGTHS)),
        (MIXED, 1, [3, 7, 1]),
        (MIXED, 2, [3, 7, 1, 5, 4, 2]),
        (MIXED[:2], 8, [*LENGTHS, *reversed(LENGTHS)]),
        (MIXED[:2], 2, [3, 0, 5, 4]),
        (MIXED[:2], 2, [0, 0, 5, 4]),
        (MIXED[:2], 2, [1, 1, 1, 1]),
    ],
    ids=["1x1", "1x2", "1x8", "3x1", "3x2", "2x8", "an empty one", "an empty group", "one token"],
)
def test_equals_every_completion_alone(model, processor, sizes, num_generations, lengths):
    groups = make_groups(processor, sizes, num_generations)
    ids, mask = make_completions(groups, lengths)
    expected = score_one_by_one(model, groups, ids, mask)
    expected_gradients = gradients(model, expected[0])
    for attention in ("two_part", "dense"):
        log_probs, entropies = score_together(model, groups, ids, mask, attention=attention)
        torch.testing.assert_close(log_probs, expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(entropies, expected[1], rtol=0, atol=1e-5)
        found = gradients(model, log_probs)
        for name, gradient in expected_gradients.items():
            error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-3)
            assert error < 1e-5, (attention, name)


def test_a_group_that_is_cut_in_two(model, processor):
    groups = make_groups(processor, MIXED[:2], 4)
    ids, mask = make_completions(groups, lengths_for(groups))
    with torch.no_grad():
        whole, _ = score_together(model, groups, ids, mask)
        parts = [
            score_together(model, groups.rows(a, b), ids[a:b], mask[a:b])[0]
            for a, b in ((0, 3), (3, 6), (6, 8))
        ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


def test_completions_do_not_see_each_other(model, processor):
    groups = make_groups(processor, MIXED[:1], 3)
    ids, mask = make_completions(groups, [5, 5, 5])
    changed = ids.clone()
    changed[1] = changed[1].flip(0)
    with torch.no_grad():
        before, _ = score_together(model, groups, ids, mask)
        after, _ = score_together(model, groups, changed, mask)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_the_vision_tower_runs_once_per_group(model, processor):
    groups = make_groups(processor, MIXED, 8)
    ids, mask = make_completions(groups, lengths_for(groups))
    num_patches = []
    hook = model.model.visual.register_forward_hook(
        lambda _module, args, kwargs, _output: num_patches.append(
            (args or tuple(kwargs.values()))[0].size(0)
        ),
        with_kwargs=True,
    )
    with torch.no_grad():
        score_together(model, groups, ids, mask)
    hook.remove()
    assert num_patches == [sum(w * h // 196 for w, h in MIXED)]


def test_entropies_on_demand(model, processor):
    groups = make_groups(processor)
    ids, mask = make_completions(groups, [2, 3])
    with torch.no_grad():
        assert score_together(model, groups, ids, mask, compute_entropy=False)[1] is None


class TestLayout:
    """One small case by hand: prompts of 3 and 2 tokens, completions of 2, 1 and 3."""

    GROUPS = PromptGroups(
        prompt_ids=[torch.tensor([11, 12, 13]), torch.tensor([21, 22])],
        mm_token_type_ids=[torch.zeros(3), torch.zeros(2)],
        media=[{}, {}],
        sizes=[2, 1],
    )
    IDS = torch.tensor([[31, 32, 0], [41, 0, 0], [51, 52, 53]])
    MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])

    POSITIONS = [torch.tensor([[0, 1, 5]] * 3), torch.tensor([[0, 3]] * 3)]  # noqa: RUF012

    def pack(self, attention):
        return pack_groups(self.GROUPS, self.IDS, self.MASK, self.POSITIONS, 9, attention)

    def test_one_row(self):
        packed = self.pack("two_part")
        none = -100
        assert packed.input_ids.tolist() == [[11, 12, 13, 31, 13, 21, 22, 51, 52]]
        assert packed.shift_labels.tolist() == [[none, none, 31, 32, 41, none, 51, 52, 53]]
        for axis in packed.position_ids:  # they restart behind the prefix
            assert axis.tolist() == [[0, 1, 5, 6, 5, 0, 3, 4, 5]]
        assert packed.attention_mask is None

    def test_parts(self):
        first, second = self.pack("two_part").shared_prefix.spans
        assert (first.start, first.prefix_length) == (0, 2)
        assert first.own[:, 0].tolist() == [0, 2]
        assert first.own.flatten()[first.kept].tolist() == [0, 1, 2]
        assert first.mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
        assert (second.start, second.prefix_length) == (5, 1)
        assert second.own.tolist() == [[0, 1, 2]]
        assert second.kept.tolist() == [0, 1, 2]

    def test_a_row_for_each_group(self):
        packed = self.pack("dense")
        none = -100
        assert packed.input_ids.tolist() == [[11, 12, 13, 31, 13], [21, 22, 51, 52, 9]]
        assert packed.shift_labels.tolist() == [
            [none, none, 31, 32, 41],
            [none, 51, 52, 53, none],
        ]
        for axis in packed.position_ids:
            assert axis.tolist() == [[0, 1, 5, 6, 5], [0, 3, 4, 5, 0]]
        assert packed.shared_prefix is None

    def test_mask(self):
        mask = self.pack("dense").attention_mask
        assert mask.shape == (2, 1, 5, 5)
        assert mask[0, 0].int().tolist() == [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 0, 0, 1],
        ]
        # Nobody but padding sees padding, and it sees something: no row of the softmax is empty.
        assert mask[1, 0].int().tolist() == [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [0, 0, 0, 0, 1],
        ]

    def test_block_mask(self):
        block_mask = self.pack("flex").attention_mask
        assert block_mask.shape == (1, 1, 9, 9)
        found = create_mask(block_mask.mask_mod, 1, None, 9, 9, device="cpu")[0, 0]
        rows = self.pack("dense").attention_mask[:, 0]
        assert torch.equal(found[:5, :5], rows[0])
        assert torch.equal(found[5:, 5:], rows[1, :4, :4])
        assert not found[:5, 5:].any()
        assert not found[5:, :5].any()


class TestObstacle:
    def config(self, model, **changes):
        config = copy.deepcopy(model.config)
        for name, value in changes.items():
            setattr(config, name, value)
        return config

    def test_none(self, model):
        assert shared_prefix_obstacle(model.config) is None

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"model_type": "glm4v"}, "model_type 'glm4v' is not one of qwen2_5_vl, qwen2_vl"),
            ({"_attn_implementation": "flash_attention_2"}, "knows no shared prefix; use 'sdpa'"),
        ],
    )
    def test_is_named(self, model, changes, words):
        assert words in str(shared_prefix_obstacle(self.config(model, **changes)))

    def test_sliding_window(self, model):
        config = self.config(model)
        config.get_text_config().use_sliding_window = True
        assert "use_sliding_window" in str(shared_prefix_obstacle(config))
