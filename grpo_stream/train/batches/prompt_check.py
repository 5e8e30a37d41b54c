"""What a model's processor and chat template make of a prompt, tried before weights are loaded.

Small prompts of as many images as the data have are encoded as those of the run will be. What
cannot be trained on is then one error that names the processor, and no run of bad samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.train.batches.collate import PromptCollator

_SIZE = Size(56, 56)
_NEEDED = {"type": "image"}


def check_prompts(collator: PromptCollator, sources: Sequence[Any]) -> None:
    """Encodes a prompt of one image, and of several and of none where the data have such.

    Args:
        collator: As the run's own.
        sources: The data.

    Raises:
        ConfigError: there is no chat template, or it has no place for images; or the processor
            takes no such prompt.
    """
    name = type(collator.processor).__name__
    if not getattr(collator.processor, "chat_template", None):
        expected = f"has no chat template: save one with it that writes a place for each {_NEEDED}"
        raise ConfigError("model_name_or_path", name, f"{expected} (chat_template.jinja)")
    counts = [1]
    counts += [2] if any(getattr(one, "num_multi_image", 0) for one in sources) else []
    counts += [0] if any(getattr(one, "num_text_only", 0) for one in sources) else []
    for count in counts:
        fault = _fault(collator, count)
        if fault is not None:
            images = "no image" if not count else "an image" if count == 1 else f"{count} images"
            expected = f"takes no prompt with {images}: {fault}"
            raise ConfigError("model_name_or_path", name, expected)


def _fault(collator: PromptCollator, count: int) -> str | None:
    """What is wrong with a prompt of so many images; None: nothing."""
    sample = _sample(collator, count)
    prompt = collator.conversation(sample)
    try:
        text = collator.text(prompt)
        fewer = collator.text(_without_an_image(prompt)) if count else None
        if text == fewer:
            return (
                f"the chat template has no room for {'it' if count == 1 else 'all of them'}; use "
                f"one that writes a place for each {_NEEDED}, or another model"
            )
        collator.encoded([sample], [prompt])
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever processor and template raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        cause = error.cause if isinstance(error, RecordError) else type(error).__name__
        reason = reason if reason.startswith(cause) else f"{cause}: {reason}"
        return f"{reason}; use another chat template, processor or model"
    return None


def _without_an_image(prompt: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation without its last image."""
    *before, last = prompt
    blocks = list(last["content"])
    place = max(number for number, block in enumerate(blocks) if block["type"] == "image")
    return [*before, {**last, "content": blocks[:place] + blocks[place + 1 :]}]


def _sample(collator: PromptCollator, count: int) -> StreamSample:
    size = _SIZE if collator.rule is None else collator.rule.target(_SIZE)
    image = np.zeros((size.height, size.width, 3), np.uint8)
    first, *more = [image] * count or [image[:0, :0]]
    scales = size if count else Size(0, 0)
    return StreamSample(
        "000000", first, "Click", (0, 0, 8, 8), scales, {}, tuple(more), (size,) * len(more)
    )
