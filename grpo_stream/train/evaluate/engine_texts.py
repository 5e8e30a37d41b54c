"""What a policy answers through a vLLM engine in this process."""

import copy
import os
from collections.abc import Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np

from grpo_stream.images import ResizeRule
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.train.batches.collate import PromptCollator
from grpo_stream.train.engine_inputs import (
    banning_kwargs,
    engine_images,
    engine_settings,
    pixel_limits,
)
from grpo_stream.train.evaluate.merged_adapter import merged_adapter
from grpo_stream.train.models.model_path import base_model_of
from grpo_stream.train.prefix.sampling.generation import suppressed_token_ids
from grpo_stream.train.vllm import Engine


class EngineTexts:
    """Answers of a colocated engine; a :class:`~.policy_texts.Texts`.

    Prompts are handed over by the classes that training uses: each once, with its images at the
    model's size, and the image tokens that the engine makes of them are counted.

    Args:
        llm: ``vllm.LLM`` with the policy's weights; ended by :meth:`close`.
        collator: Encodes prompts as in training.
        max_completion_length: Tokens per answer at most.

    Written against vLLM 0.30.
    """

    def __init__(self, llm: Any, collator: PromptCollator, max_completion_length: int) -> None:
        self.collator = collator
        tokenizer = collator.processor.tokenizer
        self._seeded = _SeededEngine(llm)
        own = SimpleNamespace(
            mode="colocate",
            llm=self._seeded,
            generation_kwargs={},
            sync_weights=None,
            tensor_parallel_size=1,  # of the ranks here, whatever the engine spans
        )
        image_token_id = tokenizer.convert_tokens_to_ids(collator.processor.image_token)
        limits = pixel_limits(collator.rule)
        self._engine = Engine(own, image_token_id, limits, is_tower_trained=False)
        banned = sorted({*suppressed_token_ids(tokenizer), image_token_id})
        self._params = {
            "max_tokens": max_completion_length,
            # The engine adds those of the model's generation_config.json by itself.
            "stop_token_ids": [tokenizer.eos_token_id],
            **banning_kwargs(banned, None),
        }

    def greedy(self, samples: Sequence[StreamSample]) -> list[str]:
        """See :class:`~.policy_texts.Texts`."""
        (texts,) = self._rounds(samples, 1, [None] * len(samples), temperature=0.0)
        return texts

    def sampled(
        self,
        samples: Sequence[StreamSample],
        num_samples: int,
        temperature: float,
        seed: Sequence[int],
    ) -> list[list[str]]:
        """See :class:`~.policy_texts.Texts`; other draws than those of transformers."""
        seeds = np.random.SeedSequence(seed).generate_state(len(samples)).tolist()
        return self._rounds(samples, num_samples, seeds, temperature=temperature)

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()

    def _rounds(
        self,
        samples: Sequence[StreamSample],
        num_samples: int,
        seeds: Sequence[int | None],
        temperature: float,
    ) -> list[list[str]]:
        from vllm import SamplingParams  # noqa: PLC0415 - an extra

        batch = self.collator(samples)
        rows = []
        images = engine_images(batch["pixel_values"], batch["key"], 1)
        for ids, own in zip(batch["prompt_ids"], images, strict=True):
            row: dict[str, Any] = {"prompt_token_ids": ids.tolist()}
            if own is not None:
                row["multi_modal_data"] = {"image": own if len(own) > 1 else own[0]}
            rows.append(row)
        params = SamplingParams(
            n=num_samples, temperature=temperature, top_p=1.0, top_k=0, **self._params
        )
        self._engine.begin(batch["key"], num_samples, batch.get("short_ids"))
        self._seeded.seeds = seeds
        # As trl hands them over: a row for every completion, of which one is passed on.
        repeated = [row for row in rows for _ in range(num_samples)]
        outputs = self._engine.generation.llm.generate(
            repeated, sampling_params=params, use_tqdm=False
        )
        tokenizer = self.collator.processor.tokenizer
        rounds = [[list(one.outputs[n].token_ids) for one in outputs] for n in range(num_samples)]
        return [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in rounds]


class _SeededEngine:
    """``vllm.LLM`` with a seed for each prompt: one of all would draw alike for all of a batch."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.seeds: Sequence[int | None] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def generate(self, prompts: list[Any], sampling_params: Any, **kwargs: Any) -> Any:
        """See ``vllm.LLM.generate``."""
        each = []
        for seed in self.seeds:
            own = copy.copy(sampling_params)
            own.seed = seed
            each.append(own)
        return self._llm.generate(prompts, sampling_params=each, **kwargs)


def make_engine(
    model: str,
    dtype: str,
    seed: int,
    rule: ResizeRule | None,
    *,
    gpu_memory_utilization: float,
    tensor_parallel_size: int,
    max_model_length: int | None,
) -> Any:
    """A ``vllm.LLM`` in this process, so that images are handed over without a copy.

    Args:
        model: Folder or hub id; a LoRA adapter is merged in this process's memory.
        dtype: Of the weights.
        seed: Of the engine.
        rule: By which images are resized; None where the model's processor does it.
        gpu_memory_utilization: Share of each GPU's memory that it takes.
        tensor_parallel_size: GPUs that it spans.
        max_model_length: Tokens of a prompt and its answer at most; None: the model's own context.
    """
    # Read when an engine is made: by default it would run in a process of its own.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM  # noqa: PLC0415 - an extra
    from vllm.platforms import current_platform  # noqa: PLC0415

    more: dict[str, Any] = {}
    if current_platform.is_cpu():
        # Of a prompt that is computed in parts vLLM (0.30) rewinds a seed's generator by an offset,
        # which torch's generators on the CPU do not have.
        more["enable_chunked_prefill"] = False
        # With a cache of prefixes it insists on such parts for a linear attention's states.
        more["enable_prefix_caching"] = False
    with ExitStack() as stack:
        if base_model_of(model):
            more |= stack.enter_context(merged_adapter(model, dtype))
        settings = {"model": model} | engine_settings(rule) | more
        return LLM(
            dtype=dtype,
            seed=seed,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
            max_model_len=max_model_length,
            **settings,
        )
