"""Which frame a model answers in, and the arithmetic to ``original`` and back."""

from dataclasses import dataclass
from typing import TypeVar

from grpo_stream.boxes import FRAMES, Box, Frame, Point, Size
from grpo_stream.errors import ConfigError
from grpo_stream.families import FAMILIES

_PER_MILLE = Size(1000, 1000)

Shape = TypeVar("Shape", Point, Box)


def answer_frame_for(model_type: str, override: str | None = None) -> Frame:
    """The frame that a model's answers are in.

    Args:
        model_type: ``config.model_type`` of transformers, for example ``qwen2_5_vl``.
        override: A frame's name to use instead, for a model that was trained otherwise.

    Raises:
        ConfigError: ``override`` is no frame, or the family is unknown and nothing overrides it.
    """
    if override is not None:
        for frame in FRAMES:
            if override == frame:
                return frame
        raise ConfigError("answer_frame", override, f"must be one of {', '.join(FRAMES)}")
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ConfigError(
            "answer_frame",
            None,
            f"is not known for model_type {model_type!r} (known: {known}); "
            'set it, for example answer_frame="model"',
        )
    return FAMILIES[model_type].answer_frame


def frame_size(frame: Frame, *, model_size: Size, original_size: Size) -> Size:
    """Width and height that span the whole image in ``frame``."""
    if frame == "original":
        return Size(*original_size)
    return Size(*model_size) if frame == "model" else _PER_MILLE


@dataclass(frozen=True, slots=True)
class View:
    """A part of the original that is shown as an image of its own."""

    region: Box
    """In frame ``original``."""
    size: Size
    """Width and height in pixels of the image that is shown, before any resize for the model."""
    image: int = 0
    """Which of a sample's images it is a part of, from 0; the others are shown whole."""


def to_original(
    shape: Shape, *, model_size: Size, original_size: Size, view: View | None = None
) -> Shape:
    """A point or box of any frame as one in ``original`` pixels.

    Args:
        shape: The point or box; its ``frame`` says where it comes from.
        model_size: The resized image in pixels; used for frame ``model`` alone.
        original_size: The upright original image in pixels.
        view: What was shown in the place of the original: the frame is then that of its image,
            ``original`` that image's own pixels.
    """
    if view is not None:
        shape = to_original(shape, model_size=model_size, original_size=view.size)
        region = view.region
        within = shape.scaled(view.size, Size(1, 1), "original")
        return _stretched(within, region)
    if shape.frame == "original":
        return shape
    size = frame_size(shape.frame, model_size=model_size, original_size=original_size)
    return shape.scaled(size, Size(*original_size), "original")


def _stretched(shape: Shape, region: Box) -> Shape:
    """A place in shares of a region's sides, in pixels of what the region is in."""
    if isinstance(shape, Point):
        return Point(region.x1 + shape.x * region.width, region.y1 + shape.y * region.height)
    return Box(
        region.x1 + shape.x1 * region.width,
        region.y1 + shape.y1 * region.height,
        region.x1 + shape.x2 * region.width,
        region.y1 + shape.y2 * region.height,
    )


def from_original(shape: Shape, frame: Frame, *, model_size: Size, original_size: Size) -> Shape:
    """A point or box of ``original`` pixels as one in ``frame``; undoes :func:`to_original`.

    Raises:
        ValueError: ``shape`` is not in frame ``original``.
    """
    if shape.frame != "original":
        raise ValueError(f"the shape is in frame {shape.frame!r}, not 'original'")
    if frame == "original":
        return shape
    size = frame_size(frame, model_size=model_size, original_size=original_size)
    return shape.scaled(Size(*original_size), size, frame)
