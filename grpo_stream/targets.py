"""What a sample asks for: a place, any or all of several, or to be told that there is none.

A target is written as two fields, of a record, of a shard's JSON and of the columns that rewards
receive:

* ``solution``: the numbers of a box ``[x1, y1, x2, y2]``, a point ``[x, y]`` or a polygon
  ``[x, y, x, y, x, y, ...]``, a list of these, or ``[]`` where nothing is there;
* ``solution_wanted``: ``any`` of them counts (also what is meant without the field), ``all`` are
  wanted, or ``none``: the right answer is that nothing is there.

A sample of several images has a third one, ``solution_images``: for each place of ``solution`` the
image it is in, counted from 0; without it the first. A sample without images asks for no place,
unless it says that the right answer is ``none``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from grpo_stream.boxes import Box, Frame, Point, Size
from grpo_stream.errors import ConfigError
from grpo_stream.polygons import MIN_CORNERS, Polygon, Shape

Wanted = Literal["any", "all", "none"]
WANTED_FIELD = "solution_wanted"
"""Name of the field that says what is wanted of several places."""
IMAGES_FIELD = "solution_images"
"""Name of the field that says which of several images each place is in."""

_SHAPES = "a box of 4 numbers, a point of 2 or a polygon of 6 or more"


@dataclass(frozen=True, slots=True)
class Target:
    """The places that are asked for, all in one frame."""

    shapes: tuple[Shape, ...]
    """None where nothing is there."""
    wants_all: bool = False
    """All of several are wanted, not any of them."""
    images: tuple[int, ...] = ()
    """For each of ``shapes`` the image it is in, counted from 0; empty: all in the first."""
    asks_place: bool = True
    """False in a sample without images that asks for something else."""

    @property
    def is_absent(self) -> bool:
        """Nothing is there: the right answer says so."""
        return self.asks_place and not self.shapes

    def image_of(self, number: int) -> int:
        """The image that a place is in."""
        return self.images[number] if self.images else 0

    @property
    def wanted(self) -> Wanted:
        """As the field says it."""
        return "none" if self.is_absent else "all" if self.wants_all else "any"

    def scaled(self, from_size: Size, to_size: Size, frame: Frame) -> "Target":
        """The same places in an image of another size, named as ``frame``."""
        shapes = tuple(shape.scaled(from_size, to_size, frame) for shape in self.shapes)
        return replace(self, shapes=shapes)


def read_target(
    solution: Any, wanted: Any = None, images: Any = None, num_images: int = 1
) -> Target:
    """A target from its fields, in frame ``original``.

    Args:
        solution: Places.
        wanted: Of several.
        images: Of several images the one that each place is in; None: the first.
        num_images: Of the sample. The fields of a sample of one image say nothing of images.

    Example:
        >>> read_target([[0, 0, 8, 8], [3, 4]], "all").wants_all
        True
        >>> read_target([]).is_absent
        True

    Raises:
        ConfigError: the numbers are of no shape, ``wanted`` is no such word or of another count,
            or ``images`` does not name an image for each place.
    """
    if wanted not in (None, *get_args(Wanted)):
        raise ConfigError(WANTED_FIELD, wanted, "must be any, all or none")
    lists = list(solution_lists(solution))
    if lists and wanted == "none":
        raise ConfigError("solution", solution, f"must be [] where {WANTED_FIELD} is none")
    if not lists and wanted in ("any", "all"):
        raise ConfigError(
            "solution", solution, f"must have places where {WANTED_FIELD} is {wanted}"
        )
    shapes = tuple(map(read_shape, lists))
    if num_images == 1:
        return Target(shapes, wanted == "all")
    lies_in = tuple(images) if images is not None else (0,) * len(shapes)
    if len(lies_in) != len(shapes) or not all(0 <= number < num_images for number in lies_in):
        expected = f"must name one of {num_images} images for each of {len(shapes)} places"
        raise ConfigError(IMAGES_FIELD, images, expected)
    asks_place = num_images > 0 or wanted == "none"
    return Target(shapes, wanted == "all", lies_in, asks_place)


def target_of(solution: Any, fields: Mapping[str, Any], num_images: int) -> Target:
    """:func:`read_target` for a sample in motion, whose own fields say what is wanted and where."""
    return read_target(solution, fields.get(WANTED_FIELD), fields.get(IMAGES_FIELD), num_images)


def solution_lists(solution: Any) -> Iterator[Sequence[float]]:
    """The numbers of each place, from one list of numbers or from a list of these."""
    if solution is None or not len(solution):
        return
    is_of_lists = not isinstance(solution[0], (int, float)) and hasattr(solution[0], "__len__")
    yield from solution if is_of_lists else (solution,)


def read_shape(numbers: Sequence[float]) -> Shape:
    """A point, box or polygon from its numbers, in frame ``original``.

    Raises:
        ConfigError: there are too few, or an odd number of them.
    """
    values = [float(number) for number in numbers]
    count = len(values)
    if count == 4:
        x1, y1, x2, y2 = values
        return Box(x1, y1, x2, y2)
    if count == 2:
        x, y = values
        return Point(x, y)
    if count >= 2 * MIN_CORNERS and count % 2 == 0:
        return Polygon(tuple(zip(values[::2], values[1::2], strict=True)))
    raise ConfigError("solution", numbers, f"must be {_SHAPES}, or several of these, or []")


def shape_numbers(shape: Shape) -> list[float]:
    """Undoes :func:`read_shape`."""
    if isinstance(shape, Point):
        return [shape.x, shape.y]
    if isinstance(shape, Box):
        return [shape.x1, shape.y1, shape.x2, shape.y2]
    return [number for corner in shape.corners for number in corner]


def has_extent(shape: Shape) -> bool:
    """Whether a place can be scored: a point, or a region whose area is no rounding error."""
    return isinstance(shape, Point) or (shape.is_valid and shape.area > 0)


def bounds_of(shape: Box | Polygon) -> Box:
    """The least box around a region."""
    return shape if isinstance(shape, Box) else shape.bounds


def centre_of(shape: Shape) -> Point:
    """A point itself, or the middle of a region's bounds."""
    return shape if isinstance(shape, Point) else shape.centre


def area_share(shape: Box | Polygon, image: Size) -> float:
    """Of an image's area."""
    area = shape.area / (image.width * image.height)
    return area if math.isfinite(area) else math.inf
