"""What a policy answers, from its weights in this process: texts without control words."""

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import GenerationConfig

from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.train.batches.collate import PromptCollator
from grpo_stream.train.batches.groups import PromptGroups, pad_left
from grpo_stream.train.prefix.plain import sample_plain
from grpo_stream.train.prefix.sampling.generation import suppressed_token_ids, trim_completions


class Texts(Protocol):
    """A policy that answers batches of samples."""

    @property
    def collator(self) -> PromptCollator:
        """Encodes the prompts, as in training."""

    def greedy(self, samples: Sequence[StreamSample]) -> list[str]:
        """A text for each sample, without chance in it."""

    def sampled(
        self,
        samples: Sequence[StreamSample],
        num_samples: int,
        temperature: float,
        seed: Sequence[int],
    ) -> list[list[str]]:
        """``num_samples`` times a text for each sample, by a seed of any length.

        They are drawn from the whole distribution, as trl draws in training.
        """


class PolicyTexts:
    """Answers of a policy that transformers computes.

    Args:
        model: A policy on its device; left in evaluation mode.
        collator: Encodes prompts as in training.
        max_completion_length: Tokens per answer at most.
    """

    def __init__(self, model: Any, collator: PromptCollator, max_completion_length: int) -> None:
        self.collator = collator
        self._model = model.eval()
        self._tokenizer = collator.processor.tokenizer
        self._config = greedy_config(model, self._tokenizer, max_completion_length)

    def greedy(self, samples: Sequence[StreamSample]) -> list[str]:
        """See :class:`Texts`."""
        return generate_texts(self._model, self._tokenizer, self._prompts(samples), self._config)

    def sampled(
        self,
        samples: Sequence[StreamSample],
        num_samples: int,
        temperature: float,
        seed: Sequence[int],
    ) -> list[list[str]]:
        """See :class:`Texts`; the process's own random numbers stay as they were."""
        config = sampling(self._config, temperature)
        prompts = self._prompts(samples)
        device = next(self._model.parameters()).device
        rounds = []
        for draw in np.random.SeedSequence(seed).generate_state(num_samples).tolist():
            with torch.random.fork_rng([] if device.type == "cpu" else [device]):
                torch.manual_seed(draw)
                rounds.append(generate_texts(self._model, self._tokenizer, prompts, config))
        return rounds

    def _prompts(self, samples: Sequence[StreamSample]) -> PromptGroups:
        device = next(self._model.parameters()).device
        return PromptGroups.from_batch(self.collator(samples), 1, device)


def generate_texts(
    model: Any, tokenizer: Any, prompts: PromptGroups, config: GenerationConfig
) -> list[str]:
    """One answer to each of the prompts, without control words."""
    if prompts.types_name == "mm_token_type_ids":
        rows = [_generate_together(model, prompts, config, tokenizer.pad_token_id)]
    else:  # padding and a batch's tensors are each family's own affair: prompts stay alone
        alone = [prompts.rows(row, row + 1) for row in range(len(prompts.prompt_ids))]
        rows = [sample_plain(model, group, config) for group in alone]
    completions = [one for row in rows for one in trim_completions(row, config.eos_token_id)]
    texts: list[str] = tokenizer.batch_decode(completions, skip_special_tokens=True)
    return texts


def _generate_together(
    model: Any, prompts: PromptGroups, config: GenerationConfig, pad: int
) -> torch.Tensor:
    """Answers of a family whose images follow each other in a batch: (prompts, longest answer)."""
    ids = pad_left(prompts.prompt_ids, pad)
    with torch.no_grad():
        sequences: torch.Tensor = model.generate(
            input_ids=ids,
            attention_mask=pad_left([torch.ones_like(row) for row in prompts.prompt_ids], 0),
            # Without it M-RoPE falls back to text positions, silently.
            mm_token_type_ids=pad_left(prompts.mm_token_type_ids, 0),
            **prompts.images(),
            generation_config=config,
        )
    return sequences[:, ids.size(1) :]


def greedy_config(model: Any, tokenizer: Any, max_completion_length: int) -> GenerationConfig:
    """Greedy sampling under the conditions of training."""
    declared = model.generation_config.eos_token_id
    several = declared if isinstance(declared, list) else [declared]
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_completion_length,
        # Every token that the model or its tokenizer ends an answer with, as trl 1.16 takes them.
        eos_token_id=sorted({tokenizer.eos_token_id, *(n for n in several if n is not None)}),
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=sorted({*suppressed_token_ids(tokenizer), model.config.image_token_id}),
        # What is not set here is taken from the model, and Qwen2.5-VL's files say 1.05: answers
        # would be other ones than training sees, which samples without it.
        repetition_penalty=1.0,
        disable_compile=True,
    )


def sampling(greedy: GenerationConfig, temperature: float) -> GenerationConfig:
    """The same, but drawn from the whole distribution, as trl draws in training."""
    config = copy.deepcopy(greedy)
    config.update(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
    return config
