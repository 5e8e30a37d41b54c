import pytest
import torch
from transformers import GenerationConfig

from grpo_stream.train.backbone import backbone_of
from grpo_stream.train.rollout import (
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
    images = groups.pixel_values.split(groups.image_grid_thw.prod(dim=-1).tolist())
    completions = []
    for ids, types, image, grid in zip(
        groups.prompt_ids, groups.mm_token_type_ids, images, groups.image_grid_thw, strict=True
    ):
        sequences = model.generate(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            mm_token_type_ids=types[None],
            pixel_values=image,
            image_grid_thw=grid[None],
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


def test_backbone(model):
    assert backbone_of(model) is model.model
