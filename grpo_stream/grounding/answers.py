"""One tolerant parser for what models answer with: points and boxes, in whatever dress, or none.

Understood are ``(x, y)``, ``x, y``, ``[x1, y1, x2, y2]``, ``(x1,y1),(x2,y2)``, JSON and tool calls
with ``bbox_2d``, ``point_2d``, ``bbox``, ``point``, ``coordinate`` or x and y, ``click(x=1, y=2)``,
``<point>x y</point>``, ``<point x="1" y="2">``, ``<|box_start|>...<|box_end|>``, fenced code, and
any of them inside ``<answer>...</answer>``. Of several answers the first counts, before all others
the first behind a known key; :func:`parse_answers` gives all of them. What is inside
``<think>...</think>`` is never an answer. That nothing is there is an answer, too: ``[-1, -1]``, or
one of the forms of :mod:`~grpo_stream.grounding.refusals`.

The text is cut into tokens once and read once, so time grows in proportion to its length.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from grpo_stream.boxes import Box, Frame, Point
from grpo_stream.grounding.number_groups import NumberGroups
from grpo_stream.grounding.refusals import is_worded_refusal

MAX_ANSWER_CHARS = 65_536
"""Longest text that is read; a completion of 8,192 tokens has about half as many characters."""
MAX_ANSWERS = 100
"""Places of a text that are kept; COCO's evaluation takes as many boxes of an image."""

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
class Refusal:
    """A text that says, in words or by an empty list, that nothing is there to be pointed at."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Two or four finite numbers as the model gave them; which frame they are in, the caller knows.

    Four numbers may be no valid box (inverted, or without area): see
    :attr:`grpo_stream.boxes.Box.is_valid`.
    """

    numbers: tuple[float, ...]

    @property
    def is_refusal(self) -> bool:
        """All numbers are -1, as benchmarks ask for where nothing is there."""
        return all(number == -1 for number in self.numbers)

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


LogMetric: TypeAlias = Callable[[str, float], None]
"""Of a name and a value."""

Parsed = Answer | Refusal | ParseFailure
"""What a text says first."""


@dataclass(frozen=True, slots=True)
class Answers:
    """All that a text says."""

    first: Parsed
    """What :func:`parse_answer` gives."""
    places: tuple[Answer, ...] = ()
    """The places it names, in its order, ``first`` first; none where that is no place."""

    @property
    def is_refusal(self) -> bool:
        """It says that nothing is there; places after a refusal do not count."""
        return is_refusal(self.first)


def is_refusal(parsed: Parsed) -> bool:
    """Whether what was read says that nothing is there: in words, or all numbers are -1."""
    return isinstance(parsed, Refusal) or (isinstance(parsed, Answer) and parsed.is_refusal)


_SPECIAL_TOKEN = re.compile(r"<\|[a-z_]{1,32}\|>")
_WIDE = str.maketrans(
    {
        # "fullwidth" forms of marks and digits, and other signs for the same
        **{chr(0xFEE0 + ord(mark)): mark for mark in "(),:;[]{}.-=0123456789"},
        **dict(zip("\u3010\u3011\u3001\u2212", "[],-", strict=True)),
    }
)
_SCOPES = (("<|box_start|>", "<|box_end|>"), ("<point>", "</point>"), ("<box>", "</box>"))
_MAX_CACHED_CHARS = 2_048


def parse_answer(text: str) -> Parsed:
    """Reads the (first) answer out of a completion's text; never raises.

    Example:
        >>> parse_answer("<think>left of it</think><answer>(12, 34.5)</answer>")
        Answer(numbers=(12.0, 34.5))
        >>> parse_answer("I cannot see it.")
        ParseFailure(reason='no_numbers')
        >>> parse_answer("There is no such button.")
        Refusal()
    """
    return parse_answers(text).first


def parse_answers(text: str) -> Answers:
    """Reads all answers out of a completion's text; never raises.

    Where known keys are, only what follows one is an answer. Two pairs of numbers side by side
    are a box, three or more are points. Numbers without brackets, key or axes are one answer at
    most. At most :data:`MAX_ANSWERS` are kept.

    The answers of the last few thousand short texts are remembered: several rewards read the same.

    Example:
        >>> [answer.numbers for answer in parse_answers("(1, 2) or (3, 4)").places]
        [(1.0, 2.0), (3.0, 4.0)]
    """
    return _parse_cached(text) if len(text) <= _MAX_CACHED_CHARS else _parse(text)


def log_failures(answers: Sequence[Parsed], log_metric: LogMetric) -> None:
    """Logs ``parse_failures/<reason>`` for every reason, and ``refusals``, as shares."""
    reasons = [answer.reason for answer in answers if isinstance(answer, ParseFailure)]
    for reason in REASONS:
        log_metric(f"parse_failures/{reason}", reasons.count(reason) / len(answers))
    log_metric("refusals", sum(map(is_refusal, answers)) / len(answers))


def _parse(text: str) -> Answers:
    if len(text) > MAX_ANSWER_CHARS:
        return Answers(ParseFailure("too_long"))
    said = _behind_thoughts(text)
    if said is None:
        return Answers(ParseFailure("unclosed_think"))
    pieces = _insides(said, "<answer>", "</answer>")[:1]
    for opening, closing in _SCOPES:
        pieces = [part for piece in pieces for part in _insides(piece, opening, closing)]
    first, places = _read_piece(pieces[0])
    if not places:
        return Answers(first)
    for piece in pieces[1:MAX_ANSWERS]:
        places += _read_piece(piece)[1]
    return Answers(first, tuple(places[:MAX_ANSWERS]))


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


def _insides(text: str, opening: str, closing: str) -> list[str]:
    """What is between each pair of tags; everything where there is none."""
    found, start = [], text.find(opening)
    while start >= 0:
        start += len(opening)
        end = text.find(closing, start)
        # The closing tag may be missing: engines cut it off when it is their stop word.
        found.append(text[start:] if end < 0 else text[start:end])
        start = -1 if end < 0 else text.find(opening, end)
    return found or [text]


def _read_piece(said: str) -> tuple[Parsed, list[Answer]]:
    """The first answer of a text without tags, and all of its places where that is one."""
    said = _SPECIAL_TOKEN.sub(" ", said)
    if not said.isascii():
        said = said.translate(_WIDE)  # as Qwen writes at times, in Chinese
    if not said.strip():
        return ParseFailure("empty"), []
    found = NumberGroups(said)
    shapes = found.shapes()
    parsed = _finite(shapes[0]) if shapes else _without_shape(found)
    if isinstance(parsed, ParseFailure):
        is_wordy = not (found.groups or found.is_cut)
        return (Refusal() if is_wordy and is_worded_refusal(said) else parsed), []
    others = [answer for answer in map(_finite, shapes[1:]) if isinstance(answer, Answer)]
    return parsed, [parsed, *others]


def _without_shape(found: NumberGroups) -> Answer | ParseFailure:
    if found.num_numbers == 0:
        return ParseFailure("no_numbers")
    if found.is_cut:
        return ParseFailure("unclosed_bracket")
    # Without brackets, key or axes: only if all numbers of the text are side by side.
    is_one_run = len(found.bare) == 1 and len(found.bare[0].numbers) == found.num_numbers
    if is_one_run and found.bare[0].fits:
        return _finite(found.bare[0].numbers)
    return ParseFailure("wrong_count" if found.groups or is_one_run else "no_shape")


def _finite(numbers: list[float]) -> Answer | ParseFailure:
    if all(map(math.isfinite, numbers)):
        return Answer(tuple(numbers))
    return ParseFailure("not_finite")
