"""Without chance in it, an engine answers as transformers does: the same tokens, as probable."""

from types import SimpleNamespace

import torch

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.engine_inputs import (
    banning_kwargs,
    engine_images,
    engine_settings,
    pixel_limits,
)
from grpo_stream.train.models.processor import known_rule, load_processor
from grpo_stream.train.prefix.plain import plain_inputs
from grpo_stream.train.prefix.sampling.generation import suppressed_token_ids
from grpo_stream.train.vllm import Engine
from tests.train.prefix.sampling.test_generation import generation_config
from tests.train.support import (
    CPU,
    load_model,
    make_collator,
    make_mixed_stream,
    make_stream_sample,
)
from tests.vllm.engines import EXACT, make_engine

# Width and height, of whole cells in every family, and within its limits.
SIZES = [(448, 224), (224, 448), (448, 448), (672, 224), (224, 672), (448, 672)]
NUM_TOKENS = 16


def make_samples(processor):
    """Samples of one image each, and of one, none, two and three, in two orders."""
    return [
        *(make_stream_sample(number, size) for number, size in enumerate(SIZES)),
        *make_mixed_stream(processor, (3, 1, 2, 0)),
        *make_mixed_stream(processor, (2, 3)),
    ]


def test_samples_of_none_one_and_several_images(folder_of, family):
    folder = folder_of(family)
    processor = load_processor(folder)
    batch = make_collator(processor)(make_samples(processor))
    answers = answers_of_engine(folder, processor, batch)
    model = load_model(folder, is_prepared=False).eval()
    groups = PromptGroups.from_batch(batch, 1, CPU)
    lengths = {"min_new_tokens": NUM_TOKENS, "max_new_tokens": NUM_TOKENS}
    banned = suppressed_token_ids(processor.tokenizer)
    config = generation_config(processor, suppress_tokens=banned, **lengths)
    completions = [
        generate_plainly(model, groups.rows(number, number + 1), config)
        for number in range(len(batch["key"]))
    ]
    assert [answer.token_ids for answer in answers] == completions
    assert len(set(map(tuple, completions))) > 6  # the images make a difference
    for number, answer in enumerate(answers):
        found = [
            scored[token].logprob
            for token, scored in zip(answer.token_ids, answer.logprobs, strict=True)
        ]
        expected = log_probs_of(model, groups.rows(number, number + 1), completions[number])
        torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=0)


def generate_plainly(model, group, config):
    (prompt,) = group.prompt_ids
    inputs = plain_inputs(model, group, 1, 0)
    found = model.generate(input_ids=prompt[None], generation_config=config, **inputs)
    return found[0, len(prompt) :].tolist()


def answers_of_engine(folder, processor, batch):
    """Through the class that trl calls while training."""
    from vllm import SamplingParams

    rows = [
        {
            "prompt_token_ids": ids.tolist(),
            **({"multi_modal_data": {"image": images}} if images else {}),
        }
        for ids, images in zip(
            batch["prompt_ids"],
            engine_images(batch["pixel_values"], batch["key"], 1),
            strict=True,
        )
    ]
    end = processor.tokenizer.eos_token_id
    lengths = {"min_tokens": NUM_TOKENS, "max_tokens": NUM_TOKENS, "stop_token_ids": [end]}
    banned = banning_kwargs(suppressed_token_ids(processor.tokenizer), None)
    params = SamplingParams(temperature=0, logprobs=0, **lengths, **banned)
    rule = known_rule(processor.image_processor)
    with make_engine(folder, **engine_settings(rule), **EXACT) as llm:
        trls = SimpleNamespace(
            mode="colocate", llm=llm, generation_kwargs={}, sync_weights=None,
            tensor_parallel_size=1,
        )  # fmt: skip
        image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        engine = Engine(trls, image, pixel_limits(rule))  # compares the prompts, too
        engine.begin(batch["key"], 1, batch.get("short_ids"))
        outputs = trls.llm.generate(rows, params, use_tqdm=False)
    return [output.outputs[0] for output in outputs]


def log_probs_of(model, groups, completion):
    tokens = torch.tensor(completion)
    (prompt,) = groups.prompt_ids
    with torch.no_grad():
        logits = model(
            input_ids=torch.cat([prompt, tokens])[None],
            **plain_inputs(model, groups, 1, len(tokens)),
        ).logits
    scores = logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
    return scores.gather(1, tokens[:, None])[:, 0]
