"""Model families without Qwen-VL's patches: their own processor encodes each prompt, once.

Whatever tensors it makes (tiles, masks, sizes) stay as they are, a dict for each prompt: nothing
has to know how they belong to images.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.images import Pixels
from grpo_stream.train.models.patches import image_tensor

_TEXT = {"input_ids", "attention_mask", "labels"}
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


def encode_by_processor(
    processor: Any, pixels: Sequence[Sequence[Pixels]], texts: Sequence[str]
) -> dict[str, Any]:
    """What a processor makes of images and a text per prompt, as parts of a collated batch.

    Args:
        processor: Of the model's own class.
        pixels: Per prompt its images, each uint8, shape (height, width, 3), of any size.
        texts: Per prompt the rendered conversation with a token for each image.

    Returns:
        Per prompt ``media``, what it has made of the images, and ``pixel_values``, the image
        itself, or the list of them where it has not exactly one; ``prompt_ids`` and
        ``mm_token_type_ids``; ``short_ids``, the text's token ids before the processor repeats
        those of images, as an engine takes them; and ``types_name``, the name that the model has
        for the types, or None.

    Raises:
        RecordError: the processor takes a text for one of another number of images.
        ConfigError: it makes no pixels.
    """
    encoded = []
    for own, text in zip(pixels, texts, strict=True):
        images = {"images": [Image.fromarray(image) for image in own]} if own else {}
        try:
            encoded.append(processor(**images, text=[text], return_tensors="pt"))
        except ValueError as error:
            raise RecordError("image_token", f"{error}: {text!r}") from error
    names = {name for one in encoded for name in one}
    (named, *_) = [*(name for name in _TOKEN_TYPES if name in names), None]
    media = [
        {name: value for name, value in one.items() if name not in (*_TEXT, *_TOKEN_TYPES)}
        for one in encoded
    ]
    if not all("pixel_values" in own for own, images in zip(media, pixels, strict=True) if images):
        expected = f"makes {', '.join(sorted(names))}, but no pixel_values"
        raise ConfigError("model_name_or_path", type(processor).__name__, expected)
    rows = {len(one["input_ids"]) for one in encoded}
    if rows != {1}:
        expected = f"makes {max(rows)} rows of tokens of one prompt, which cannot be told apart"
        raise ConfigError("model_name_or_path", type(processor).__name__, expected)
    ids = [one["input_ids"][0] for one in encoded]
    short = processor.tokenizer(list(texts))["input_ids"]
    return {
        "pixel_values": [
            image_tensor(own[0]) if len(own) == 1 else [image_tensor(image) for image in own]
            for own in pixels
        ],
        "media": media,
        "prompt_ids": ids,
        "short_ids": [torch.tensor(one) for one in short],
        "mm_token_type_ids": [
            one[named][0] if named in one else torch.zeros_like(own)
            for one, own in zip(encoded, ids, strict=True)
        ],
        "types_name": named,
    }
