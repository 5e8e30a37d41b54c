"""What a policy answers while it learns: groups of answers on their images, as one picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from grpo_stream.boxes import Size
from grpo_stream.polygons import Shape
from grpo_stream.report.contact_sheet import contact_sheet
from grpo_stream.report.drawn_text import font, wrap
from grpo_stream.report.marked_image import ABSENT, Colour, Mark, draw_marks, draw_zoom, zoom_region
from grpo_stream.report.page_style import GROUND, HINT, INK, PALE, PAPER, RULE, STAGE

COLUMNS = 2
MAX_ANSWERS = 16
"""Answers of a group that are shown; all of them are counted."""

_LOW: Colour = (215, 35, 35)
_MIDDLE: Colour = (225, 140, 0)
_HIGH: Colour = (20, 90, 230)
_WHITE: Colour = (255, 255, 255)
_MAX_PARTS = 4
_WIDTH, _GAP = 640, 12  # of a card
_STAGE = Size(_WIDTH - 2 * _GAP, 340)
_ZOOM = Size(232, 145)
_ROW, _BADGE, _BAR = 22, 18, 56  # height of an answer's row, sides of its number, of its bar
_TITLE, _PROMPT, _TEXT, _SMALL = 24, 16, 14, 12


@dataclass(frozen=True)
class RolloutAnswer:
    """One completion of a group."""

    text: str
    shape: Shape | None
    """Where it points, in pixels of the group's image; None without a usable answer."""
    reward: float
    """Sum of the weighted parts; NaN where no reward applied."""
    parts: Sequence[tuple[str, float]] = ()
    """Each reward's name and own value, unweighted."""
    failure: str | None = None
    """Why the text holds no answer."""
    is_refusal: bool = False
    """It says that nothing is there."""
    more_shapes: Sequence[Shape] = ()
    """Further places that the text names."""


@dataclass(frozen=True)
class RolloutGroup:
    """A prompt and its completions."""

    key: str
    prompt: str
    image: Image.Image
    """RGB, as the model saw it."""
    truths: Sequence[Shape]
    """In pixels of ``image``; none where nothing is there."""
    answers: Sequence[RolloutAnswer]
    asks_place: bool = True
    """False where a prompt without an image asks for something else."""

    @property
    def rewards(self) -> list[float]:
        """Of the answers that have one."""
        return [answer.reward for answer in self.answers if not math.isnan(answer.reward)]

    @property
    def mean(self) -> float:
        """Mean reward; NaN without any."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of the rewards, of all not of a sample; 0 teaches nothing."""
        mean = self.mean
        squares = [(reward - mean) ** 2 for reward in self.rewards]
        return math.sqrt(sum(squares) / len(squares)) if squares else 0.0


def rollout_sheet(title: str, lead: str, groups: Sequence[RolloutGroup]) -> Image.Image:
    """Cards of ``groups`` in two columns: image, true place, every answer and its reward.

    Marks and numbers of answers have the colour of their reward, from red to blue: between 0 and
    1, further where the sheet's rewards go further.
    """
    rewards = [reward for group in groups for reward in group.rewards]
    low, high = min([0.0, *rewards]), max([1.0, *rewards])
    cards = [_card(group, low, high) for group in groups]
    tallest = [max(card.height for card in cards[n : n + COLUMNS]) for n in range(0, len(cards), 2)]
    cards = [_padded(card, tallest[n // COLUMNS]) for n, card in enumerate(cards)]
    rows = [contact_sheet(cards[n : n + COLUMNS], COLUMNS, _GAP) for n in range(0, len(cards), 2)]
    head = 84
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, head + sum(r.height - _GAP for r in rows)), GROUND)
    draw = ImageDraw.Draw(sheet)
    room = width - 2 * _GAP - 330
    for y, words, size, fill in ((16, title, _TITLE, INK), (50, lead, _TEXT, PALE)):
        (line,) = wrap(words, size, room, 1)
        draw.text((_GAP, y), line, fill, font(size))
    _legend(draw, width - 320, low, high)
    top = head
    for row in rows:
        # Its own frame is white; the sheet's ground shows between the cards.
        for column in range(COLUMNS):
            left = _GAP + column * (_WIDTH + _GAP)
            area = (left, _GAP, left + _WIDTH, row.height - _GAP)
            if area[2] <= row.width:
                sheet.paste(row.crop(area), (left, top))
        top += row.height - _GAP
    return sheet


def reward_colour(reward: float, low: float, high: float) -> Colour:
    """Red for ``low``, blue for ``high``, amber between; grey for NaN."""
    if math.isnan(reward):
        return PALE
    share = (reward - low) / (high - low)
    ends = (_LOW, _MIDDLE) if share < 0.5 else (_MIDDLE, _HIGH)
    part = 2 * share % 1 if share < 1 else 1.0
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(*ends, strict=True))
    return red, green, blue


def _card(group: RolloutGroup, low: float, high: float) -> Image.Image:
    shown = group.answers[:MAX_ANSWERS]
    marks = _marks(shown, low, high)
    size = Size(*group.image.size)
    is_tall = size.width < 0.9 * size.height
    truth = next(iter(group.truths), None)
    region = None if truth is None else zoom_region(truth, size)
    lines = wrap(group.prompt, _PROMPT, _WIDTH - 2 * _GAP, 2)
    stage_top = 14 + 21 * len(lines) + 22
    rows_top = stage_top + _STAGE.height + _GAP
    notes = _notes(group)
    height = rows_top + _ROW * len(shown) + 10 + 18 * len(notes)
    if region is not None and not is_tall:
        height = max(height, rows_top + _ZOOM.height + _GAP)
    card = Image.new("RGB", (_WIDTH, height), PAPER)
    draw = ImageDraw.Draw(card)
    for number, line in enumerate(lines):
        draw.text((_GAP, 12 + 21 * number), line, INK, font(_PROMPT))
    (key,) = wrap(group.key, _SMALL, _WIDTH - 2 * _GAP, 1)
    draw.text((_GAP, stage_top - 22), key, PALE, font(_SMALL))
    draw.rectangle((0, stage_top, _WIDTH - 1, stage_top + _STAGE.height - 1), fill=STAGE)

    truths = [Mark(shape, "truth") for shape in group.truths]
    if group.asks_place and not truths:
        truths = [Mark(None, "truth")]
    scale = min(_STAGE.width / size.width, _STAGE.height / size.height)
    fitted = Size(max(1, round(size.width * scale)), max(1, round(size.height * scale)))
    seen = [*truths, *([Mark(region, "zoom")] if region is not None else []), *marks]
    left = _GAP if is_tall and region is not None else (_WIDTH - fitted.width) // 2
    card.paste(draw_marks(group.image, seen, fitted), (left, stage_top))
    rows_left = _GAP
    if truth is not None and region is not None:
        if is_tall:
            at = (left + fitted.width + _GAP, stage_top + _GAP)
            within = Size(_WIDTH - at[0] - _GAP, _STAGE.height - 2 * _GAP)
        else:
            at, within = (_GAP, rows_top), _ZOOM
            rows_left += _ZOOM.width + _GAP
        zoom = draw_zoom(group.image, truth, "truth", region, within, [*truths[1:], *marks])
        ImageDraw.Draw(zoom).rectangle((0, 0, zoom.width - 1, zoom.height - 1), None, HINT, 2)
        card.paste(zoom, at)
    for number, answer in enumerate(shown):
        colour = reward_colour(answer.reward, low, high)
        share = (answer.reward - low) / (high - low)
        _row(draw, (rows_left, rows_top + _ROW * number), number + 1, answer, colour, share)
    for number, note in enumerate(notes):
        (line,) = wrap(note, _SMALL, _WIDTH - rows_left - _GAP, 1)
        top = rows_top + _ROW * len(shown) + 2 + 18 * number
        draw.text((rows_left, top), line, PALE, font(_SMALL))
    return card


def _row(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    number: int,
    answer: RolloutAnswer,
    colour: Colour,
    share: float,
) -> None:
    left, top = at
    draw.rectangle((left, top, left + _BADGE + 2, top + _BADGE - 1), fill=colour)
    middle = (left + _BADGE / 2 + 1, top + _BADGE / 2)
    draw.text(middle, str(number), _WHITE, font(_SMALL), "mm")
    right = _WIDTH - _GAP
    value = "none" if math.isnan(answer.reward) else f"{answer.reward:.2f}"
    draw.text((right, top + _BADGE / 2), value, INK, font(_TEXT), "rm")
    bar = right - 44 - _BAR
    if not math.isnan(share):
        draw.rectangle((bar, top + 6, bar + _BAR, top + _BADGE - 7), fill=RULE)
        draw.rectangle((bar, top + 6, bar + round(_BAR * share), top + _BADGE - 7), fill=colour)
    text_left = left + _BADGE + 10
    room = bar - text_left - 8
    if len(answer.parts) > 1:
        parts = "  ".join(
            "none" if math.isnan(v) else f"{v:.2f}" for _, v in answer.parts[:_MAX_PARTS]
        )
        draw.text((bar - 8, top + _BADGE / 2), parts, PALE, font(_SMALL), "rm")
        room -= round(font(_SMALL).getlength(parts)) + 10
    text = answer.text.strip() or "(nothing)"
    if answer.is_refusal:
        text = f"{ABSENT}: {text}"
    elif answer.failure:
        text = f"{answer.failure}: {text}"
    (line,) = wrap(text, _TEXT, max(room, 40), 1)
    fill = _LOW if answer.failure else INK
    draw.text((text_left, top + _BADGE / 2), line, fill, font(_TEXT), "lm")


def _marks(answers: Sequence[RolloutAnswer], low: float, high: float) -> list[Mark]:
    """One mark for each place, with the numbers of the answers that point there, best on top."""
    places: dict[Shape, list[int]] = {}
    for number, answer in enumerate(answers):
        shapes = [] if answer.shape is None or answer.is_refusal else [answer.shape]
        for shape in (*shapes, *answer.more_shapes):
            places.setdefault(shape, []).append(number)
    marks = []
    for shape, numbers in sorted(places.items(), key=lambda one: answers[one[1][0]].reward):
        first = numbers[0] + 1
        more = f"+{len(numbers) - 1}" if len(numbers) > 1 else ""
        colour = reward_colour(answers[numbers[0]].reward, low, high)
        marks.append(Mark(shape, "wrong", f"{first}{more}", colour))
    return marks


def _notes(group: RolloutGroup) -> list[str]:
    words = [f"mean {group.mean:.2f}, standard deviation {group.std:.2f}"]
    failed = sum(answer.failure is not None for answer in group.answers)
    if failed:
        words.append(f"{failed} unreadable")
    refused = sum(answer.is_refusal for answer in group.answers)
    if refused:
        words.append(f'{refused} "{ABSENT}"')
    if len(group.answers) > MAX_ANSWERS:
        words.append(f"{len(group.answers) - MAX_ANSWERS} more answers")
    names = [name for name, _ in group.answers[0].parts] if group.answers else []
    parts = [f"small numbers: {', '.join(names[:_MAX_PARTS])}"] if len(names) > 1 else []
    return [", ".join(words), *parts]


def _legend(draw: ImageDraw.ImageDraw, left: int, low: float, high: float) -> None:
    top, length = 22, 150
    draw.text((left, top), "reward of an answer", PALE, font(_SMALL))
    for x in range(length):
        fill = reward_colour(low + (high - low) * x / (length - 1), low, high)
        draw.line((left + x, top + 20, left + x, top + 29), fill)
    draw.text((left, top + 33), f"{low:.3g}", PALE, font(_SMALL))
    draw.text((left + length, top + 33), f"{high:.3g}", PALE, font(_SMALL), "ra")
    right = left + length + 30
    for y, colour, words in (
        (top + 2, (0, 150, 80), "true place"),
        (top + 24, HINT, "shown larger"),
    ):
        draw.rectangle((right, y, right + 16, y + 11), None, colour, 2)
        draw.text((right + 24, y - 1), words, PALE, font(_SMALL))


def _padded(card: Image.Image, height: int) -> Image.Image:
    padded = Image.new("RGB", (card.width, height), PAPER)
    padded.paste(card)
    edge = (0, 0, card.width - 1, height - 1)
    ImageDraw.Draw(padded).rectangle(edge, None, RULE)
    return padded
