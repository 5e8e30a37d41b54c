"""Evaluation through an engine, with a stand-in that keeps what it is handed."""

import dataclasses
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.stream.ordered_reader import OrderedReader
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from grpo_stream.train.evaluate import second_look
from grpo_stream.train.evaluate.answer_prompts import answer_share
from grpo_stream.train.evaluate.answer_ways import Answerer, AnswerWay
from grpo_stream.train.evaluate.engine_texts import EngineTexts
from grpo_stream.train.evaluate.evaluation_arguments import EvaluateArguments
from grpo_stream.train.evaluate.evaluation_plan import check_engine
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.models.tiny import make_tiny_policy
from tests.train.support import TASK_TEXTS, make_collator, make_mixed_stream, write_mixed_set
from tests.train.vllm_stand_in import SamplingParams, num_image_tokens


class StandIn:
    """``vllm.LLM`` that repeats image tokens as its processor would, and answers in turn."""

    def __init__(self, processor, num_extra_tokens=0):
        self.processor, self.num_extra_tokens = processor, num_extra_tokens
        self.prompts, self.params = [], []
        self.is_open = True
        core = SimpleNamespace(shutdown=self._shut_down)
        self.llm_engine = SimpleNamespace(engine_core=core)

    def _shut_down(self):
        self.is_open = False

    def generate(self, prompts, sampling_params, use_tqdm):
        assert len(prompts) == len(sampling_params)
        self.prompts += prompts
        self.params += sampling_params
        return [self._output(*pair) for pair in zip(prompts, sampling_params, strict=True)]

    def _output(self, prompt, params):
        images = prompt.get("multi_modal_data", {"image": []})["image"]
        images = images if isinstance(images, list) else [images]
        image_token, ids = self.processor.image_token_id, []
        counts = iter(images)
        for token in prompt["prompt_token_ids"]:
            if token == image_token:
                limits = prompt["mm_processor_kwargs"]
                count = num_image_tokens(self.processor, next(counts), limits)
                ids += [token] * (count + self.num_extra_tokens)
            else:
                ids.append(token)
        assert next(counts, None) is None
        tokenizer = self.processor.tokenizer
        outputs = []
        for number in range(params.n):
            x = 10 + (params.seed or 0) % 40 + number
            text = tokenizer(f"({x}, {x})")["input_ids"]
            outputs.append(SimpleNamespace(token_ids=[*text, tokenizer.eos_token_id]))
        return SimpleNamespace(prompt_token_ids=ids, outputs=outputs)


@pytest.fixture
def engine(processor, monkeypatch):
    package = ModuleType("vllm")
    package.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    return StandIn(processor)


@pytest.fixture(scope="module")
def source(shapes):
    return ShardSource(str(shapes.shards))


def answers_of(engine, source, way):
    collator = make_collator(engine.processor)
    texts = EngineTexts(engine, collator, 12)
    reader = OrderedReader(source, collator.rule, 3)
    found = answer_share(reader, Answerer(texts, way), title=None).answers
    texts.close()
    return found


def test_each_prompt_is_handed_over_once_and_the_engine_ends(engine, source):
    found = answers_of(engine, source, AnswerWay())
    assert [answer.text for answer in found] == ["(10, 10)"] * len(engine.prompts)
    assert not engine.is_open
    image_token = engine.processor.image_token_id
    for prompt, params in zip(engine.prompts, engine.params, strict=True):
        assert prompt["prompt_token_ids"].count(image_token) == 1  # it repeats the token itself
        assert (params.n, params.temperature, params.seed, params.max_tokens) == (1, 0, None, 12)
        assert params.logit_bias[image_token] == -100.0
        assert params.stop_token_ids == [engine.processor.tokenizer.eos_token_id]


def test_several_answers_come_from_one_prompt_each_with_a_seed_of_its_own(engine, source):
    way = AnswerWay(num_samples=4, temperature=0.7, seed=3)
    found = answers_of(engine, source, way)
    assert len(engine.prompts) == len(found)
    assert all(len(answer.sampled) == 4 for answer in found)
    assert {(params.n, params.temperature, params.top_k) for params in engine.params} == {
        (4, 0.7, 0)
    }
    assert len({params.seed for params in engine.params}) == len(found)
    again = StandIn(engine.processor)
    answers_of(again, source, way)
    assert [params.seed for params in again.params] == [params.seed for params in engine.params]


def test_a_closer_look_hands_over_the_crop(engine, tmp_path, monkeypatch):
    """Of samples of one image, none, two and three: the first look's images, then the crop's."""
    monkeypatch.setattr(second_look, "LEAST_SIDE", 28)
    source = ShardSource(str(write_mixed_set(tmp_path / "mixed", 4)))
    found = answers_of(engine, source, AnswerWay(zoom=2.0))
    assert [answer.first_look is not None for answer in found] == [True, False, True, True]
    handed = []
    for prompt in engine.prompts:
        images = prompt.get("multi_modal_data", {"image": []})["image"]
        handed.append(images if isinstance(images, list) else [images])
    # Batches of three: three first looks, two second ones, then one of each.
    assert [len(images) for images in handed] == [1, 0, 2, 1, 2, 3, 3]
    for before, after in ((0, 3), (2, 4), (5, 6)):
        *same, looked_at = zip(handed[before], handed[after], strict=True)
        assert all(np.array_equal(one, other) for one, other in same)
        assert not np.array_equal(*looked_at)


@pytest.mark.parametrize("family", ["internvl", "idefics3", "glm4v"])
def test_a_family_with_a_processor_of_its_own_is_handed_over_before_it_repeats(
    tmp_path, monkeypatch, family
):
    """Tokens of tiles stand between those of an image: only the processor tells the short form."""
    processor = load_processor(make_tiny_policy(tmp_path / "policy", TASK_TEXTS, family=family))
    collator = make_collator(processor)
    handed: list[tuple[Any, Any]] = []

    def generate(prompts, sampling_params, use_tqdm):
        handed.extend(zip(prompts, sampling_params, strict=True))
        ended = SimpleNamespace(token_ids=[processor.tokenizer.eos_token_id])
        return [
            SimpleNamespace(prompt_token_ids=ids.tolist(), outputs=[ended])
            for ids in batch["prompt_ids"]
        ]

    package = ModuleType("vllm")
    package.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    samples = make_mixed_stream(processor)
    batch = collator(samples)
    EngineTexts(SimpleNamespace(generate=generate), collator, 4).greedy(samples)
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    for (prompt, params), number in zip(handed, (1, 0, 2, 3), strict=True):
        assert prompt["prompt_token_ids"].count(image_token) == number
        assert "mm_processor_kwargs" not in prompt  # it has no limits to be told
        assert params.logit_bias[image_token] == -100.0


def test_another_number_of_image_tokens_is_named(engine, source):
    wrong = StandIn(engine.processor, num_extra_tokens=1)
    with pytest.raises(GrpoStreamError, match=r"sample '000000': vLLM makes .* image tokens"):
        answers_of(wrong, source, AnswerWay())


@pytest.mark.parametrize(
    ("changes", "world_size", "words"),
    [
        ({"num_processes": 2}, 1, "use_vllm=True.* vllm_tensor_parallel_size=2"),
        ({}, 4, "use_vllm=True.* vllm_tensor_parallel_size=4"),
        ({"attn_implementation": "sdpa"}, 1, "attn_implementation='sdpa'.* leave it at None"),
        ({"device": "cpu"}, 1, "device='cpu'.* leave it at auto"),
        ({"vllm_gpu_memory_utilization": 1.5}, 1, "vllm_gpu_memory_utilization=1.5.* 0.9"),
        ({"vllm_tensor_parallel_size": 0}, 1, "vllm_tensor_parallel_size=0"),
        ({"vllm_max_model_length": 0}, 1, "vllm_max_model_length=0"),
    ],
)
def test_what_does_not_go_with_an_engine_is_refused(monkeypatch, changes, world_size, words):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    args = EvaluateArguments(model="m", report="r", use_vllm=True, **changes)
    with pytest.raises(ConfigError, match=words):
        check_engine(args, World(0, world_size))


def test_an_engine_needs_its_package_and_whole_weights(monkeypatch, tmp_path):
    args = EvaluateArguments(model=str(tmp_path), report="r", use_vllm=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install"):
        check_engine(args, World(0, 1))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    check_engine(args, World(0, 1))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    check_engine(args, World(0, 1))  # merged in this process, where workers of others find nothing
    over_two = dataclasses.replace(args, vllm_tensor_parallel_size=2)
    with pytest.raises(ConfigError, match=r"size=2.*LoRA adapter.* use 1, or .*launch/export.py"):
        check_engine(over_two, World(0, 1))
