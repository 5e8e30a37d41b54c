"""A sample in motion: what a stream makes of a sample at rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from operator import mul
from typing import Any

import numpy as np

from grpo_stream.boxes import Size
from grpo_stream.errors import ImageError, ShardFormatError
from grpo_stream.images import DEFAULT_LIMITS, ImageLimits, Pixels, ResizeRule, decode, resize
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.config import StreamConfig
from grpo_stream.targets import IMAGES_FIELD

_NO_PIXELS: Pixels = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True, eq=False)
class StreamSample:
    """One sample in motion: decoded and resized, ready for a processor that resizes no more."""

    key: str
    """Unique name in the data set."""
    pixels: Pixels
    """The (first) image: uint8, shape (height, width, 3), at the model's size; shape (0, 0, 3)
    without one."""
    prompt: str
    solution: tuple[Any, ...]
    """``(x1, y1, x2, y2)``, ends exclusive, ``(x, y)`` or the corners of a polygon; a tuple of
    each of several; none where nothing is there. Frame ``original``."""
    scales: Size
    """Width and height of the (first) original image in pixels; zeros without one."""
    extra: dict[str, Any]
    """The record's own further fields; of several images also ``solution_images``: for each place
    of ``solution`` the image it is in, counted from 0."""
    more_pixels: tuple[Pixels, ...] = ()
    """The second image and those after it, as ``pixels``."""
    more_scales: tuple[Size, ...] = ()
    """Of those, as ``scales``."""

    @property
    def images(self) -> tuple[Pixels, ...]:
        """All images: one mostly, several, or none."""
        return (self.pixels, *self.more_pixels) if self.pixels.size else ()

    @property
    def original_sizes(self) -> tuple[Size, ...]:
        """Width and height of each original image in pixels."""
        return (self.scales, *self.more_scales) if self.pixels.size else ()

    @property
    def model_size(self) -> Size:
        """Width and height of ``pixels``: the frame ``model``."""
        return Size(self.pixels.shape[1], self.pixels.shape[0])

    @property
    def model_sizes(self) -> tuple[Size, ...]:
        """The same of each image."""
        return tuple(Size(image.shape[1], image.shape[0]) for image in self.images)

    @classmethod
    def from_sample(
        cls,
        sample: Sample,
        rule: ResizeRule | None,
        limits: ImageLimits = DEFAULT_LIMITS,
        max_total_pixels: int = 0,
    ) -> "StreamSample":
        """Decodes a sample at rest and resizes its images to the sizes that ``rule`` gives.

        Args:
            sample: At rest.
            rule: None leaves the images as they are stored.
            limits: What each image may be at most.
            max_total_pixels: What all of them may have together after resizing; 0: any number.

        Raises:
            ImageError: the bytes are no usable image; ``images_too_large``: see
                ``max_total_pixels``.
            ShardFormatError: cause ``size_mismatch``: an image has not the size that its JSON
                says, so the frame of its places is unknown.
        """
        # Each property is asked for once: after a decoded image the caches hold no Python.
        sizes = sample.sizes
        if max_total_pixels:
            _check_total(sizes, rule, max_total_pixels)
        images = []
        for size, (_, data) in zip(sizes, sample.images, strict=True):
            pixels = decode(data, limits)
            height, width, _ = pixels.shape
            if width != size.width or height != size.height:
                detail = f"{sample.key}: the image is {width}x{height}, its JSON says {size}"
                raise ShardFormatError("size_mismatch", detail)
            images.append(pixels if rule is None else resize(pixels, rule.target(size)))
        return cls.over(sample, *images)

    @classmethod
    def over(cls, sample: Sample, *images: Pixels) -> "StreamSample":
        """A sample at rest whose images have been decoded and resized."""
        originals = sample.original_sizes
        factors = [
            (original.width / width, original.height / height)
            for original, (width, height) in zip(originals, sample.sizes, strict=True)
        ]
        lies_in, extra = sample.solution_images, sample.extra
        scaled = tuple(
            tuple(map(mul, solution, cycle(factors[number])))
            for solution, number in zip(sample.solutions, lies_in, strict=True)
        )
        one = scaled[0] if len(scaled) == 1 else scaled
        if len(images) == 1:
            return cls(sample.key, images[0], sample.prompt, one, originals[0], extra)
        if images:
            extra |= {IMAGES_FIELD: list(lies_in)}
        first, *more = images or [_NO_PIXELS]
        scales, *more_scales = originals or [Size(0, 0)]
        words = sample.key, first, sample.prompt, one, scales, extra
        return cls(*words, tuple(more), tuple(more_scales))


def _check_total(sizes: Sequence[Size], rule: ResizeRule | None, max_total_pixels: int) -> None:
    targets = sizes if rule is None else [rule.target(size) for size in sizes]
    total = sum(width * height for width, height in targets)
    if total > max_total_pixels:
        detail = f"{len(sizes)} images of {total} pixels are more than max_total_pixels="
        raise ImageError("images_too_large", f"{detail}{max_total_pixels}")


def decode_sample(sample: Sample, config: StreamConfig) -> StreamSample:
    """What a stream does with a sample at rest, unless told otherwise."""
    return StreamSample.from_sample(sample, config.resize, config.limits, config.max_total_pixels)
