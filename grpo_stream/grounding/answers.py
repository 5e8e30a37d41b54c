"""One tolerant parser for what models answer with: a point or a box, in whatever dress.

Understood are ``(x, y)``, ``x, y``, ``[x1, y1, x2, y2]``, ``(x1,y1),(x2,y2)``, JSON and tool calls
with ``bbox_2d``, ``point_2d``, ``bbox``, ``point``, ``coordinate`` or x and y, ``click(x=1, y=2)``,
``<point>x y</point>``, ``<|box_start|>...<|box_end|>``, fenced code, and any of them inside
``<answer>...</answer>`` after ``<think>...</think>``. Of several answers the first counts.

The text is cut into tokens once and read once, so time grows in proportion to its length.
"""

import math
import re
from dataclasses import dataclass
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
_SCOPES = (("<|box_start|>", "<|box_end|>"), ("<point>", "</point>"))
_KEYS = frozenset(("bbox_2d", "point_2d", "bbox", "point", "coordinate", "coordinates"))
_GLUE_WORDS = frozenset(("x", "y", "x1", "y1", "x2", "y2", "px", "json"))
_GLUE_MARKS = frozenset(",;:='\"`")
_OPEN = frozenset("([{")
_CLOSE = frozenset(")]}")


def parse_answer(text: str) -> Answer | ParseFailure:
    """Reads the answer out of a completion's text; never raises.

    Example:
        >>> parse_answer("<think>left of it</think><answer>(12, 34.5)</answer>")
        Answer(numbers=(12.0, 34.5))
        >>> parse_answer("I cannot see it.")
        ParseFailure(reason='no_numbers')
    """
    if len(text) > MAX_ANSWER_CHARS:
        return ParseFailure("too_long")
    # Some chat templates open the thoughts in the prompt: then only their end is seen here.
    text = text.rpartition("</think>")[2]
    if "<think>" in text:
        return ParseFailure("unclosed_think")
    text = _inside(text, "<answer>", "</answer>")
    for opening, closing in _SCOPES:
        text = _inside(text, opening, closing)
    text = _SPECIAL_TOKEN.sub(" ", text)
    if not text.strip():
        return ParseFailure("empty")
    return _Reading(text).answer()


def _inside(text: str, opening: str, closing: str) -> str:
    """What stands between the first pair of tags; everything when there is none."""
    _, found, rest = text.partition(opening)
    # The closing tag may be missing: engines cut it off when it is their stop word.
    return rest.partition(closing)[0] if found else text


@dataclass(slots=True)
class _Group:
    """Numbers directly inside one pair of brackets."""

    numbers: list[float]
    has_key: bool = False
    is_pure: bool = True  # nothing but numbers, separators and axis names
    follows_group: bool = False  # nothing but separators since the last group


class _Reading:
    """One pass over the tokens: bracketed lists of numbers, and all numbers of the text."""

    def __init__(self, text: str) -> None:
        self.groups: list[_Group] = []
        self.bare = _Group([])
        self.num_numbers = 0
        self.is_cut = False
        self._read(text)

    def _read(self, text: str) -> None:
        stack: list[_Group] = []
        key_is_open = False  # a known key was the last word
        gap_is_glue = False  # only separators since the last group ended
        for token in _TOKEN.finditer(text):
            kind, word = token.lastgroup, token.group()
            if kind in {"number", "special"}:
                self.num_numbers += 1
                (stack[-1] if stack else self.bare).numbers.append(float(word))
            elif word in _OPEN:
                stack.append(_Group([], has_key=key_is_open, follows_group=gap_is_glue))
                self.bare.is_pure = False
            elif word in _CLOSE:
                if stack:
                    group = stack.pop()
                    if group.numbers and group.is_pure:
                        self.groups.append(group)
                        gap_is_glue, key_is_open = True, False
            elif word not in _GLUE_MARKS and word.lower() not in _GLUE_WORDS:
                gap_is_glue = False
                key_is_open = word in _KEYS
                (stack[-1] if stack else self.bare).is_pure = False
        self.is_cut = any(group.numbers for group in stack)

    def answer(self) -> Answer | ParseFailure:
        keyed = next((i for i, g in enumerate(self.groups) if g.has_key and _fits(g)), None)
        first = next((i for i, g in enumerate(self.groups) if _fits(g)), None)
        chosen = first if keyed is None else keyed
        if chosen is not None:
            return _finite(self._shape_at(chosen))
        if self.num_numbers == 0:
            return ParseFailure("no_numbers")
        if self.is_cut:
            return ParseFailure("unclosed_bracket")
        if self.bare.is_pure and _fits(self.bare):
            return _finite(self.bare.numbers)
        is_list = bool(self.groups) or self.bare.is_pure
        return ParseFailure("wrong_count" if is_list else "no_shape")

    def _shape_at(self, start: int) -> list[float]:
        """The group's numbers; two pairs side by side, and no third, are a box."""
        end = start + 1
        while end < len(self.groups) and self.groups[end].follows_group:
            end += 1
        run = [group.numbers for group in self.groups[start:end]]
        if len(run) == 2 and all(len(numbers) == 2 for numbers in run):
            return run[0] + run[1]
        return run[0]


def _fits(group: _Group) -> bool:
    return len(group.numbers) in (2, 4)


def _finite(numbers: list[float]) -> Answer | ParseFailure:
    if all(map(math.isfinite, numbers)):
        return Answer(tuple(numbers))
    return ParseFailure("not_finite")
