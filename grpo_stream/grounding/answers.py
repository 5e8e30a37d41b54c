"""One tolerant parser for what models answer with: a point or a box, in whatever dress.

Understood are ``(x, y)``, ``x, y``, ``[x1, y1, x2, y2]``, ``(x1,y1),(x2,y2)``, JSON and tool calls
with ``bbox_2d``, ``point_2d``, ``bbox``, ``point``, ``coordinate`` or x and y, ``click(x=1, y=2)``,
``<point>x y</point>``, ``<point x="1" y="2">``, ``<|box_start|>...<|box_end|>``, fenced code, and
any of them inside ``<answer>...</answer>``. Of several answers the first counts, before all others
the first behind a known key. What is inside ``<think>...</think>`` is never an answer.

The text is cut into tokens once and read once, so time grows in proportion to its length.
"""

import functools
import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from grpo_stream.boxes import Box, Frame, Point

MAX_ANSWER_CHARS = 65_536
"""Longest text that is read; a completion of 8,192 tokens has about half as many characters."""

Reason = Literal[
    "empty",  # nothing but white space, or nothing after the thoughts
    "too_long",  # more than MAX_ANSWER_CHARS characters
    "unclosed_think",  # the thoughts never ended, so there is no answer
    "unclosed_bracket",  # cut off inside "(12, 3"
    "no_numbers",  # words only
    "no_shape",  # numbers in prose, not as a point or box
    "wrong_count",  # a list of numbers, but not 2 or 4 of them
    "not_finite",  # NaN, infinity, or beyond what a float holds
]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """Why a text holds no answer."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Answer:
    """Two or four finite numbers as the model gave them; which frame they are in, the caller knows.

    Four numbers may be no valid box (inverted, or without area): see
    :attr:`grpo_stream.boxes.Box.is_valid`.
    """

    numbers: tuple[float, ...]

    def point(self, frame: Frame) -> Point:
        """The point, or the centre of the box, in ``frame``."""
        box = self.box(frame)
        return Point(self.numbers[0], self.numbers[1], frame) if box is None else box.centre

    def box(self, frame: Frame) -> Box | None:
        """The box in ``frame``; None when the answer is a point."""
        if len(self.numbers) != 4:
            return None
        x1, y1, x2, y2 = self.numbers
        return Box(x1, y1, x2, y2, frame)


# Each alternative fails within a few characters or not at all, so the scan never goes far back.
_TOKEN = re.compile(
    r"(?P<number>[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,9})?)"
    r"|(?P<special>[-+]?(?i:nan|inf|infinity)\b)"
    r"|(?P<word>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<mark>\S)"
)
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_]{1,32}\|>")
_WIDE = str.maketrans(
    "\uff08\uff09\uff0c\uff1a\uff1b\uff3b\uff3d\u3010\u3011\uff5b\uff5d", "(),:;[][]{}"
)
_SCOPES = (("<|box_start|>", "<|box_end|>"), ("<point>", "</point>"), ("<box>", "</box>"))
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
_MAX_CACHED_CHARS = 2_048


def parse_answer(text: str) -> Answer | ParseFailure:
    """Reads the answer out of a completion's text; never raises.

    The answers of the last few thousand short texts are remembered: several rewards read the same.

    Example:
        >>> parse_answer("<think>left of it</think><answer>(12, 34.5)</answer>")
        Answer(numbers=(12.0, 34.5))
        >>> parse_answer("I cannot see it.")
        ParseFailure(reason='no_numbers')
    """
    return _parse_cached(text) if len(text) <= _MAX_CACHED_CHARS else _parse(text)


def _parse(text: str) -> Answer | ParseFailure:
    if len(text) > MAX_ANSWER_CHARS:
        return ParseFailure("too_long")
    said = _behind_thoughts(text)
    if said is None:
        return ParseFailure("unclosed_think")
    said = _inside(said, "<answer>", "</answer>")
    for opening, closing in _SCOPES:
        said = _inside(said, opening, closing)
    said = _SPECIAL_TOKEN.sub(" ", said)
    if not said.isascii():
        said = said.translate(_WIDE)  # Chinese punctuation, as Qwen writes at times
    if not said.strip():
        return ParseFailure("empty")
    return _Reading(said).answer()


_parse_cached = functools.lru_cache(maxsize=16_384)(_parse)


def _behind_thoughts(text: str) -> str | None:
    """What is said behind the thoughts; None when they never end.

    Some chat templates open the thoughts in the prompt: then only their end is seen here.
    """
    _, ended, said = text.rpartition("</think>")
    if ended and not said.strip() and "<answer>" in text:
        # One "</think>" too many, behind the answer; thoughts alone never become the answer.
        first = text.partition("</think>")[2]
        return first if "<answer>" in first else said
    _, is_open, thoughts = said.partition("<think>")
    if not is_open:
        return said
    # Without its "</think>" an answer can still be told from the thoughts by its own tag.
    _, answered, rest = thoughts.rpartition("<answer>")
    return answered + rest if answered and "</answer>" in rest else None


def _inside(text: str, opening: str, closing: str) -> str:
    """What stands between the first pair of tags; everything when there is none."""
    _, found, rest = text.partition(opening)
    # The closing tag may be missing: engines cut it off when it is their stop word.
    return rest.partition(closing)[0] if found else text


@dataclass(slots=True)
class _Run:
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
        return len(self.values()) in (2, 4)

    @property
    def is_explicit(self) -> bool:
        """Known for an answer without brackets of its own: by its key or its axes."""
        return self.has_key or self.values() is not self.numbers


class _Reading:
    """One pass over the tokens: groups that look like an answer, and runs in bare prose."""

    def __init__(self, text: str) -> None:
        self.groups: list[_Run] = []
        self.bare: list[_Run] = []
        self.num_numbers = 0
        self.is_cut = False
        self._read(text)

    def _read(self, text: str) -> None:
        stack = [_Run(is_whole=False)]  # its first entry is what is outside all brackets
        gap_is_glue = False  # only separators since the last group ended
        axis: str | None = None
        for token in _TOKEN.finditer(text):
            kind, word = token.lastgroup, token.group()
            if kind in {"number", "special"}:
                run, value = stack[-1], float(word)
                self.num_numbers += 1
                run.numbers.append(value)
                if axis is not None:
                    run.axes.setdefault(axis, value)
                    axis = None
            elif word in _GLUE_MARKS:
                pass
            elif word in _OPEN:
                if stack[-1].numbers:
                    stack[-1] = self._next(stack)
                stack.append(_Run(has_key=stack[-1].has_key, follows=gap_is_glue))
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

    def _next(self, stack: list[_Run], *, has_key: bool = False) -> _Run:
        """Ends the run on top, which something follows, and begins another in its place."""
        run = stack[-1]
        if run.numbers and run.is_explicit:
            self.groups.append(run)
        elif run.numbers and len(stack) == 1:
            self.bare.append(run)
        return _Run(has_key=has_key, is_whole=False)

    def answer(self) -> Answer | ParseFailure:
        keyed = next((i for i, g in enumerate(self.groups) if g.has_key and g.fits), None)
        first = next((i for i, g in enumerate(self.groups) if g.fits), None)
        chosen = first if keyed is None else keyed
        if chosen is not None:
            return _finite(self._shape_at(chosen))
        if self.num_numbers == 0:
            return ParseFailure("no_numbers")
        if self.is_cut:
            return ParseFailure("unclosed_bracket")
        # Without brackets, key or axes: only if all numbers of the text are side by side.
        is_one_run = len(self.bare) == 1 and len(self.bare[0].numbers) == self.num_numbers
        if is_one_run and self.bare[0].fits:
            return _finite(self.bare[0].numbers)
        return ParseFailure("wrong_count" if self.groups or is_one_run else "no_shape")

    def _shape_at(self, start: int) -> list[float]:
        """The group's numbers; two pairs side by side, and no third, are a box."""
        end = start + 1
        while end < len(self.groups) and self.groups[end].follows:
            end += 1
        run = [group.values() for group in self.groups[start:end]]
        if len(run) == 2 and all(len(numbers) == 2 for numbers in run):
            return run[0] + run[1]
        return run[0]


def _finite(numbers: list[float]) -> Answer | ParseFailure:
    if all(map(math.isfinite, numbers)):
        return Answer(tuple(numbers))
    return ParseFailure("not_finite")
