"""True and predicted places drawn on an image, readable at 112 and at 4000 pixels."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.images import Pixels
from grpo_stream.report.text import font

Role = Literal["truth", "right", "wrong", "zoom"]
Colour = tuple[int, int, int]

COLOURS: dict[Role, Colour] = {
    "truth": (0, 150, 80),
    "right": (20, 90, 230),
    "wrong": (215, 35, 35),
    "zoom": (240, 150, 0),
}
"""RGB of the true place, a prediction that hits it, one that does not, and what is shown larger."""

MAX_SIDE_PIXELS = 640
"""Longest side of a picture; larger images are made smaller."""
_ENLARGE_UP_TO = 448  # small images grow by a whole factor, so that their pixels stay squares
_WHITE: Colour = (255, 255, 255)
_SMOOTHING = 3  # marks are drawn this much larger and averaged down: smooth edges


@dataclass(frozen=True)
class Mark:
    """A place to draw; its numbers are pixels of the image that it is drawn on.

    A box becomes an outline around its pixels, a point a cross-hair.
    """

    shape: Box | Point
    role: Role
    label: str = ""
    """A letter or number that stands beside the mark."""
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
            not finite, inverted or without area is left out.
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
    for mark in marks:
        shape = mark.shape.scaled(before, Size(*canvas.size), mark.shape.frame)
        if isinstance(shape, Point):
            if not math.isfinite(shape.x + shape.y):
                continue
            pen.cross_hair(shape, mark.colour)
        elif shape.is_valid:
            pen.outline(shape, mark.colour, is_thin=mark.role == "zoom")
        else:
            continue
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


def contact_sheet(images: Sequence[Image.Image], columns: int, gap: int = 12) -> Image.Image:
    """``images`` on one white sheet, row by row, each in the middle of its cell.

    Args:
        images: At least one.
        columns: Cells in a row.
        gap: Pixels between cells and around them.

    Raises:
        ValueError: no images, or less than one column.
    """
    if not images or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns: both must be at least 1")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell = Size(max(i.width for i in images), max(i.height for i in images))
    size = (gap + columns * (cell.width + gap), gap + rows * (cell.height + gap))
    sheet = Image.new("RGB", size, _WHITE)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        x = gap + column * (cell.width + gap) + (cell.width - image.width) // 2
        y = gap + row * (cell.height + gap) + (cell.height - image.height) // 2
        sheet.paste(image, (x, y))
    return sheet


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

    def label(self, shape: Box | Point, text: str, colour: Colour) -> None:
        """``text`` in white on a patch at the shape's upper left corner, inside of the image."""
        x, y = (shape.x1, shape.y1) if isinstance(shape, Box) else (shape.x, shape.y)
        type_face = font(round(self.line * 4.5))
        width, height = round(type_face.getlength(text) + 3 * self.line), self.line * 6
        left = round(min(max(x - self.line, 0), max(0, self.size.width - width)))
        top = round(min(max(y - self.line - height, 0), max(0, self.size.height - height)))
        self.draw.rectangle((left, top, left + width, top + height), fill=colour)
        middle = (left + width / 2, top + height / 2)
        self.draw.text(middle, text, fill=_WHITE, font=type_face, anchor="mm")
