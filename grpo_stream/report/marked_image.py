"""Places drawn on an image, readable at 112 and at 4000 pixels; small ones enlarged."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.images import Pixels
from grpo_stream.polygons import Polygon, Shape
from grpo_stream.report.drawn_text import font
from grpo_stream.targets import bounds_of, has_extent

Role = Literal["truth", "right", "wrong", "zoom"]
Colour = tuple[int, int, int]

COLOURS: dict[Role, Colour] = {
    "truth": (0, 150, 80),
    "right": (20, 90, 230),
    "wrong": (215, 35, 35),
    "zoom": (240, 150, 0),
}
"""RGB of the true place, a prediction that hits it, one that does not, and what is shown larger."""

ABSENT = "not there"
"""What is written where nothing is there, or is said to be."""

MAX_SIDE_PIXELS = 640
"""Longest side of a picture; larger images are made smaller."""
_ENLARGE_UP_TO = 448  # small images grow by a whole factor, so that their pixels stay squares
_WHITE: Colour = (255, 255, 255)
_SMOOTHING = 3  # marks are drawn this much larger and averaged down: smooth edges
_LEAST_CONTEXT = Size(144, 90)
"""Pixels of the image that a closer look shows at least, so that one knows where one is."""
_BOX_SHARE = 0.7  # of the closer look, at most
_WORTH_IT = 0.6  # a region this long compared to the image shows hardly more than the image


@dataclass(frozen=True)
class Mark:
    """A place to draw; its numbers are pixels of the image that it is drawn on.

    A box becomes an outline around its pixels, a polygon its outline, a point a cross-hair. That
    nothing is there becomes words in the upper left corner.
    """

    shape: Shape | None
    """None: nothing is there."""
    role: Role
    label: str = ""
    """A letter or number that is beside the mark."""
    own_colour: Colour | None = None
    """RGB in the place of its role's."""

    @property
    def colour(self) -> Colour:
        """RGB that it is drawn in."""
        return self.own_colour or COLOURS[self.role]


def draw_marks(
    image: Pixels | Image.Image, marks: Sequence[Mark], size: Size | None = None
) -> Image.Image:
    """``image`` at a readable size with ``marks`` on it, later ones on top.

    Args:
        image: uint8 of shape (height, width, 3), or a Pillow image.
        marks: What to draw. A point outside of the image is drawn at the edge next to it; what is
            not finite, inverted or without area is left out. Words that nothing is there are below
            each other.
        size: Size of the result; None for :func:`picture_size`.

    Returns:
        A new RGB image.
    """
    source = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    before = Size(*source.size)
    after = picture_size(before) if size is None else size
    is_tiny = size is None and after.width > before.width
    way = Image.Resampling.NEAREST if is_tiny else Image.Resampling.LANCZOS
    small = source.convert("RGB").resize((after.width, after.height), way)
    canvas = small.resize((after.width * _SMOOTHING, after.height * _SMOOTHING), 0)
    pen = _Pen(canvas)
    num_absent = 0
    for mark in marks:
        if mark.shape is None:
            pen.absence(mark.label, mark.colour, num_absent)
            num_absent += 1
            continue
        shape = mark.shape.scaled(before, Size(*canvas.size), mark.shape.frame)
        if isinstance(shape, Point):
            if not math.isfinite(shape.x + shape.y):
                continue
            pen.cross_hair(shape, mark.colour)
        elif not has_extent(shape):
            continue
        elif isinstance(shape, Polygon):
            pen.closed_line(shape, mark.colour)
        else:
            pen.outline(shape, mark.colour, is_thin=mark.role == "zoom")
        if mark.label:
            pen.label(shape, mark.label, mark.colour)
    return canvas.reduce(_SMOOTHING)


def picture_size(size: Size, max_side: int = MAX_SIDE_PIXELS) -> Size:
    """The size at which an image of ``size`` is shown: enlarged if tiny, reduced if large."""
    longest = max(size)
    if longest > max_side:
        scale = max_side / longest
        return Size(max(1, round(size.width * scale)), max(1, round(size.height * scale)))
    factor = max(1, _ENLARGE_UP_TO // longest)
    return Size(size.width * factor, size.height * factor)


def encode_picture(image: Image.Image) -> bytes:
    """PNG or JPEG bytes, whichever are fewer: PNG for drawings, JPEG for photographs."""
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    image.convert("RGB").save(jpeg, "JPEG", quality=85, subsampling=0)
    return min(png.getvalue(), jpeg.getvalue(), key=len)


def zoom_region(shape: Shape, size: Size) -> Box | None:
    """The part of an image of ``size`` around ``shape`` that is worth enlarging.

    Returns:
        A box of whole pixels inside the image, 8 to 5 where the image allows it, in the shape's
        frame; None where it would show most of the image anyway, or the shape cannot be drawn.
    """
    if isinstance(shape, Point):
        box = Box(shape.x, shape.y, shape.x + 1, shape.y + 1, shape.frame)
    else:
        box = bounds_of(shape)
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
    shape: Shape,
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
    marks = [replace(Mark(shape, role), shape=_moved(shape, -left, -top))]
    marks += [
        replace(mark, shape=_moved(mark.shape, -left, -top))
        for mark in more
        if mark.shape is not None and _meets(mark.shape, region)
    ]
    return draw_marks(part, marks, size)


class _Pen:
    """Draws on an enlarged canvas: each stroke first wider in white, then in its colour."""

    def __init__(self, canvas: Image.Image) -> None:
        self.draw = ImageDraw.Draw(canvas)
        self.size = Size(*canvas.size)
        shown = max(self.size) / _SMOOTHING
        self.line = _SMOOTHING * min(5, max(2, round(shown / 160)))
        self.halo = _SMOOTHING * max(1, round(shown / 300))
        self.arm = _SMOOTHING * round(8 + shown / 40)

    def outline(self, box: Box, colour: Colour, *, is_thin: bool = False) -> None:
        """Strokes around the box's pixels; at the image's edge they move inside."""
        line, halo = (self.line // 2, self.halo // 2) if is_thin else (self.line, self.halo)
        for reach, width, ink in (
            (line + halo, line + 2 * halo, _WHITE),
            (line, line, colour),
        ):
            least = line + halo - reach
            left, top = (max(least, round(v) - reach) for v in (box.x1, box.y1))
            right = min(self.size.width - 1 - least, round(box.x2) - 1 + reach)
            bottom = min(self.size.height - 1 - least, round(box.y2) - 1 + reach)
            if left <= right and top <= bottom:
                self.draw.rectangle((left, top, right, bottom), outline=ink, width=width)

    def closed_line(self, polygon: Polygon, colour: Colour) -> None:
        """Strokes along the outline, with round corners; at the image's edge they are cut."""
        corners = [*polygon.corners, *polygon.corners[:2]]
        for width, ink in ((self.line + 2 * self.halo, _WHITE), (self.line, colour)):
            self.draw.line(corners, fill=ink, width=width, joint="curve")

    def absence(self, label: str, colour: Colour, number: int) -> None:
        """Words on a patch in the upper left corner, ``number`` rows below it."""
        words = f"{label}: {ABSENT}" if label else ABSENT
        row = self.line * 7
        self.label(Point(2 * self.line, 2 * self.line + row * (number + 1)), words, colour)

    def cross_hair(self, point: Point, colour: Colour) -> None:
        """A ring with four ticks and a dot in the middle."""
        x = min(max(point.x, 0), self.size.width - 1)
        y = min(max(point.y, 0), self.size.height - 1)
        ring = self.arm * 0.6
        for extra, ink in ((self.halo, _WHITE), (0, colour)):
            width = self.line + 2 * extra
            outer = ring + width / 2
            self.draw.ellipse(
                (x - outer, y - outer, x + outer, y + outer), outline=ink, width=width
            )
            near, far = ring - extra, self.arm * 1.25 + extra
            half = width / 2
            for sign in (-1, 1):
                a, b = sorted((sign * near, sign * far))
                self.draw.rectangle((x + a, y - half, x + b, y + half), fill=ink)
                self.draw.rectangle((x - half, y + a, x + half, y + b), fill=ink)
            dot = self.line * 0.6 + extra
            self.draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=ink)

    def label(self, shape: Shape, text: str, colour: Colour) -> None:
        """``text`` in white on a patch at the shape's upper left corner, inside of the image.

        Of a polygon that is its highest corner.
        """
        if isinstance(shape, Polygon):
            x, y = min(shape.corners, key=lambda corner: (corner[1], corner[0]))
        else:
            x, y = (shape.x1, shape.y1) if isinstance(shape, Box) else (shape.x, shape.y)
        type_face = font(round(self.line * 4.5))
        width, height = round(type_face.getlength(text) + 3 * self.line), self.line * 6
        left = round(min(max(x - self.line, 0), max(0, self.size.width - width)))
        top = round(min(max(y - self.line - height, 0), max(0, self.size.height - height)))
        self.draw.rectangle((left, top, left + width, top + height), fill=colour)
        middle = (left + width / 2, top + height / 2)
        self.draw.text(middle, text, fill=_WHITE, font=type_face, anchor="mm")


def _meets(shape: Shape, region: Box) -> bool:
    if isinstance(shape, Point):
        return region.x1 <= shape.x < region.x2 and region.y1 <= shape.y < region.y2
    shape = bounds_of(shape)
    is_beside = shape.x2 <= region.x1 or shape.x1 >= region.x2
    return not (is_beside or shape.y2 <= region.y1 or shape.y1 >= region.y2)


def _span(centre: float, length: float, limit: int) -> tuple[int, int]:
    """Whole start and end of a stretch around ``centre`` that stays within [0, limit]."""
    whole = min(limit, max(1, round(length)))
    start = min(max(round(centre - whole / 2), 0), limit - whole)
    return start, start + whole


def _moved(shape: Shape, dx: float, dy: float) -> Shape:
    if isinstance(shape, Point):
        return Point(shape.x + dx, shape.y + dy, shape.frame)
    if isinstance(shape, Polygon):
        return Polygon(tuple((x + dx, y + dy) for x, y in shape.corners), shape.frame)
    return Box(shape.x1 + dx, shape.y1 + dy, shape.x2 + dx, shape.y2 + dy, shape.frame)
