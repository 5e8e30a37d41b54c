"""Answers of a policy on every sample of a set, on one rank or on many."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias

import numpy as np
import torch.distributed as dist
from tqdm import tqdm

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
from grpo_stream.train.cluster.process_group import joining_ranks, leave_process_group
from grpo_stream.train.evaluate.policy_texts import PolicyTexts

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
    texts = PolicyTexts(model, collator, max_completion_length)

    def answer(
        samples: Sequence[StreamSample], stored: Sequence[Sample], first: int
    ) -> list[ScoredAnswer]:
        del stored, first
        return score(samples, texts.greedy(samples), collator.answer_frame)

    return answer_share(OrderedReader(source, collator.rule, batch_size), answer, title=title)


def answer_share(
    reader: OrderedReader,
    answer: Answer,
    *,
    max_bad_samples: int = 0,
    title: str | None = "evaluate",
) -> Evaluation:
    """Answers the samples of this rank's batches once and scores the answers.

    Parser, frames and comparisons are those of the rewards.

    Args:
        reader: This rank's batches.
        answer: Answers and scores a batch, given its samples, the same at rest, and its place in
            the set.
        max_bad_samples: More samples that cannot be read end it; so many are left out.
        title: Stands beside the progress bar; None for no bar.

    Raises:
        ConfigError: the set is empty, or a solution is a point and there is no ``point_radius``.
        BadSamplesError: see ``max_bad_samples``.
        GrpoStreamError: a sample cannot be read and none may be bad.
    """
    if reader.num_samples_in_all == 0:
        raise ConfigError("source", "0 samples", "must hold at least one sample to be evaluated")
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
            if samples:
                done.answers.extend(answer(samples, stored, batch.first))
            progress.update(len(batch.outcomes))
    return done


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
