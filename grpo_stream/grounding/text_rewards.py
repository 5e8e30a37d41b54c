"""Reward functions that look at the text and not at the place: its form and its length."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.answers import Answer, LogMetric, log_failures, parse_answer
from grpo_stream.grounding.cases import Completion, completion_text
from grpo_stream.grounding.prompts import PromptTemplate, load_template

Rewards: TypeAlias = list[float | None]


def format_reward(
    completions: Sequence[Completion],
    *,
    template: str | PromptTemplate | None = None,
    log_metric: LogMetric | None = None,
    scales: Sequence[Sequence[Any]] | None = None,
    **_: Any,
) -> Rewards:
    """1 if the completion has the form that was asked for, else 0.

    In {0, 1}. The text must be of the template's form and nothing else, see
    :meth:`~grpo_stream.grounding.prompts.PromptTemplate.is_followed_by`. Without a template any
    form will do that :func:`~grpo_stream.grounding.answers.parse_answer` knows, with or without
    thoughts. None for a sample without images, which is asked without a template. Source: the
    format reward of DeepSeek-R1 (arXiv 2501.12948), for answers that are places.

    Args:
        completions: Texts or conversations.
        template: A template, or its name or YAML file; ``"any"`` for none. The trainer sets the
            run's own where nothing is set (:func:`with_template`).
        log_metric: trl's logger; see :func:`~grpo_stream.grounding.cases.cases_of`.
        scales: Sizes of the samples' images, where they tell who has none.

    Raises:
        ConfigError: there is no such template.
    """
    texts = [completion_text(completion) for completion in completions]
    has_images = [True] * len(texts) if scales is None else [len(own) > 0 for own in scales]
    answers = [parse_answer(text) for text in texts]
    if log_metric is not None and answers:
        log_failures(answers, log_metric)
    if template is None or template == "any":
        follows = [isinstance(answer, Answer) for answer in answers]
    else:
        asked = load_template(template) if isinstance(template, str) else template
        follows = list(map(asked.is_followed_by, texts))
    return [float(one) if has else None for one, has in zip(follows, has_images, strict=True)]


def length_penalty(
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    num_free_tokens: int = 64,
    num_max_tokens: int = 256,
    **_: Any,
) -> Rewards:
    """0 up to a length that costs nothing, then down in a straight line to -1.

    Formula: ``-min(1, max(0, (n - num_free_tokens) / (num_max_tokens - num_free_tokens)))`` for a
    completion of ``n`` tokens, in [-1, 0]. Source: the soft overlong punishment of DAPO (arXiv
    2503.14476, equation 13; its L_max is ``num_max_tokens``, its L_cache the difference).

    Args:
        completions: Used for their number alone.
        completion_ids: Token ids of every completion, without padding; trl passes them.
        num_free_tokens: Longest completion that costs nothing.
        num_max_tokens: Shortest completion that costs 1.

    Raises:
        ConfigError: ``completion_ids`` is missing or of another length, or ``num_max_tokens`` is
            not above ``num_free_tokens``, or that is negative.
    """
    if num_free_tokens < 0:
        raise ConfigError("num_free_tokens", num_free_tokens, "must be 0 or more, for example 64")
    if num_max_tokens <= num_free_tokens:
        expected = f"must be above num_free_tokens, for example {4 * num_free_tokens or 256}"
        raise ConfigError("num_max_tokens", num_max_tokens, expected)
    if completion_ids is None or len(completion_ids) != len(completions):
        found = None if completion_ids is None else f"{len(completion_ids)} entries"
        expected = f"must be the token ids of all {len(completions)} completions"
        raise ConfigError("completion_ids", found, expected)
    span = num_max_tokens - num_free_tokens
    over = [max(0, len(ids) - num_free_tokens) / span for ids in completion_ids]
    return [0.0 if share == 0 else -min(1.0, share) for share in over]
