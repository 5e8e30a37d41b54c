"""What an engine of vLLM is told once, and what it is handed of a batch (trl 1.16, vLLM 0.30)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from trl.generation import vllm_generation

from grpo_stream.errors import ConfigError
from grpo_stream.images import ResizeRule

_BAN = -100.0  # the least that vLLM takes as a bias


def banning_kwargs(
    token_ids: Sequence[int], generation_kwargs: dict[str, Any] | None
) -> dict[str, Any]:
    """``generation_kwargs`` for vLLM by which ``token_ids`` are never sampled."""
    given = dict(generation_kwargs or {})
    bias = dict.fromkeys(token_ids, _BAN) | (given.get("logit_bias") or {})
    return given | {"logit_bias": bias}


def pixel_limits(rule: ResizeRule | None) -> dict[str, int]:
    """``mm_processor_kwargs`` under which an engine's processor does as the policy's.

    With a rule it finds nothing to resize; without one it has no limits to be told.
    """
    if rule is None:
        return {}
    return {"min_pixels": rule.min_pixels, "max_pixels": rule.max_pixels}


def engine_images(pixel_values: Any, keys: Sequence[str], num_generations: int) -> list[Any]:
    """The images of a generation batch as trl takes them: one list per completion.

    Args:
        pixel_values: Of a collated batch: per prompt uint8, shape (height, width, 3), or the list
            of them.
        keys: Of the prompts.
        num_generations: Completions of each; theirs is the same object, so that it is copied and
            sent once.

    Raises:
        ConfigError: the collator has made floats of them.
    """
    if isinstance(pixel_values, torch.Tensor):
        expected = "must give uint8 images with patch_rule: an engine cuts its own patches"
        raise ConfigError("data_collator", "float patches", expected)
    lists = [own if isinstance(own, list) else [own] for own in pixel_values]
    # None for a text: an empty list would be taken for images.
    images = [[Image.fromarray(pixels.numpy()) for pixels in own] or None for own in lists]
    return [image for image, _ in zip(images, keys, strict=True) for _ in range(num_generations)]


def engine_settings(rule: ResizeRule | None) -> dict[str, Any]:
    """Settings of ``vllm.LLM`` for prompts as they are here: without videos, images in limits.

    An engine makes room, at its start, for the largest input that it may get; of a family that
    knows videos that is one, and an image is as large as the model's own files allow.
    """
    limits = pixel_limits(rule)
    given = {"mm_processor_kwargs": limits} if limits else {}
    return {"limit_mm_per_prompt": {"video": 0}, **given}


@contextmanager
def colocated_with(rule: ResizeRule | None) -> Iterator[None]:
    """Within it trl makes its colocated engine with :func:`engine_settings`: it has no such field.

    Its own settings come first.
    """
    made = getattr(vllm_generation, "LLM", None)
    if made is None:  # without vLLM
        yield
        return

    def make(**settings: Any) -> Any:
        return made(**engine_settings(rule) | settings)

    vllm_generation.LLM = make
    try:
        yield
    finally:
        vllm_generation.LLM = made
