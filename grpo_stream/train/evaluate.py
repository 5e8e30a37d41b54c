"""Greedy answers of a policy on every sample of a set, and their point-in-box accuracy."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from grpo_stream.boxes import Frame, Point, Size
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.answers import Answer, ParseFailure, parse_answer
from grpo_stream.grounding.frames import to_original
from grpo_stream.grounding.rewards import accuracy_reward_coord
from grpo_stream.stream.dataset import read_in_order
from grpo_stream.stream.sources import Source, StreamSample
from grpo_stream.train.collate import PromptCollator
from grpo_stream.train.groups import PromptGroups
from grpo_stream.train.rollout import (
    generate_groups,
    suppressed_token_ids,
    trim_completions,
)


@dataclass(frozen=True)
class Prediction:
    """One greedy answer."""

    key: str
    prompt: str
    """The instruction."""
    text: str
    """What the policy answered."""
    point: tuple[float, float] | None
    """The answered point or centre, frame ``original``; None where it cannot be read."""
    failure: str | None
    """Why the answer cannot be read; None where it can."""
    solution: tuple[float, ...]
    """Frame ``original``."""
    scales: Size
    """Original size in pixels."""
    is_correct: bool
    """The point lies in the true box."""


@dataclass(frozen=True)
class Evaluation:
    """The answers on a whole set."""

    predictions: list[Prediction]

    @property
    def num_correct(self) -> int:
        """Answers inside the true box."""
        return sum(prediction.is_correct for prediction in self.predictions)

    @property
    def accuracy(self) -> float:
        """Share of answers inside the true box."""
        return self.num_correct / len(self.predictions)

    @property
    def failures(self) -> Counter[str]:
        """Answers that cannot be read, by reason."""
        return Counter(p.failure for p in self.predictions if p.failure is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "accuracy": self.accuracy,
            "num_correct": self.num_correct,
            "num_samples": len(self.predictions),
            "parse_failures": dict(self.failures),
            "predictions": [asdict(prediction) for prediction in self.predictions],
        }


def evaluate(
    model: Any,
    collator: PromptCollator,
    source: Source,
    *,
    batch_size: int,
    max_completion_length: int,
    title: str = "evaluate",
) -> Evaluation:
    """Answers every sample once, greedily, in the order of the data set.

    Args:
        model: A policy on its device; left in evaluation mode.
        collator: Encodes prompts as in training.
        source: Shards or raw records; all of them must be readable.
        batch_size: Prompts per generation.
        max_completion_length: Tokens per answer at most.
        title: Stands beside the progress bar.

    Raises:
        ConfigError: the set is empty, or its solutions are points; accuracy needs boxes.
        GrpoStreamError: a sample cannot be read.
    """
    total = int(source.shard_counts.sum())
    if total == 0:
        raise ConfigError("source", "0 samples", "must hold at least one sample to be evaluated")
    tokenizer = collator.processor.tokenizer
    eos_token_ids = _eos_token_ids(model, tokenizer)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_completion_length,
        eos_token_id=eos_token_ids,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=suppressed_token_ids(tokenizer),
        # What is not set here is taken from the model, and Qwen2.5-VL's files say 1.05: answers
        # would be other ones than training sees, which samples without it.
        repetition_penalty=1.0,
        disable_compile=True,
    )
    device = next(model.parameters()).device
    model.eval()
    predictions: list[Prediction] = []
    with tqdm(total=total, desc=title, unit="sample", mininterval=0.5) as progress:
        for samples in read_in_order(source, collator.rule, batch_size):
            groups = PromptGroups.from_batch(collator(samples), 1, device)
            with torch.no_grad():
                ids = generate_groups(model, groups, config, tokenizer.pad_token_id)
            completions = trim_completions(ids, eos_token_ids)
            texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
            predictions += score(samples, texts, collator.answer_frame)
            progress.update(len(samples))
    return Evaluation(predictions)


def score(
    samples: Sequence[StreamSample], texts: Sequence[str], answer_frame: Frame
) -> list[Prediction]:
    """Judges answers with the same reward, parser and frames as training does.

    Raises:
        ConfigError: a solution is a point.
    """
    rewards = accuracy_reward_coord(
        list(texts),
        solution=[sample.solution for sample in samples],
        scales=[sample.scales for sample in samples],
        model_size=[sample.model_size for sample in samples],
        answer_frame=answer_frame,
    )
    predictions = []
    for sample, text, reward in zip(samples, texts, rewards, strict=True):
        if reward is None:
            raise ConfigError(
                "solution", sample.solution, "accuracy needs boxes, as in [x1, y1, x2, y2]"
            )
        point, failure = None, None
        match parse_answer(text):
            case Answer() as answer:
                point = _point(answer, sample, answer_frame)
            case ParseFailure(reason):
                failure = reason
        predictions.append(
            Prediction(
                key=sample.key,
                prompt=sample.prompt,
                text=text,
                point=point,
                failure=failure,
                solution=sample.solution,
                scales=sample.scales,
                is_correct=reward == 1,
            )
        )
    return predictions


def _eos_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token that the model or its tokenizer ends an answer with, as trl 1.16 takes them."""
    declared = model.generation_config.eos_token_id
    several = declared if isinstance(declared, list) else [declared]
    return sorted({tokenizer.eos_token_id, *(one for one in several if one is not None)})


def _point(answer: Answer, sample: StreamSample, frame: Frame) -> tuple[float, float]:
    place: Point = to_original(
        answer.point(frame), model_size=sample.model_size, original_size=sample.scales
    )
    return (place.x, place.y)
