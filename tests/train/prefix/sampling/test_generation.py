from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.prefix.backbone import encode_images
from grpo_stream.train.prefix.sampling.generation import (
    generate_groups,
    suppressed_token_ids,
    trim_completions,
)
from tests.train.support import make_groups

MIXED = ((56, 56), (112, 84), (28, 112), (140, 28))


def generation_config(processor, **changes):
    tokenizer = processor.tokenizer
    settings = {
        "do_sample": False,
        "max_new_tokens": 8,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "disable_compile": True,
    }
    return GenerationConfig(**(settings | changes))


def generate_alone(model, groups, config):
    """Each prompt by plain ``generate``, without padding or a shared prefill."""
    completions = []
    for ids, types, media in zip(
        groups.prompt_ids, groups.mm_token_type_ids, groups.media, strict=True
    ):
        sequences = model.generate(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            mm_token_type_ids=types[None],
            **media,
            generation_config=config,
        )
        completions.append(sequences[0, len(ids) :].tolist())
    return completions


def generate(model, groups, config):
    return generate_groups(model, groups, config, config.pad_token_id)


class TestGreedy:
    @pytest.mark.parametrize("num_generations", [1, 3])
    def test_equals_plain_generate(self, model, processor, num_generations):
        groups = make_groups(processor, MIXED, num_generations)
        assert len({len(ids) for ids in groups.prompt_ids}) > 1
        config = generation_config(processor)
        eos = [processor.tokenizer.eos_token_id]
        alone = [trim_completions(torch.tensor([c]), eos)[0]
                 for c in generate_alone(model, groups, config)]  # fmt: skip
        together = trim_completions(generate(model, groups, config), eos)
        assert together == [row for row in alone for _ in range(num_generations)]
        assert len({tuple(row) for row in alone}) > 1  # the prompts make a difference

    def test_a_second_batch_is_not_disturbed_by_the_first(self, model, processor):
        config = generation_config(processor)
        small = make_groups(processor, MIXED[:1], 2)
        first = generate(model, small, config)
        generate(model, make_groups(processor, MIXED, 3), config)
        assert torch.equal(generate(model, small, config), first)

    def test_plain_forwards_are_not_disturbed(self, model, processor):
        groups = make_groups(processor, MIXED[:1], 2)
        config = generation_config(processor)
        before = generate_alone(model, groups, config)
        generate(model, make_groups(processor, MIXED, 3), config)
        assert generate_alone(model, groups, config) == before


def test_sampled_completions_of_a_group_differ_and_are_repeatable(model, processor):
    groups = make_groups(processor, MIXED[:2], 4)
    config = generation_config(processor, do_sample=True, temperature=1.0, top_k=0)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(generate(model, groups, config))
    assert torch.equal(*runs)
    assert len({tuple(row) for row in runs[0].tolist()}) > 4


def generate_padded(model, groups, config):
    """The usual way: every prompt once per completion, padded on the left, by ``generate``."""
    ids = [
        ids for ids, size in zip(groups.prompt_ids, groups.sizes, strict=True) for _ in range(size)
    ]
    longest = max(map(len, ids))
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side="left")
    sequences = model.generate(
        input_ids=pad(ids, padding_value=config.pad_token_id),
        attention_mask=pad([torch.ones_like(row) for row in ids]),
        mm_token_type_ids=groups.token_types(longest, 0),
        **PromptGroups.joined([one for one in groups.each() for _ in range(one.num_rows)]).images(),
        generation_config=config,
    )
    return sequences[:, longest:]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.5},
        {"min_p": 0.02},
        {"repetition_penalty": 1.5},
        {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1},
        {"min_new_tokens": 6, "bad_words_ids": [[30, 31]]},
        {"do_sample": False, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 1},
    ],
    ids=lambda changes: ", ".join(changes) or "plain",
)
def test_options_of_sampling_are_generates_own(model, processor, changes):
    groups = make_groups(processor, MIXED, 3)
    config = generation_config(processor, **{"do_sample": True, "top_k": 0, **changes})
    sampled = []
    for way in (generate, generate_padded):
        torch.manual_seed(0)
        sampled.append(way(model, groups, config))
    assert torch.equal(*sampled)
    assert len({tuple(row) for row in sampled[0].tolist()}) > 2


class ForceTokens(LogitsProcessor):
    """Notes the scores of every step and lets one token of each row be taken."""

    def __init__(self, tokens):
        self.tokens, self.noted = tokens, []

    def __call__(self, input_ids, scores):
        forced = self.tokens[:, len(self.noted), None]
        self.noted.append(scores.log_softmax(dim=-1))
        return torch.full_like(scores, -torch.inf).scatter(1, forced, 0)


def test_logits_of_given_continuations_are_those_of_plain_generation(model, processor):
    groups = make_groups(processor, MIXED, 2)
    config = generation_config(processor)
    tokens = torch.randint(
        20, 400, (groups.num_rows, 8), generator=torch.Generator().manual_seed(0)
    )
    noted = []
    plain = model.generate
    for way in (generate, generate_padded):
        force = ForceTokens(tokens)
        model.generate = partial(plain, logits_processor=[force])
        assert torch.equal(way(model, groups, config), tokens)
        noted.append(torch.stack(force.noted))
    torch.testing.assert_close(*noted, rtol=0, atol=1e-5)


def count_forwards(model):
    """Tokens of each of the text model's forwards, and patches of the tower's."""
    texts, patches = [], []
    model.model.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: texts.append(kwargs["inputs_embeds"].size(1)),
        with_kwargs=True,
    )
    model.model.visual.register_forward_pre_hook(
        lambda _module, args, _kwargs: patches.append(len(args[0])), with_kwargs=True
    )
    return texts, patches


def test_stops_when_all_have_ended(model, processor):
    groups = make_groups(processor, MIXED[:2], 2)
    texts, patches = count_forwards(model)
    prefixes = sum(len(ids) - 1 for ids in groups.prompt_ids)  # in one row, without padding
    ends = list(range(len(processor.tokenizer)))  # whatever comes first
    sampled = generate(model, groups, generation_config(processor, eos_token_id=ends))
    assert sampled.shape == (4, 1)
    assert texts == [prefixes, 2]  # a row is a prompt, its tokens are of its completions
    assert patches == [len(groups.images()["pixel_values"])]


def test_features_of_the_tower_in_place_of_pixels(model, processor):
    groups = make_groups(processor, MIXED, 2)
    config = generation_config(processor)
    expected = generate(model, groups, config)
    known = replace(groups, image_features=encode_images(model, groups))
    _, patches = count_forwards(model)
    assert torch.equal(generate(model, known, config), expected)
    assert patches == []


def test_suppressed_tokens_are_never_sampled(model, processor):
    groups = make_groups(processor, MIXED[:1], 64)
    vision = torch.tensor(suppressed_token_ids(processor.tokenizer))
    with torch.no_grad():  # such tokens would come every time
        model.lm_head.weight[vision] += 10 * model.lm_head.weight.abs().max()
    sampling = {"do_sample": True, "top_k": 0, "max_new_tokens": 4}
    free = generate(model, groups, generation_config(processor, **sampling))
    assert torch.isin(free, vision).any()
    config = generation_config(processor, **sampling, suppress_tokens=vision.tolist())
    assert not torch.isin(generate(model, groups, config), vision).any()


def test_groups_of_different_sizes_are_refused(model, processor):
    groups = make_groups(processor, MIXED[:2], 4).rows(1, 8)
    with pytest.raises(ValueError, match="unpack"):
        generate(model, groups, generation_config(processor))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([5, 6, 1, 0, 0], [5, 6, 1]),
        ([5, 1, 6, 1, 0], [5, 1]),
        ([5, 2, 1, 0, 0], [5, 2]),
        ([1, 0, 0, 0, 0], [1]),
        ([5, 6, 7, 8, 9], [5, 6, 7, 8, 9]),
        ([5, 6, 7, 8, 1], [5, 6, 7, 8, 1]),
    ],
)
def test_trim_completions(row, expected):
    assert trim_completions(torch.tensor([row, [1, 0, 0, 0, 0]]), [1, 2]) == [expected, [1]]


def test_the_vision_tokens(processor):
    tokens = processor.tokenizer.convert_ids_to_tokens(suppressed_token_ids(processor.tokenizer))
    assert set(tokens) >= {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"}
    assert not set(tokens) & {"<|im_end|>", "<|endoftext|>"}
