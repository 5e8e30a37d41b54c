"""What there is to go by for one form: a sample of its records, with the sizes of their images."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from grpo_stream.boxes import Size
from grpo_stream.errors import GrpoStreamError, ImageError
from grpo_stream.images import probe
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.records.formats.rules import Rules

_NUM_FIRST, _NUM_SPREAD, _NUM_LAST = 32, 480, 32
_MAX_NUMBER = 1e9

SizeOf = Callable[["str | InlineImage"], Size]
"""The upright size of a record's image; raises GrpoStreamError where there is none."""


class Looked(NamedTuple):
    """A record that was looked at."""

    record: int
    """Its position in the input."""
    prompt: str
    image: str
    size: Size
    numbers: tuple[float, ...]


class Sampled:
    """A spread sample of what comes by: the first, the last, and every n-th between.

    All of up to 544 records are kept; of more it is stated how many were looked at.

    Args:
        light: Makes what is kept of an item.
    """

    def __init__(self, light: Callable[[Any], Any] = lambda item: item) -> None:
        self.num_seen = 0
        self._light = light
        self._first: list[Any] = []
        self._spread: list[Any] = []
        self._last: deque[Any] = deque(maxlen=_NUM_LAST)
        self._stride = 1

    def add(self, item: Any) -> None:
        """Takes one."""
        self.num_seen += 1
        if self.num_seen <= _NUM_FIRST:
            self._first.append(self._light(item))
            return
        if len(self._last) == _NUM_LAST:
            passed = self._last[0]
            if (self.num_seen - _NUM_FIRST) % self._stride == 0:
                self._spread.append(self._light(passed))
                if len(self._spread) > _NUM_SPREAD:
                    del self._spread[::2]
                    self._stride *= 2
        self._last.append(item)

    def items(self) -> list[Any]:
        """In their order."""
        return [*self._first, *self._spread, *map(self._light, self._last)]


class Evidence:
    """The records of one form in one input, of which a sample is looked at.

    Args:
        rules: Where the fields are.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.sampled = Sampled(lambda item: (item[0], _light(item[1], rules)))

    def add(self, index: int, record: Mapping[str, Any]) -> None:
        """Takes one record."""
        self.sampled.add((index, record))

    def looked(self, size_of: SizeOf) -> list[Looked]:
        """The boxes and points of the sample, with the sizes of their images.

        Records that the judge will refuse for another cause than their place are passed over.
        """
        found: list[Looked] = []
        for index, record in self.sampled.items():
            image = record.get(self.rules.image_key)
            if isinstance(image, list) and len(image) == 1:
                image = image[0]
            places = _places(record.get(self.rules.solution_key))
            if not places or not isinstance(image, (str, InlineImage)):
                continue
            try:
                size = _declared(record) or size_of(image)
            except GrpoStreamError:
                continue
            name = image.name if isinstance(image, InlineImage) else image
            prompt = record.get(self.rules.prompt_key)
            said = prompt if isinstance(prompt, str) else ""
            found += [Looked(index, said, name, size, numbers) for numbers in places]
        return found


def _light(record: Mapping[str, Any], rules: Rules) -> Mapping[str, Any]:
    """A record without its picture, whose size is told instead: it may be kept."""
    image = record.get(rules.image_key)
    if not isinstance(image, InlineImage):
        return record
    try:
        width, height = probe(image.data).size
    except ImageError:
        return {}
    named = {"width": width, "height": height, rules.image_key: image.name}
    return dict(record) | named


def _declared(record: Mapping[str, Any]) -> Size | None:
    width, height = record.get("width"), record.get("height")
    if type(width) is int and type(height) is int and width > 1 and height > 1:
        return Size(width, height)
    return None


def _places(value: Any) -> list[tuple[float, ...]]:
    """The numbers of a record's boxes, points and polygons; none where some are no numbers."""
    if not isinstance(value, list) or not value:
        return []
    if isinstance(value[0], list):
        if all(isinstance(item, list) and len(item) == 2 for item in value) and len(value) > 2:
            value = [[number for pair in value for number in pair]]
        found = [_place(item) for item in value]
        return [numbers for numbers in found if numbers is not None]
    numbers = _place(value)
    return [] if numbers is None else [numbers]


def _place(value: Any) -> tuple[float, ...] | None:
    if not isinstance(value, list) or len(value) not in (2, 4, 6, 8, *range(10, 200, 2)):
        return None
    for number in value:
        if type(number) not in (int, float) or not -_MAX_NUMBER < number < _MAX_NUMBER:
            return None
    return tuple(value)
