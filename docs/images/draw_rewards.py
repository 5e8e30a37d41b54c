"""Draws docs/images/rewards.png: what an answer earns wherever it points on a real screenshot.

python -m docs.images.draw_rewards docs/images/rewards.png
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from grpo_stream.grounding.rewards import (
    accuracy_reward_coord,
    distance_reward,
    gaussian_reward,
    giou_reward,
    iou_reward,
)

_SCREENSHOT = Path("data/screenshots/pages/adminlte3_022.png")
_TRUTH = (352, 442, 672, 480)
_INSTRUCTION = 'Click the "Request new password" button'
_STEP = 4  # pixels between the answers that are scored
_TOP, _HEIGHT = 190, 380  # the part of the picture that is shown, full width
_CAPTION = 34
_LOW, _HIGH = np.array([68, 1, 84]), np.array([253, 231, 37])


def draw() -> Image.Image:
    """The picture: one panel per reward, dark for its least value, bright for its greatest."""
    page = Image.open(_SCREENSHOT).convert("RGB")
    panels = [
        _panel(page, _INSTRUCTION, None),
        _panel(page, "accuracy_reward_coord: 0 or 1", _of_points(page, accuracy_reward_coord)),
        _panel(page, "distance_reward: 0 to 1", _of_points(page, distance_reward)),
        _panel(page, "gaussian_reward: 0 to 1", _of_points(page, gaussian_reward)),
        _panel(page, "iou_reward of a box of the true size", _of_boxes(page, iou_reward)),
        _panel(page, "giou_reward of the same: -1 to 1", _of_boxes(page, giou_reward)),
    ]
    width, height = panels[0].size
    sheet = Image.new("RGB", (2 * width + 12, 3 * height + 24), "white")
    for place, panel in enumerate(panels):
        sheet.paste(panel, (place % 2 * (width + 12), place // 2 * (height + 12)))
    return sheet


def _of_points(page: Image.Image, reward: Callable[..., list[float | None]]) -> np.ndarray:
    """Values of shape (rows, columns), in [0, 1], for an answer at each place."""
    return _values(page, reward, "({x}, {y})", least=0)


def _of_boxes(page: Image.Image, reward: Callable[..., list[float | None]]) -> np.ndarray:
    """The same for a box of the true size around each place."""
    least = -1 if reward is giou_reward else 0
    return _values(page, reward, "[{x1}, {y1}, {x2}, {y2}]", least=least)


def _values(
    page: Image.Image, reward: Callable[..., list[float | None]], form: str, *, least: int
) -> np.ndarray:
    half_width, half_height = (_TRUTH[2] - _TRUTH[0]) / 2, (_TRUTH[3] - _TRUTH[1]) / 2
    rows = range(_TOP, _TOP + _HEIGHT, _STEP)
    columns = range(0, page.width, _STEP)
    answers = [
        form.format(
            x=x, y=y, x1=x - half_width, y1=y - half_height, x2=x + half_width, y2=y + half_height
        )
        for y in rows
        for x in columns
    ]
    count = len(answers)
    values = reward(
        completions=answers,
        solution=[_TRUTH] * count,
        scales=[page.size] * count,
        answer_frame="original",
    )
    grid = np.array(values, dtype=float).reshape(len(rows), len(columns))
    return (grid - least) / (1 - least)


def _panel(page: Image.Image, caption: str, values: np.ndarray | None) -> Image.Image:
    cut = page.crop((0, _TOP, page.width, _TOP + _HEIGHT))
    if values is not None:
        colours = _LOW + values[..., None] * (_HIGH - _LOW)
        heat = Image.fromarray(colours.round().astype(np.uint8)).resize(cut.size)
        cut = Image.blend(cut.convert("L").convert("RGB"), heat, 0.72)
    draw = ImageDraw.Draw(cut)
    x1, y1, x2, y2 = _TRUTH
    draw.rectangle((x1, y1 - _TOP, x2 - 1, y2 - _TOP - 1), outline="#ff3b30", width=3)
    cut = cut.resize((cut.width * 5 // 8, cut.height * 5 // 8), Image.Resampling.LANCZOS)
    panel = Image.new("RGB", (cut.width, cut.height + _CAPTION), "white")
    panel.paste(cut, (0, _CAPTION))
    ImageDraw.Draw(panel).text((4, 8), caption, fill="black", font=ImageFont.load_default(17))
    return panel


if __name__ == "__main__":
    draw().quantize(256, Image.Quantize.FASTOCTREE).save(sys.argv[1], optimize=True)
