"""Several views of one sample: the whole image, and crops that keep its target.

A group of completions may be shared out over views of one prompt: where all answers to the whole
image fail, some to a crop succeed, and the group teaches. The idea is VISTA's (arXiv 2606.14579).
Each view is a sample of its own frame: its target is mapped there, and so its answers are scored.
"""

import math
from dataclasses import dataclass, replace
from itertools import cycle
from operator import sub

import numpy as np

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.images import Pixels, resize
from grpo_stream.order.permutation import derive_key
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.stream_sample import StreamSample, decode_sample
from grpo_stream.targets import bounds_of, read_shape

VIEW_FIELD, REGION_FIELD = "view", "view_region"
"""Fields of a view's ``extra``: its number, 0 for the whole image, and the box ``[x1, y1, x2, y2]``
in pixels of the original image that it shows."""

_LEAST_SHARE, _MOST_SHARE = 0.4, 0.9  # of the image's sides
_LEAST_SIDE = 56  # pixels, where the image has them: a crop of less shows no context


@dataclass(frozen=True)
class SampleViews:
    """The views of one sample, in their order."""

    key: str
    views: tuple[StreamSample, ...]


@dataclass(frozen=True)
class OpenViews:
    """What a stream makes of a sample at rest: ``num_views`` views of it, decoded once.

    View 0 is the whole image. Each other one has the image's shape and from 0.4 to 0.9 of its
    sides, more where the target needs it, and is cut from the stored pixels at a place that
    depends on the stream's seed, the key and the view's number alone. A sample of several images
    or of none is shown whole in every view.
    """

    num_views: int

    def __call__(self, sample: Sample, config: StreamConfig) -> SampleViews:
        """The views of a sample.

        Raises:
            ImageError, ShardFormatError: as :meth:`.stream_sample.StreamSample.from_sample`.
        """
        numbers = range(self.num_views)
        if len(sample.sizes) != 1:
            whole = decode_sample(sample, config)
            return SampleViews(sample.key, tuple(_named(whole, n, None) for n in numbers))
        stored = StreamSample.from_sample(sample, None, config.limits)
        whole = replace(stored, pixels=_resized(stored.pixels, config))
        views = [_named(whole, 0, Box(0, 0, *stored.scales))]
        for number in numbers[1:]:
            region = crop_region(sample, config.stream_seed, number)
            views.append(_cropped(stored, sample, region, number, config))
        return SampleViews(sample.key, tuple(views))


def crop_region(sample: Sample, seed: int, number: int) -> Box:
    """What a view shows: whole pixels of the stored image, with all of the target inside."""
    bounds = [_bounds(numbers) for numbers in sample.solutions]
    share = _LEAST_SHARE + (_MOST_SHARE - _LEAST_SHARE) * _draw(seed, sample.key, number, "share")
    spans = []
    for axis, side in enumerate(sample.size):
        first = min((math.floor(max(0, box[axis])) for box in bounds), default=side)
        last = max((math.ceil(min(side, box[axis + 2])) for box in bounds), default=0)
        length = min(side, max(math.ceil(share * side), _LEAST_SIDE, last - first))
        low, high = max(0, last - length), min(first, side - length)
        room = max(0, high - low) + 1
        start = low + int(_draw(seed, sample.key, number, "xy"[axis]) * room)
        spans.append((start, start + length))
    (x1, x2), (y1, y2) = spans
    return Box(x1, y1, x2, y2)


def _cropped(
    stored: StreamSample, sample: Sample, region: Box, number: int, config: StreamConfig
) -> StreamSample:
    x1, y1, x2, y2 = map(int, (region.x1, region.y1, region.x2, region.y2))
    moved = [tuple(map(sub, numbers, cycle((x1, y1)))) for numbers in sample.solutions]
    crop = np.ascontiguousarray(stored.pixels[y1:y2, x1:x2])
    view = replace(
        stored,
        pixels=_resized(crop, config),
        solution=moved[0] if len(moved) == 1 else tuple(moved),
        scales=Size(x2 - x1, y2 - y1),
    )
    return _named(view, number, region.scaled(sample.size, stored.scales, "original"))


def _named(view: StreamSample, number: int, region: Box | None) -> StreamSample:
    shown = None if region is None else [region.x1, region.y1, region.x2, region.y2]
    return replace(view, extra=view.extra | {VIEW_FIELD: number, REGION_FIELD: shown})


def _resized(pixels: Pixels, config: StreamConfig) -> Pixels:
    if config.resize is None:
        return pixels
    return resize(pixels, config.resize.target(Size(pixels.shape[1], pixels.shape[0])))


def _bounds(numbers: tuple[float, ...]) -> tuple[float, float, float, float]:
    shape = read_shape(numbers)
    if isinstance(shape, Point):
        return shape.x, shape.y, math.floor(shape.x) + 1, math.floor(shape.y) + 1
    box = bounds_of(shape)
    return box.x1, box.y1, box.x2, box.y2


def _draw(seed: int, key: str, number: int, what: str) -> float:
    """From [0, 1)."""
    return derive_key("view", seed, key, number, what) / 2**64
