"""Pictures of what the policy answers while it learns, every so many global steps."""

import io
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.integrations import TensorBoardCallback
from transformers.utils import logging

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.grounding.answers import ParseFailure
from grpo_stream.grounding.cases import Case, completion_text
from grpo_stream.grounding.image_sizes import sizes_of
from grpo_stream.report.page_style import STAGE
from grpo_stream.report.rollout_picture import RolloutAnswer, RolloutGroup, rollout_sheet
from grpo_stream.storage.atomic_files import write_atomic
from grpo_stream.stream.sample_views import REGION_FIELD, VIEW_FIELD
from grpo_stream.targets import IMAGES_FIELD, Target, target_of
from grpo_stream.train.batches.collate import Batch
from grpo_stream.train.models.patches import flat_images

logger = logging.get_logger("grpo_stream.train")

FOLDER_NAME = "rollouts"
"""Folder of an output folder with ``step-000050.png`` and ``step-000050.json``."""

_OF_VIEWS = (VIEW_FIELD, REGION_FIELD)
_NO_IMAGE = (320, 170)  # pixels of what is shown of a sample without one


@dataclass(frozen=True)
class Rollout:
    """What one rank sampled in one rollout, and what it was worth."""

    batch: Batch
    completions: Sequence[Any]
    """One per row, neighbouring ones for each entry of ``batch``: a prompt, or a view of one."""
    parts: NDArray[np.float32]
    """Shape (rows, reward functions); NaN where one does not apply."""
    names: Sequence[str]
    """Of the reward functions."""
    weights: NDArray[np.float32]
    """Shape (reward functions,)."""
    num_generations: int
    """Of each entry."""

    @property
    def rewards(self) -> NDArray[np.float32]:
        """Weighted sums as trl makes them, shape (prompts, G); NaN without any part."""
        return weighted_rewards(self.parts, self.weights, self.num_generations)


def weighted_rewards(
    parts: NDArray[np.float32], weights: NDArray[np.float32], num_generations: int
) -> NDArray[np.float32]:
    """Rewards of groups from those of reward functions.

    Args:
        parts: Shape (rows, reward functions); NaN where one does not apply.
        weights: Shape (reward functions,).
        num_generations: Rows of a group.

    Returns:
        Shape (groups, num_generations); NaN for a row without any part.
    """
    sums = np.nansum(parts * weights, axis=1)
    sums[np.isnan(parts).all(axis=1)] = np.nan
    grouped: NDArray[np.float32] = sums.reshape(-1, num_generations)
    return grouped


class RolloutSheets:
    """Draws and writes sheets in a thread, so that no step waits for them.

    Nothing that goes wrong here reaches the training: it is logged, and the sheet left out.

    Args:
        folder: Where they are written.
        rollout_sheet_steps: Global steps between two of them, the first before any is done;
            0: none.
        rollout_sheet_groups: Groups on a sheet.
        show: Called in the thread with path, picture and global step, for experiment trackers.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rollout_sheet_steps: int,
        rollout_sheet_groups: int,
        show: Callable[[Path, Image.Image, int], None],
    ) -> None:
        self._folder = folder
        self._every = rollout_sheet_steps
        self._num_groups = rollout_sheet_groups
        self._show = show
        self._next: int | None = None
        self._thread: threading.Thread | None = None

    def offer(self, rollout: Rollout, global_step: int) -> None:
        """Takes a rollout if one is due and the last sheet is done; returns at once."""
        if not self._every:
            return
        if self._next is None:  # a resumed run continues in its rhythm
            self._next = -(-global_step // self._every) * self._every
        if global_step < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = (global_step // self._every + 1) * self._every
        self._thread = threading.Thread(
            target=self._write, args=(rollout, global_step), name="rollout-sheet", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float = 10.0) -> None:
        """Waits for the sheet that is being written."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _write(self, rollout: Rollout, global_step: int) -> None:
        try:
            rewards = rollout.rewards
            picked = pick_groups(rewards, self._num_groups)
            groups = [rollout_group(rollout, number) for number in picked]
            mean = float(np.nanmean(rewards)) if not np.isnan(rewards).all() else math.nan
            picture = rollout_sheet(
                f"Rollouts after {global_step} global steps",
                f"{len(groups)} of {len(rewards)} groups of rank 0, widest and narrowest rewards "
                f"in turn; mean reward of all {mean:.2f}",
                groups,
            )
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"step-{global_step:06d}.png"
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            write_atomic(path, buffer.getvalue())
            found = {
                "global_step": global_step,
                "groups": [group_record(rollout, number) for number in range(len(rewards))],
            }
            text = json.dumps(found, ensure_ascii=False, indent=1)
            write_atomic(path.with_suffix(".json"), text.encode())
            self._show(path, picture, global_step)
        except Exception as error:  # noqa: BLE001 - a picture is not worth a run
            logger.warning("no rollout sheet at global step %d: %r", global_step, error)


def pick_groups(rewards: NDArray[np.float32], num_groups: int) -> list[int]:
    """Groups to show: of widest and narrowest rewards in turn, by standard deviation.

    Args:
        rewards: Shape (groups, G).
        num_groups: At most so many.

    Returns:
        Their numbers; equal ones in order of their places.
    """
    order = sorted(range(len(rewards)), key=lambda number: -reward_std(rewards[number]))
    ends = [order.pop(0) if turn % 2 == 0 else order.pop() for turn in range(len(order))]
    return ends[:num_groups]


def reward_std(rewards: NDArray[np.float32]) -> float:
    """Standard deviation of a group's rewards, of all not of a sample; 0 where none applies."""
    known = rewards[~np.isnan(rewards)].astype(np.float64)
    return float(known.std()) if known.size else 0.0


def rollout_group(rollout: Rollout, number: int) -> RolloutGroup:
    """One group as it is drawn, in pixels of the image that the model saw.

    Raises:
        TypeError: the collator has made patches of the images, which cannot be shown.
    """
    batch = rollout.batch
    images = batch["pixel_values"]
    if not isinstance(images, list):
        raise TypeError("the batch holds patches in the place of images")
    own = flat_images([images[number]])
    target = _target(batch, number)
    at = target.image_of(0)
    image = Image.fromarray(own[at].numpy()) if own else Image.new("RGB", _NO_IMAGE, STAGE)
    size = Size(*image.size)
    answers = []
    for row, case in _cases(rollout, number):
        shape, *more = _shapes(case, size) or [None]
        answers.append(
            RolloutAnswer(
                text=completion_text(rollout.completions[row]),
                shape=shape,
                reward=float(rollout.rewards.flat[row]),
                parts=list(zip(rollout.names, rollout.parts[row].tolist(), strict=True)),
                failure=_failure(case),
                is_refusal=case.is_refusal,
                more_shapes=[one for one in more if one is not None],
            )
        )
    original = _each_size(batch["scales"][number])
    places = enumerate(target.shapes)
    here = [shape for place, shape in places if target.image_of(place) == at]
    truths = tuple(shape.scaled(original[at], size, "model") for shape in here)
    prompt = prompt_text(batch["prompt"][number])
    if len(own) != 1:
        prompt = f"[image {at + 1} of {len(own)}] {prompt}" if own else f"[no image] {prompt}"
    extra = batch["extra"][number]
    if extra.get(REGION_FIELD) and VIEW_FIELD in extra:
        kind = "a crop" if extra[VIEW_FIELD] else "all of the image"
        prompt = f"[view {extra[VIEW_FIELD]}, {kind}] {prompt}"
    asks_place = target.asks_place
    return RolloutGroup(batch["key"][number], prompt, image, truths, answers, asks_place)


def group_record(rollout: Rollout, number: int) -> dict[str, Any]:
    """One group as JSON: places in pixels of the original image, frame ``original``."""
    batch, rewards = rollout.batch, rollout.rewards[number]
    target = _target(batch, number)
    known = [float(reward) for reward in rewards if not np.isnan(reward)]
    answers = []
    for row, case in _cases(rollout, number):
        parts = zip(rollout.names, rollout.parts[row].tolist(), strict=True)
        answers.append(
            {
                "text": completion_text(rollout.completions[row]),
                "point": None if case.point is None else [case.point.x, case.point.y],
                "box": None if case.box is None else [*_numbers(case.box)],
                "failure": _failure(case),
                "is_refusal": case.is_refusal,
                "reward": _json(float(rollout.rewards.flat[row])),
                "parts": {name: _json(value) for name, value in parts},
            }
        )
    return {
        "key": batch["key"][number],
        "prompt": prompt_text(batch["prompt"][number]),
        "solution": list(batch["solution"][number]),
        "scales": list(batch["scales"][number]),
        **({IMAGES_FIELD: target.images} if target.images else {}),
        **{name: value for name, value in batch["extra"][number].items() if name in _OF_VIEWS},
        "mean": sum(known) / len(known) if known else None,
        "std": reward_std(rewards),
        "answers": answers,
    }


def prompt_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The words of a conversation's last message, without its image."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(str(part["text"]) for part in content if part.get("type") == "text")


def show_in_trackers(
    callbacks: Any, report_to: Sequence[str]
) -> Callable[[Path, Image.Image, int], None]:
    """Hands sheets to tensorboard, wandb and trackio, where the run reports to them.

    Args:
        callbacks: The trainer's ``CallbackHandler``; tensorboard's writer is its callback's.
        report_to: GRPOConfig's.
    """

    def show(path: Path, picture: Image.Image, global_step: int) -> None:
        for callback in callbacks.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if isinstance(callback, TensorBoardCallback) and writer is not None:
                pixels = np.asarray(picture)
                writer.add_image(FOLDER_NAME, pixels, global_step, dataformats="HWC")
        for tracker in ("wandb", "trackio"):
            if tracker in report_to:
                module = __import__(tracker)
                image = module.Image(str(path))
                module.log({FOLDER_NAME: image, "train/global_step": global_step})

    return show


def _cases(rollout: Rollout, number: int) -> list[tuple[int, Case]]:
    batch, size = rollout.batch, rollout.num_generations
    target = _target(batch, number)
    original, model = (sizes_of(batch[name][number]) for name in ("scales", "model_size"))
    frame = batch["answer_frame"][number]
    return [
        (row, Case(completion_text(rollout.completions[row]), target, original, model, frame))
        for row in range(number * size, (number + 1) * size)
    ]


def _failure(case: Case) -> str | None:
    if not case.target.asks_place:
        return None
    if isinstance(case.answer, ParseFailure):
        return case.answer.reason
    return None if case.point is not None or case.is_refusal else "unusable"


def _target(batch: Batch, number: int) -> Target:
    num_images = len(_each_size(batch["scales"][number]))
    return target_of(batch["solution"][number], batch["extra"][number], num_images)


def _each_size(entry: Any) -> list[Size]:
    sizes = sizes_of(entry)
    return [sizes] if isinstance(sizes, Size) else sizes


def _shapes(case: Case, size: Size) -> list[Box | Point | None]:
    """All places that a text names, in pixels of the image that the model saw."""
    shapes = [point if box is None else box for point, box in case.places]
    original = case.size or size
    return [None if one is None else one.scaled(original, size, "model") for one in shapes]


def _numbers(box: Box) -> tuple[float, float, float, float]:
    return box.x1, box.y1, box.x2, box.y2


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
