"""Images as a collator of one's own hands them over: bytes, floats or patches, in many forms."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from grpo_stream.boxes import Size
from grpo_stream.stream.stream_sample import StreamSample

_RGB = 3

T = TypeVar("T")


def runs_of(values: Sequence[T], counts: Sequence[int]) -> list[Sequence[T]]:
    """Runs of ``counts`` values."""
    ends = list(accumulate(counts))
    return [values[end - count : end] for end, count in zip(ends, counts, strict=True)]


def with_pixels(
    samples: Sequence[StreamSample], images: Sequence[torch.Tensor]
) -> list[StreamSample]:
    """The samples, with these images in the place of theirs."""
    runs = runs_of([image.numpy() for image in images], [len(sample.images) for sample in samples])
    return [
        replace(one, pixels=own[0], more_pixels=tuple(own[1:])) if own else one
        for one, own in zip(samples, runs, strict=True)
    ]


def is_patches(values: Any) -> bool:
    """Whether they are float patches, of all prompts or of each."""
    if isinstance(values, torch.Tensor):
        return values.dim() == len(("patches", "numbers")) and values.is_floating_point()
    return isinstance(values, Sequence) and bool(values) and all(map(_is_patch_tensor, values))


def _is_patch_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and is_patches(value)


def given_images(values: Any) -> list[torch.Tensor] | None:
    """All images, uint8 (height, width, 3) or float32 (3, height, width); None: something else."""
    lists = [value if isinstance(value, list | tuple) else [value] for value in values]
    found = [_image(value) for own in lists for value in own]
    images = [image for image in found if image is not None]
    if len(images) != len(found) or len({image.dtype for image in images}) > 1:
        return None
    return images


def _image(value: Any) -> torch.Tensor | None:
    if isinstance(value, Image.Image):
        value = np.array(value.convert("RGB"))
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value))  # a copy, as a stream's pixels are read-only
    if not isinstance(value, torch.Tensor) or value.dim() != len(("height", "width", "channels")):
        return None
    if value.dtype == torch.uint8:
        value = value if value.shape[-1] == _RGB else value.permute(1, 2, 0)
        return value.contiguous() if value.shape[-1] == _RGB else None
    return value.float() if value.is_floating_point() and value.shape[0] == _RGB else None


def sizes_of_images(images: Sequence[torch.Tensor] | None) -> list[Size] | None:
    """Of images as :func:`given_images` gives them."""
    if images is None:
        return None
    shapes = [i.shape[:2] if i.dtype == torch.uint8 else i.shape[1:] for i in images]
    return [Size(width, height) for height, width in shapes]


def form_of(values: Any) -> str:
    """What they are, for a message."""
    first = values if isinstance(values, torch.Tensor) else next(iter(values), None)
    shape = getattr(first, "shape", None)
    words = type(first).__name__
    return words if shape is None else f"{words} {getattr(first, 'dtype', '')} {tuple(shape)}"
