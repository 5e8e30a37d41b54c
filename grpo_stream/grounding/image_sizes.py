"""Sizes of images as rewards are told them: of one image, or of each of a sample's."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from grpo_stream.boxes import FRAMES, Size
from grpo_stream.errors import ConfigError
from grpo_stream.targets import IMAGES_FIELD, Target, read_target

Numbers: TypeAlias = Sequence[float]
Sizes: TypeAlias = Size | Sequence[Size | None] | None
"""Of one image, of each, or unknown."""


def shared_of_case(
    truth: Any, original: Any, model: Any, frame: Any, wanted: Any, images: Any
) -> tuple[Target, Sizes, Sizes, Any]:
    """What the completions of a sample have in common; the arguments of a :class:`Case`."""
    if original is None:  # no column of sizes, which says nothing of the number of images
        return read_target(truth, wanted), *_sizes((), model, frame), frame
    is_listed = hasattr(original[0], "__len__") if len(original) else not len(truth)
    if not is_listed:
        return read_target(truth, wanted), *_sizes(original, model, frame), frame
    if images is None and len(truth) and len(original) > 1:
        remedy = "hand on the columns that the reward gets, as in cases_of(completions, **columns)"
        expected = f"is needed, as a sample has {len(original)} images: {remedy}"
        raise ConfigError(IMAGES_FIELD, None, expected)
    target = read_target(truth, wanted, images, len(original))
    pairs = zip(original, model if len(model) else [()] * len(original), strict=True)
    sizes = [_sizes(*pair, frame) for pair in pairs]
    return target, [own for own, _ in sizes], [own for _, own in sizes], frame


def sizes_of(value: Any) -> Size | list[Size]:
    """An entry of the columns ``scales`` and ``model_size``: of one image, or of each."""
    is_one = len(value) > 0 and not hasattr(value[0], "__len__")
    return Size(*value) if is_one else [Size(*size) for size in value]


def each_size(sizes: Sizes) -> Sequence[Size | None]:
    """Of one image as of each."""
    return (sizes,) if sizes is None or isinstance(sizes, Size) else sizes


def size_at(sizes: Sequence[Size | None], image: int) -> Size | None:
    """Of an image, if it is known."""
    return sizes[image] if image < len(sizes) else None


def _sizes(original: Numbers, model: Numbers, frame: str) -> tuple[Size | None, Size | None]:
    if frame not in FRAMES:
        raise ConfigError("answer_frame", frame, f"must be one of {', '.join(FRAMES)}")
    if not len(original) and frame != "original":
        raise missing_size("scales", "give (width, height) of every original image")
    if not len(model) and frame == "model":
        raise missing_size("model_size", "give (width, height) of every resized image")
    return _size("scales", original), _size("model_size", model)


def _size(name: str, numbers: Numbers) -> Size | None:
    if not len(numbers):
        return None
    if len(numbers) != 2 or not all(number > 0 for number in numbers):
        raise ConfigError(
            name, numbers, "must be (width, height) in pixels, for example (640, 480)"
        )
    return Size(int(numbers[0]), int(numbers[1]))


def missing_size(name: str, remedy: str) -> ConfigError:
    """The error for a column that is needed and not there."""
    return ConfigError(
        name, None, f"is needed to bring answers and solutions to one frame: {remedy}"
    )
