import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.policy import load_policy
from grpo_stream.train.prefix.attention import (
    SHARED_PREFIX,
    GroupSpan,
    TwoPart,
    use_shared_prefix_attention,
)
from grpo_stream.train.prefix.packing import PackedGroups, pack_groups
from grpo_stream.train.prefix.sampling import group_cache
from grpo_stream.train.prefix.sampling.group_cache import GroupCache

HEADS, KV_HEADS, WIDTH, SCALING = 6, 2, 8, 0.3


def states(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, WIDTH, generator=generator, dtype=torch.float64)


def pack(prompts, completions, attention) -> PackedGroups:
    """Groups of the given lengths; tokens do not matter here."""
    sizes = [len(group) for group in completions]
    lengths = torch.tensor([length for group in completions for length in group])
    longest = int(lengths.max())
    groups = PromptGroups(
        prompt_ids=[torch.ones(length, dtype=torch.long) for length in prompts],
        mm_token_type_ids=[torch.zeros(length, dtype=torch.long) for length in prompts],
        media=[{} for _ in prompts],
        sizes=sizes,
    )
    mask = torch.arange(longest) < lengths[:, None]
    ids = torch.ones(len(lengths), longest, dtype=torch.long)
    positions = [torch.zeros(3, length, dtype=torch.long) for length in prompts]
    return pack_groups(groups, ids, mask, positions, 0, attention)


def reference(query, key, value, **changes):
    return scaled_dot_product_attention(
        query, key, value, scale=SCALING, enable_gqa=True, **changes
    )


class TestTwoPart:
    @pytest.mark.parametrize(
        ("prompts", "completions"),
        [
            ([9], [[4, 4, 4]]),
            ([9], [[4, 1, 7]]),
            ([9], [[3]]),
            ([9, 5], [[4, 1, 7], [2, 2]]),
            ([1], [[4, 2]]),
            ([9, 1, 4], [[1, 1], [5, 0], [0, 3]]),
            ([5, 7], [[0, 0], [3, 2]]),
        ],
    )
    def test_equals_the_dense_mask(self, prompts, completions):
        two_part = pack(prompts, completions, "two_part")
        layout = two_part.shared_prefix
        assert layout is not None
        length = two_part.input_ids.size(1)
        inputs = [states(1, heads, length) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        rows = pack(prompts, completions, "dense")
        is_token = [
            prompt - 1 + sum(group) for prompt, group in zip(prompts, completions, strict=True)
        ]
        start, expected = 0, []
        assert isinstance(rows.attention_mask, torch.Tensor)
        for row, count in enumerate(is_token):
            part = [one[:, :, start : start + count] for one in inputs]
            mask = rows.attention_mask[row, :, :count, :count]
            expected.append(reference(*part, attn_mask=mask))
            start += count
        assert start == length
        found = layout.attend(0, inputs[0], inputs[1], inputs[2], SCALING, 0.0)
        torch.testing.assert_close(found, torch.cat(expected, dim=2))

    def test_keys_hold_no_products_between_completions(self):
        layout = pack([9], [[4, 1, 7]], "two_part").shared_prefix
        assert layout is not None
        (span,) = layout.spans
        assert span.mask.shape == (7, 8 + 7)

    def test_an_empty_row_is_possible(self):
        span = GroupSpan(
            0, 5, torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
        )
        inputs = [states(1, heads, 5) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        expected = reference(*inputs, is_causal=True)
        found = TwoPart([span]).attend(0, inputs[0], inputs[1], inputs[2], SCALING, 0.0)
        torch.testing.assert_close(found, expected)


def sampled(query, prefixes, own):
    """Attention while sampling, token by token.

    Args:
        query: Shape (prompts, heads, completions, width).
        prefixes: Keys and values of each prompt, shape (heads, tokens, width).
        own: Of the completions, shape (prompts, heads, tokens, completions, width).
    """
    lengths = [key.size(1) for key, _ in prefixes]
    row = [torch.cat(parts, dim=1)[None] for parts in zip(*prefixes, strict=True)]
    layer = SimpleNamespace(keys=row[0], values=row[1])
    number = query.size(2)
    cache = GroupCache.from_prefill([layer], lengths, number, query.size(1), own[0].size(2))
    for token in range(own[0].size(2)):
        if token:
            cache.advance()
        key, value = cache.update(*(one[:, :, token] for one in own), 0)
    return cache.attend(0, query, key, value, SCALING, 0.0)


def repeated(prefixes, own, prompt, completion):
    """Keys and values of one completion alone, shape (1, heads, tokens, width)."""
    pairs = zip(prefixes[prompt], own, strict=True)
    return [
        torch.cat([shared, one[prompt, :, :, completion]], dim=1)[None] for shared, one in pairs
    ]


@pytest.mark.parametrize("shares_heads", [{"cpu"}, set()], ids=["CPU", "CUDA"])
@pytest.mark.parametrize("num_own", [1, 4, 70])
@pytest.mark.parametrize("size", [1, 3])
def test_sampling_attends_to_the_prefix_and_the_own_completion(
    size, num_own, shares_heads, monkeypatch
):
    monkeypatch.setattr(group_cache, "_SHARES_HEADS", shares_heads)
    prefixes = [[states(1, KV_HEADS, length)[0] for _ in range(2)] for length in (3, 17)]
    own = [states(2, KV_HEADS, num_own * size).unflatten(2, (num_own, size)) for _ in range(2)]
    query = states(2, HEADS, size)
    found = sampled(query, prefixes, own)
    for prompt in range(2):
        for completion in range(size):
            alone = query[prompt : prompt + 1, :, completion : completion + 1]
            expected = reference(alone, *repeated(prefixes, own, prompt, completion))
            other = found[prompt : prompt + 1, :, completion : completion + 1]
            torch.testing.assert_close(other, expected, rtol=0, atol=1e-6)


def sampled_like(query, prefix, own):
    """Outputs of one token of each completion, and of the kernel that scores.

    Args:
        query: Shape (completions, heads, 1, width).
        prefix: Keys and values, shape (1, heads, tokens, width).
        own: The same, shape (completions, heads, tokens, width).
    """
    by_token = [one.permute(1, 2, 0, 3)[None] for one in own]
    row = query[:, :, 0].transpose(0, 1)[None]
    found = sampled(row, [[one[0] for one in prefix]], by_token)[0].transpose(0, 1)[:, :, None]
    seen = [
        torch.cat([shared.expand(len(query), -1, -1, -1), one], dim=2)
        for shared, one in zip(prefix, own, strict=True)
    ]
    wide = reference(query.double(), *(one.double() for one in seen))
    return found.double(), reference(query, *seen).double(), wide


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_products_are_sampled_as_they_are_scored(dtype):
    """Keys with a large part in common, as trained models have; of half a type's digits."""
    numbers = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=numbers)

    query = (random(4, HEADS, 1, 64) + 8).to(dtype)
    prefix = [(random(1, KV_HEADS, 300, 64) + bias).to(dtype) for bias in (40, 0)]
    own = [(random(4, KV_HEADS, 5, 64) + bias).to(dtype) for bias in (40, 0)]
    found, scored, exact = sampled_like(query, prefix, own)
    error, unavoidable = ((one - exact).abs().mean() for one in (found, scored))
    assert error < 2 * unavoidable


def test_float16_does_not_overflow():
    query = torch.full((2, HEADS, 1, 64), 60.0, dtype=torch.float16)
    prefix = [torch.full((1, KV_HEADS, 3, 64), 30.0, dtype=torch.float16)] * 2  # product: 115,200
    own = [one.expand(2, -1, -1, -1) for one in prefix]
    found, _, exact = sampled_like(query, prefix, own)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)


def test_only_the_text_model_changes_and_nothing_is_saved(model, tmp_path):
    text, vision = model.config.text_config, model.config.vision_config
    assert text._attn_implementation == SHARED_PREFIX
    assert vision._attn_implementation == "sdpa"
    use_shared_prefix_attention(model)
    assert text._attn_implementation == SHARED_PREFIX
    model.save_pretrained(tmp_path)
    assert SHARED_PREFIX not in (tmp_path / "config.json").read_text()
    again = load_policy(tmp_path, dtype=torch.float32)
    assert again.config.text_config._attn_implementation == "sdpa"


def test_without_a_prefix_it_is_plain_sdpa(model):
    ids = torch.randint(20, 400, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    plain = copy.deepcopy(model)
    plain.set_attn_implementation({"text_config": "sdpa"})
    with torch.no_grad():
        found, expected = (one(input_ids=ids, attention_mask=mask).logits for one in (model, plain))
    assert torch.equal(found, expected)
