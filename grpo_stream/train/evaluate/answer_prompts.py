"""Answers of a policy on every sample of a set, on one rank or on many."""

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import GenerationConfig

from grpo_stream.boxes import Frame, Size
from grpo_stream.errors import BadSamplesError, ConfigError
from grpo_stream.grounding.evaluation.evaluation_metrics import pick_fields
from grpo_stream.grounding.frames import View
from grpo_stream.grounding.scores import ScoredAnswer, score_answer
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.ordered_reader import BadSample, OrderedReader
from grpo_stream.stream.sources import Source
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.stream.world import World
from grpo_stream.targets import IMAGES_FIELD, WANTED_FIELD
from grpo_stream.train.batches.collate import PromptCollator, one_or_list
from grpo_stream.train.batches.groups import PromptGroups, pad_left
from grpo_stream.train.cluster.process_group import joining_ranks, leave_process_group
from grpo_stream.train.prefix.generation import suppressed_token_ids, trim_completions
from grpo_stream.train.prefix.plain import sample_plain

Answer: TypeAlias = Callable[
    [Sequence[StreamSample], Sequence[Sample], int], Sequence[ScoredAnswer]
]

_LONGEST_WAIT = timedelta(hours=24)  # of the rank that is done first for the one that is last


@dataclass(frozen=True)
class Evaluation:
    """The answers on a whole set, in its order."""

    answers: list[ScoredAnswer]
    ordinals: list[int]
    """For each answer the place of its sample in the set, from 0."""
    bad_samples: list[str] = field(default_factory=list)
    """Samples that could not be read: where they lie, and why."""

    @property
    def accuracy(self) -> float:
        """Share of answers inside the true box, of the samples that can be scored so."""
        hits = [answer.is_hit for answer in self.answers if answer.is_hit is not None]
        return sum(hits) / len(hits) if hits else float("nan")

    @property
    def failures(self) -> Counter[str]:
        """Answers that give no place, by reason."""
        return Counter(a.failure for a in self.answers if a.failure is not None)


def evaluate(
    model: Any,
    collator: PromptCollator,
    source: Source,
    *,
    batch_size: int,
    max_completion_length: int,
    title: str = "evaluate",
) -> Evaluation:
    """Answers every sample of a set on this process alone; see :func:`answer_share`.

    Raises:
        ConfigError: the set is empty, or its solutions are points; accuracy needs boxes.
        GrpoStreamError: a sample cannot be read.
    """
    reader = OrderedReader(source, collator.rule, batch_size)
    return answer_share(
        model, collator, reader, max_completion_length=max_completion_length, title=title
    )


def answer_share(
    model: Any,
    collator: PromptCollator,
    reader: OrderedReader,
    *,
    max_completion_length: int,
    max_bad_samples: int = 0,
    answer: Answer | None = None,
    title: str | None = "evaluate",
) -> Evaluation:
    """Answers the samples of this rank's batches once and scores the answers.

    Parser, frames and comparisons are those of the rewards.

    Args:
        model: A policy on its device; left in evaluation mode.
        collator: Encodes prompts as in training.
        reader: This rank's batches.
        max_completion_length: Tokens per answer at most.
        max_bad_samples: More samples that cannot be read end it; so many are left out.
        answer: Answers and scores a batch, given its samples, the same at rest, and its place in
            the set; None for greedy answers.
        title: Stands beside the progress bar; None for no bar.

    Raises:
        ConfigError: the set is empty, or a solution is a point and there is no ``point_radius``.
        BadSamplesError: see ``max_bad_samples``.
        GrpoStreamError: a sample cannot be read and none may be bad.
    """
    if reader.num_samples_in_all == 0:
        raise ConfigError("source", "0 samples", "must hold at least one sample to be evaluated")
    config = greedy_config(model, collator.processor.tokenizer, max_completion_length)
    model.eval()
    done = Evaluation([], [])
    with tqdm(
        total=reader.num_samples,
        desc=title,
        unit="sample",
        mininterval=0.5,
        dynamic_ncols=True,
        disable=title is None,
    ) as progress:
        for batch in reader:
            samples, stored = [], []
            for ordinal, (outcome, at_rest) in enumerate(
                zip(batch.outcomes, batch.stored, strict=True), batch.first
            ):
                if isinstance(outcome, BadSample):
                    _count_bad(done, outcome, max_bad_samples)
                elif at_rest is not None:
                    samples.append(outcome)
                    stored.append(at_rest)
                    done.ordinals.append(ordinal)
            if samples and answer is not None:
                done.answers.extend(answer(samples, stored, batch.first))
            elif samples:
                (texts,) = answer_texts(model, collator, samples, config)
                done.answers.extend(score(samples, texts, collator.answer_frame))
            progress.update(len(batch.outcomes))
    return done


def answer_texts(
    model: Any,
    collator: PromptCollator,
    samples: Sequence[StreamSample],
    config: GenerationConfig,
    seeds: Sequence[int | None] = (None,),
) -> list[list[str]]:
    """What the policy answers, without control words: per seed a text for each sample.

    Prompts are encoded once. A seed is that of one round of sampling, and leaves the process's own
    random numbers as they were; None is for greedy answers.
    """
    device = next(model.parameters()).device
    prompts = PromptGroups.from_batch(collator(samples), 1, device)
    rounds = []
    for seed in seeds:
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            if seed is not None:
                torch.manual_seed(seed)
            rounds.append(generate_texts(model, collator.processor.tokenizer, prompts, config))
    return rounds


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
        suppress_tokens=suppressed_token_ids(tokenizer),
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


def score(
    samples: Sequence[StreamSample],
    texts: Sequence[str],
    answer_frame: Frame,
    point_radius: float | None = None,
    fields: Sequence[str] = (),
    *,
    view: View | None = None,
    shown: Size | Sequence[Size] | None = None,
) -> list[ScoredAnswer]:
    """Compares answers with their truths; see :func:`~grpo_stream.grounding.scores.score_answer`.

    Of a view ``shown`` is the size at which the model saw it; of several images that of each.

    Samples whose resized pixels are equal are of one image, whatever their files are called.
    """
    return [
        score_answer(
            text,
            sample.solution,
            key=sample.key,
            prompt=sample.prompt,
            scales=one_or_list(sample.original_sizes),
            model_size=shown or one_or_list(sample.model_sizes),
            answer_frame=answer_frame,
            point_radius=point_radius,
            image=_image_digest(sample),
            fields=pick_fields(sample.extra, fields),
            wanted=sample.extra.get(WANTED_FIELD),
            solution_images=sample.extra.get(IMAGES_FIELD),
            view=view,
        )
        for sample, text in zip(samples, texts, strict=True)
    ]


def join_ranks(world: World) -> None:
    """Joins the other ranks, over gloo on any device: only answers travel, once, at the end."""
    if world.world_size > 1:
        with joining_ranks():
            dist.init_process_group(
                "gloo", rank=world.rank, world_size=world.world_size, timeout=_LONGEST_WAIT
            )


def gather_shares(share: Evaluation, world: World) -> Evaluation | None:
    """The answers of all ranks in the order of the set, on rank 0; None on the others.

    Waits for the slowest rank; the ranks have parted then.
    """
    if world.world_size == 1:
        return share
    shares: list[Any] | None = [None] * world.world_size if world.rank == 0 else None
    dist.gather_object(share, shares)
    leave_process_group()
    if shares is None:
        return None
    answers = [answer for one in shares for answer in one.answers]
    ordinals = [ordinal for one in shares for ordinal in one.ordinals]
    order = np.argsort(ordinals).tolist()
    return Evaluation(
        [answers[place] for place in order],
        [ordinals[place] for place in order],
        [where for one in shares for where in one.bad_samples],
    )


def _count_bad(done: Evaluation, bad: BadSample, max_bad_samples: int) -> None:
    if max_bad_samples == 0:
        raise bad.error
    done.bad_samples.append(f"{bad.where}: {bad.error}")
    check_bad_samples(done, max_bad_samples)


def check_bad_samples(done: Evaluation, max_bad_samples: int) -> None:
    """Checks that the figures are of nearly all samples.

    Raises:
        BadSamplesError: more than ``max_bad_samples`` could not be read.
    """
    found = len(done.bad_samples)
    if found > max_bad_samples:
        raise BadSamplesError(
            f"{found} samples could not be read, the tolerance is max_bad_samples="
            f"{max_bad_samples}; the last: {done.bad_samples[-1]}"
        )


def _image_digest(sample: StreamSample) -> str:
    digest = hashlib.blake2b(digest_size=8)
    if not sample.images:
        digest.update(sample.key.encode())
    for pixels in sample.images:
        digest.update(repr(pixels.shape).encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()
