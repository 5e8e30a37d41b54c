"""The numbers of a text as groups that may be points or boxes: one pass over its tokens."""

import re
from dataclasses import dataclass, field

# Each alternative fails within a few characters or not at all, so the scan never goes far back.
_TOKEN = re.compile(
    r"(?P<number>[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,9})?)"
    r"|(?P<special>[-+]?(?i:nan|inf|infinity)\b)"
    r"|(?P<word>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<mark>\S)"
)
_KEYS = frozenset(("bbox_2d", "point_2d", "bbox", "point", "coordinate", "coordinates"))
_AXES = {name: name for name in ("x", "y", "x1", "y1", "x2", "y2")} | {
    "xmin": "x1",
    "ymin": "y1",
    "xmax": "x2",
    "ymax": "y2",
}
_SIZE_WORDS = frozenset(("w", "h", "width", "height"))
_GLUE_WORDS = frozenset(("px", "json"))
_GLUE_MARKS = frozenset(",;:='\"`")
_OPEN = frozenset("([{")
_CLOSE = frozenset(")]}")


@dataclass(slots=True)
class NumberRun:
    """Numbers side by side: nothing but separators and axis names stands between them."""

    has_key: bool = False  # is after a known key
    is_whole: bool = True  # its brackets hold nothing else
    follows: bool = False  # only separators since the last group
    numbers: list[float] = field(default_factory=list)
    axes: dict[str, float] = field(default_factory=dict)

    def values(self) -> list[float]:
        """The numbers in the order x, y, or x1, y1, x2, y2."""
        for names in (("x1", "y1", "x2", "y2"), ("x", "y")):
            if all(name in self.axes for name in names):
                return [self.axes[name] for name in names]
        return self.numbers

    @property
    def fits(self) -> bool:
        """It has the numbers of a point or of a box."""
        return len(self.values()) in (2, 4)

    @property
    def is_explicit(self) -> bool:
        """Known for an answer without brackets of its own: by its key or its axes."""
        return self.has_key or self.values() is not self.numbers


class NumberGroups:
    """Groups of numbers that look like an answer, and runs in bare prose.

    Args:
        text: What is said after the thoughts, without tags.
    """

    def __init__(self, text: str) -> None:
        self.groups: list[NumberRun] = []
        """In brackets, behind a known key or with axes."""
        self.bare: list[NumberRun] = []
        """In prose."""
        self.num_numbers = 0
        self.is_cut = False
        """A bracket is open at the end."""
        self._read(text)

    def _read(self, text: str) -> None:
        stack = [NumberRun(is_whole=False)]  # its first entry is what is outside all brackets
        gap_is_glue = False  # only separators since the last group ended
        axis: str | None = None
        for token in _TOKEN.finditer(text):
            kind, word = token.lastgroup, token.group()
            if kind in {"number", "special"}:
                run, value = stack[-1], float(word)
                self.num_numbers += 1
                if len(stack) == 1:
                    gap_is_glue = False  # as the number of the next item of a list
                run.numbers.append(value)
                if axis is not None:
                    run.axes.setdefault(axis, value)
                    axis = None
            elif word in _GLUE_MARKS:
                pass
            elif word in _OPEN:
                if stack[-1].numbers:
                    stack[-1] = self._next(stack)
                stack.append(NumberRun(has_key=stack[-1].has_key, follows=gap_is_glue))
                axis = None
            elif word in _CLOSE:
                if len(stack) > 1:
                    run = stack.pop()
                    if run.numbers and (run.is_whole or run.is_explicit):
                        self.groups.append(run)
                        gap_is_glue = True
                    elif run.numbers:
                        gap_is_glue = False
            elif kind == "word" and (name := word.lower()) in _AXES:
                axis = _AXES[name]
            elif kind == "mark" or name not in _GLUE_WORDS:
                gap_is_glue, axis = False, None
                if kind == "word" and name in _SIZE_WORDS:
                    stack[-1].axes.clear()  # x, y, width, height: not the point x, y
                stack[-1] = self._next(stack, has_key=word in _KEYS)
        if stack[0].numbers:
            self._next(stack[:1])
        self.is_cut = len(stack) > 1

    def shapes(self) -> list[list[float]]:
        """Groups of 2 or 4 numbers in their order: behind a known key if any is, or else all.

        Two pairs side by side, and no third, are one of four, unless each says x and y.
        """
        fitting = [i for i, group in enumerate(self.groups) if group.fits]
        fitting = [i for i in fitting if self.groups[i].has_key] or fitting
        shapes: list[list[float]] = []
        end, is_pair = 0, False  # of the run of neighbours
        for start in fitting:
            if start < end:
                shapes += [] if is_pair else [self.groups[start].values()]
                continue
            end = start + 1
            while end < len(self.groups) and self.groups[end].follows:
                end += 1
            near = self.groups[start:end]
            run = [group.values() for group in near]
            is_pair = len(run) == 2 and all(len(numbers) == 2 for numbers in run)
            is_pair &= not all(group.values() is not group.numbers for group in near)
            shapes.append(run[0] + run[1] if is_pair else run[0])
        return shapes

    def _next(self, stack: list[NumberRun], *, has_key: bool = False) -> NumberRun:
        """Ends the run on top, which something follows, and begins another in its place."""
        run = stack[-1]
        if run.numbers and run.is_explicit:
            self.groups.append(run)
        elif run.numbers and len(stack) == 1:
            self.bare.append(run)
        return NumberRun(has_key=has_key, is_whole=False)
