"""Model families without Qwen-VL's patches: their own processor encodes each prompt, once.

They train in trl's own layout (``shared_prefix`` is off), with the tensors that trl 1.16 hands to
such a model: ``pixel_values`` with one entry per image, and token types where it has them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.images import Pixels

_TEXT = {"input_ids", "attention_mask"}
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


def encode_by_processor(
    processor: Any, pixels: Sequence[Pixels], texts: Sequence[str]
) -> dict[str, Any]:
    """What a processor makes of one image and text per prompt, as parts of a collated batch.

    Args:
        processor: Of the model's own class.
        pixels: Per prompt uint8, shape (height, width, 3), of any size.
        texts: Per prompt the rendered conversation with one image token.

    Returns:
        ``pixel_values``, float, one entry per prompt; ``image_grid_thw``, ones of shape (prompts,
        3), which says the same; ``prompt_ids`` and ``mm_token_type_ids`` per prompt; and
        ``types_name``, the name that the model has for the latter, or None.

    Raises:
        RecordError: the processor takes a text for one of another number of images.
        ConfigError: it makes other tensors, or several entries of an image.
    """
    encoded = []
    for image, text in zip(pixels, texts, strict=True):
        images = [Image.fromarray(image)]
        try:
            encoded.append(processor(images=images, text=[text], return_tensors="pt"))
        except ValueError as error:
            raise RecordError("image_token", f"{error}: {text!r}") from error
    names = {name for one in encoded for name in one}
    (named, *_) = [*(name for name in _TOKEN_TYPES if name in names), None]
    others = sorted(names - _TEXT - {"pixel_values", named})
    shapes = sorted({tuple(one["pixel_values"].shape) for one in encoded})
    if others or len(shapes) > 1 or shapes[0][0] != 1:
        raise ConfigError(
            "model_name_or_path",
            type(processor).__name__,
            f"makes {', '.join(others) or 'only pixel_values'}, of shapes {shapes}; a processor is "
            "supported that makes pixel_values alone, one of the same shape per image, as LLaVA's",
        )
    ids = [one["input_ids"][0] for one in encoded]
    return {
        "pixel_values": torch.cat([one["pixel_values"] for one in encoded]),
        "image_grid_thw": torch.ones(len(encoded), 3, dtype=torch.long),
        "prompt_ids": ids,
        "mm_token_type_ids": [one[named][0] for one in encoded]
        if named
        else [torch.zeros_like(own) for own in ids],
        "types_name": named,
    }
