"""A closer look: the part of an image around an answer, at the resolution it is stored in."""

import math
from collections.abc import Sequence

import numpy as np

from grpo_stream.boxes import Box, Size
from grpo_stream.grounding.frames import View
from grpo_stream.images import ImageLimits, ResizeRule, decode, resize
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.stream_sample import StreamSample

LEAST_SIDE = 112
"""Pixels of a crop's sides at least, where the image has them: a crop of less shows no context."""


def zoom_in(
    stored: Sample,
    point: Sequence[float],
    zoom: float,
    rule: ResizeRule | None,
    limits: ImageLimits,
) -> tuple[StreamSample, View]:
    """The part of a sample's image around a point, as a sample of its own.

    The crop has the image's shape and a ``zoom``-th of its sides, is moved to stay within the
    image, and is cut from the stored pixels: only then is it resized for the model.

    Args:
        stored: The sample at rest.
        point: ``(x, y)`` in frame ``original``; outside of the image the nearest place counts.
        zoom: Above 1.
        rule: What the model's images are resized by; None leaves them.
        limits: What an image may be at most.

    Returns:
        The sample, whose ``scales`` are the crop's stored sides, and where the crop is: an answer
        to it is in the crop's frames, and :func:`~grpo_stream.grounding.frames.to_original` brings
        it back through the view. Its ``solution`` is still that of the whole image.

    Raises:
        ImageError: the image cannot be decoded.
    """
    pixels = decode(stored.image, limits)
    size, original = Size(pixels.shape[1], pixels.shape[0]), stored.original_size
    (x1, x2), (y1, y2) = (
        _span(place * side / whole, side, zoom)
        for place, side, whole in zip(point, size, original, strict=True)
    )
    crop = np.ascontiguousarray(pixels[y1:y2, x1:x2])
    shown = Size(x2 - x1, y2 - y1)
    wide, high = original.width / size.width, original.height / size.height
    view = View(Box(x1 * wide, y1 * high, x2 * wide, y2 * high), shown)
    sample = StreamSample(
        stored.key,
        crop if rule is None else resize(crop, rule.target(shown)),
        stored.prompt,
        stored.solution,
        shown,
        stored.extra,
    )
    return sample, view


def _span(centre: float, side: int, zoom: float) -> tuple[int, int]:
    """Whole start and end of a stretch around ``centre`` that stays within [0, side]."""
    length = min(side, max(LEAST_SIDE, math.ceil(side / zoom)))
    start = min(max(round(centre - length / 2), 0), side - length)
    return start, start + length
