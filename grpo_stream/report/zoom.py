"""A closer look at a small place: which part of the image to enlarge, and the enlarged part."""

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.report.pictures import Mark, Role, draw_marks

_LEAST_CONTEXT = Size(144, 90)
"""Pixels of the image that a closer look shows at least, so that one knows where one is."""
_BOX_SHARE = 0.7  # of the closer look, at most
_WORTH_IT = 0.6  # a region this long compared to the image shows hardly more than the image


def zoom_region(shape: Box | Point, size: Size) -> Box | None:
    """The part of an image of ``size`` around ``shape`` that is worth enlarging.

    Returns:
        A box of whole pixels inside the image, 8 to 5 where the image allows it, in the shape's
        frame; None where it would show most of the image anyway, or the shape cannot be drawn.
    """
    box = Box(shape.x, shape.y, shape.x + 1, shape.y + 1) if isinstance(shape, Point) else shape
    if not box.is_valid or not box.clipped(size).is_valid:
        return None
    box = box.clipped(size)
    width = max(box.width / _BOX_SHARE, box.height / _BOX_SHARE * 8 / 5, _LEAST_CONTEXT.width)
    height = max(width * 5 / 8, _LEAST_CONTEXT.height)
    if width > _WORTH_IT * size.width and height > _WORTH_IT * size.height:
        return None
    x1, x2 = _span(box.centre.x, width, size.width)
    y1, y2 = _span(box.centre.y, height, size.height)
    return Box(x1, y1, x2, y2, box.frame)


def draw_zoom(
    image: Image.Image,
    shape: Box | Point,
    role: Role,
    region: Box,
    within: Size,
    more: Sequence[Mark] = (),
) -> Image.Image:
    """The ``region`` of ``image`` as large as fits ``within``, with ``shape`` drawn on it.

    Args:
        image: The whole image.
        shape: In pixels of the whole image.
        role: Decides the colour.
        region: From :func:`zoom_region`.
        within: Largest width and height of the result in pixels.
        more: Further marks in pixels of the whole image; those outside of ``region`` are left out.
    """
    left, top = round(region.x1), round(region.y1)
    part = image.crop((left, top, round(region.x2), round(region.y2)))
    scale = min(within.width / part.width, within.height / part.height)
    size = Size(max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    marks = [Mark(shape, role), *(mark for mark in more if _meets(mark.shape, region))]
    return draw_marks(part, [replace(m, shape=_moved(m.shape, -left, -top)) for m in marks], size)


def _meets(shape: Box | Point, region: Box) -> bool:
    if isinstance(shape, Point):
        return region.x1 <= shape.x < region.x2 and region.y1 <= shape.y < region.y2
    is_beside = shape.x2 <= region.x1 or shape.x1 >= region.x2
    return not (is_beside or shape.y2 <= region.y1 or shape.y1 >= region.y2)


def _span(centre: float, length: float, limit: int) -> tuple[int, int]:
    """Whole start and end of a stretch around ``centre`` that stays within [0, limit]."""
    whole = min(limit, max(1, round(length)))
    start = min(max(round(centre - whole / 2), 0), limit - whole)
    return start, start + whole


def _moved(shape: Box | Point, dx: float, dy: float) -> Box | Point:
    if isinstance(shape, Point):
        return Point(shape.x + dx, shape.y + dy, shape.frame)
    return Box(shape.x1 + dx, shape.y1 + dy, shape.x2 + dx, shape.y2 + dy, shape.frame)
