"""Points and boxes that name their frame, and the arithmetic between frames.

A frame is the coordinate system a number lives in; origin top-left, x to the right, y down:

* ``original``: pixels of the upright original image (EXIF orientation applied),
* ``model``: pixels of the image as resized for the model (what Qwen2.5-VL answers in),
* ``per_mille``: 0-1000 over width and height (what Qwen2-VL and Qwen3-VL answer in).

Ends are exclusive: ``Box(0, 0, 1, 1)`` is one pixel and has area 1.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

Frame = Literal["original", "model", "per_mille"]
FRAMES: tuple[Frame, ...] = ("original", "model", "per_mille")


class Size(NamedTuple):
    """Width and height of an image in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Point:
    """A position ``(x, y)`` in ``frame``."""

    x: float
    y: float
    frame: Frame = "original"

    def scaled(self, from_size: Size, to_size: Size, frame: Frame) -> "Point":
        """The same place in an image of another size, named as ``frame``."""
        return Point(
            self.x * to_size.width / from_size.width,
            self.y * to_size.height / from_size.height,
            frame,
        )


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle ``[x1, x2) x [y1, y2)`` in ``frame``.

    Any numbers are allowed, so that a model's answer can be held as it was given;
    :attr:`is_valid` tells whether it is a box.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    frame: Frame = "original"

    @property
    def is_valid(self) -> bool:
        """All four numbers are finite and the area is positive."""
        finite = all(map(math.isfinite, (self.x1, self.y1, self.x2, self.y2)))
        return finite and self.x1 < self.x2 and self.y1 < self.y2

    @property
    def width(self) -> float:
        """``x2 - x1``, never below 0."""
        return max(0.0, self.x2 - self.x1)

    @property
    def height(self) -> float:
        """``y2 - y1``, never below 0."""
        return max(0.0, self.y2 - self.y1)

    @property
    def area(self) -> float:
        """Width times height; 0 for an inverted box."""
        return self.width * self.height

    @property
    def centre(self) -> Point:
        """The middle, in the same frame."""
        return Point((self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2, self.frame)

    def contains(self, point: Point) -> bool:
        """Whether ``point`` is in the box, ends exclusive.

        Raises:
            ValueError: the frames differ.
        """
        _same_frame(self.frame, point.frame)
        return self.x1 <= point.x < self.x2 and self.y1 <= point.y < self.y2

    def scaled(self, from_size: Size, to_size: Size, frame: Frame) -> "Box":
        """The same region in an image of another size, named as ``frame``."""
        kx = to_size.width / from_size.width
        ky = to_size.height / from_size.height
        return Box(self.x1 * kx, self.y1 * ky, self.x2 * kx, self.y2 * ky, frame)

    def clipped(self, size: Size) -> "Box":
        """The part of the box that is in an image of ``size``."""
        return Box(
            min(max(self.x1, 0), size.width),
            min(max(self.y1, 0), size.height),
            min(max(self.x2, 0), size.width),
            min(max(self.y2, 0), size.height),
            self.frame,
        )


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes of one frame, in [0, 1]; 0 when either is no box.

    Example:
        >>> iou(Box(0, 0, 2, 2), Box(1, 0, 3, 2))
        0.3333333333333333

    Raises:
        ValueError: the frames differ.
    """
    _same_frame(a.frame, b.frame)
    if not (a.is_valid and b.is_valid):
        return 0.0
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / (a.area + b.area - overlap)


def _same_frame(a: Frame, b: Frame) -> None:
    if a != b:
        raise ValueError(f"frames differ: {a!r} and {b!r}; convert one of them with scaled()")
