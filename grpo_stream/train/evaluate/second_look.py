"""A closer look: the part of an image around an answer, at the resolution it is stored in."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from grpo_stream.boxes import Box, Size
from grpo_stream.grounding.frames import View
from grpo_stream.images import ImageLimits, ResizeRule, decode, resize
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.stream_sample import StreamSample

LEAST_SIDE = 112
"""Pixels of a crop's sides at least, where the image has them: a crop of less shows no context."""


def zoom_in(
    sample: StreamSample,
    stored: Sample,
    point: Sequence[float],
    zoom: float,
    rule: ResizeRule | None,
    limits: ImageLimits,
    image: int = 0,
) -> tuple[StreamSample, View]:
    """The part of an image around a point, in the place of that image.

    The crop has the image's shape and a ``zoom``-th of its sides, is moved to stay within the
    image, and is cut from the stored pixels: only then is it resized for the model. Further images
    of the sample stay as they are: an instruction may speak of them.

    Args:
        sample: As the model saw it.
        stored: The same, at rest.
        point: ``(x, y)`` in frame ``original`` of the image; outside of it the nearest place
            counts.
        zoom: Above 1.
        rule: What the model's images are resized by; None leaves them.
        limits: What an image may be at most.
        image: Which of several images the point is in, from 0.

    Returns:
        The sample, in whose ``scales`` the crop's stored sides are, and where the crop is: an
        answer to it is in the crop's frames, and :func:`~grpo_stream.grounding.frames.to_original`
        brings it back through the view. Its ``solution`` is still that of the whole image.

    Raises:
        ImageError: the image cannot be decoded.
    """
    _, data = stored.images[image]
    pixels = decode(data, limits)
    size, original = Size(pixels.shape[1], pixels.shape[0]), sample.original_sizes[image]
    (x1, x2), (y1, y2) = (
        _span(place * side / whole, side, zoom)
        for place, side, whole in zip(point, size, original, strict=True)
    )
    crop = np.ascontiguousarray(pixels[y1:y2, x1:x2])
    shown = Size(x2 - x1, y2 - y1)
    wide, high = original.width / size.width, original.height / size.height
    view = View(Box(x1 * wide, y1 * high, x2 * wide, y2 * high), shown, image)
    images, sizes = list(sample.images), list(sample.original_sizes)
    images[image] = crop if rule is None else resize(crop, rule.target(shown))
    sizes[image] = shown
    closer = replace(
        sample,
        pixels=images[0],
        scales=sizes[0],
        more_pixels=tuple(images[1:]),
        more_scales=tuple(sizes[1:]),
    )
    return closer, view


def _span(centre: float, side: int, zoom: float) -> tuple[int, int]:
    """Whole start and end of a stretch around ``centre`` that stays within [0, side]."""
    length = min(side, max(LEAST_SIDE, math.ceil(side / zoom)))
    start = min(max(round(centre - length / 2), 0), side - length)
    return start, start + length
