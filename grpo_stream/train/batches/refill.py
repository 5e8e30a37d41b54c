"""Other prompts in the place of those whose rewards are all equal, which teach nothing.

The stream delivers ``1 + refill`` times as many prompts as are trained on. They are sampled in
equal parts, one after another, until every rank has enough groups whose rewards differ; all ranks
decide that together, so all sample equally often. The stream's position stays arithmetic: a
generation batch is read and done as a whole, whatever was sampled of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from grpo_stream.train.batches.collate import Batch
from grpo_stream.train.batches.view_batches import views_in
from grpo_stream.train.observe.metrics import RunMetrics
from grpo_stream.train.observe.rollout_sheets import reward_std

MIN_STD = 1e-6
"""Standard deviation of a group's rewards below which they are equal."""


def teaches(rewards: NDArray[np.float32]) -> list[bool]:
    """Whether the rewards of each group differ.

    Args:
        rewards: Shape (groups, G); NaN where none applies.
    """
    return [reward_std(group) > MIN_STD for group in rewards]


def sample_until_taught(
    batch: Batch,
    num_kept: int,
    sample: Callable[[Batch], tuple[dict[str, Any], NDArray[np.float32]]],
    sum_over_ranks: Callable[[int], int],
) -> tuple[list[dict[str, Any]], list[bool]]:
    """Samples parts of a batch until every rank has enough groups that teach, or none is left.

    Args:
        batch: Prompts, a multiple of ``num_kept``.
        num_kept: Prompts of a part, and groups that are enough.
        sample: From prompts to their scored rollout and rewards, shape (groups, G).
        sum_over_ranks: A collective: the sum of all ranks' numbers.

    Returns:
        The scored rollouts, as many on every rank; and of each group whether it teaches.
    """
    parts: list[dict[str, Any]] = []
    flags: list[bool] = []
    num_prompts = len(batch["key"]) // views_in(batch)
    while len(flags) < num_prompts:
        numbers = range(len(flags), len(flags) + num_kept)
        scored, rewards = sample(select_prompts(batch, numbers))
        parts.append(scored)
        flags += teaches(rewards)
        if sum_over_ranks(max(0, num_kept - sum(flags))) == 0:
            break
    return parts, flags


def choose(flags: Sequence[bool], num_kept: int) -> list[int]:
    """The groups to train on: the first that teach, then the first of the others.

    Args:
        flags: Of all that were sampled, in order.
        num_kept: How many.

    Returns:
        Their numbers, ascending.
    """
    order = sorted(range(len(flags)), key=lambda number: (not flags[number], number))
    return sorted(order[:num_kept])


def log_refill(
    metrics: RunMetrics, *, num_rollouts: int, refill: int, num_equal: int, num_trained: int
) -> None:
    """Logs what a generation batch took; ``num_equal`` of its groups still teach nothing."""
    metrics.log_metric("train", "refill/num_rollouts", num_rollouts)
    metrics.log_metric("train", "refill/frac_zero_std_trained", num_equal / num_trained)
    num_unused = (1 + refill - num_rollouts) * num_trained
    metrics.log_metric("train", "refill/num_samples_unused", num_unused)


def select_prompts(batch: Batch, prompts: Sequence[int]) -> Batch:
    """A collated batch of some of its prompts, each with all of its views."""
    num_prompts, num_views = len(batch["key"]), views_in(batch)
    numbers = [prompt * num_views + view for prompt in prompts for view in range(num_views)]
    part = {
        name: [value[number] for number in numbers]
        if isinstance(value, list) and len(value) == num_prompts
        else value
        for name, value in batch.items()
    }
    images, grids = batch["pixel_values"], batch.get("image_grid_thw")
    if grids is None:
        return part
    of_prompts = grids.split(batch.get("num_images") or [1] * num_prompts)
    part["image_grid_thw"] = torch.cat([of_prompts[number] for number in numbers])
    if isinstance(images, torch.Tensor):  # patches of all images, one behind the other
        parts = images.split([int(own.prod(-1).sum()) for own in of_prompts])
        part["pixel_values"] = torch.cat([parts[number] for number in numbers])
    return part


def merge_scored(
    parts: Sequence[Mapping[str, Any]],
    numbers: Sequence[int],
    num_generations: int,
    pad_token_id: int,
) -> dict[str, Any]:
    """Rows of some groups out of several scored rollouts.

    Args:
        parts: trl's dicts of tensors, equally many rows each.
        numbers: Groups to keep, counted through all parts.
        num_generations: Rows of a group.
        pad_token_id: Fills token ids: prompts on the left, all else on the right.

    Returns:
        One dict of the rows of ``numbers``; ``num_items_in_batch`` is left out, it has changed.
    """
    rows = torch.tensor(numbers)[:, None] * num_generations + torch.arange(num_generations)
    rows = rows.flatten()
    merged: dict[str, Any] = {}
    for name, first in parts[0].items():
        if not isinstance(first, torch.Tensor) or first.dim() == 0:
            merged[name] = first
            continue
        tensors = [part[name] for part in parts]
        if first.dim() > 1:
            width = max(tensor.size(1) for tensor in tensors)
            value = pad_token_id if name in ("prompt_ids", "completion_ids") else 0
            is_left = name.startswith("prompt_")
            tensors = [_padded(tensor, width, value, is_left=is_left) for tensor in tensors]
        merged[name] = torch.cat(tensors)[rows.to(first.device)]
    merged.pop("num_items_in_batch", None)
    return merged


def _padded(tensor: torch.Tensor, width: int, value: int, *, is_left: bool) -> torch.Tensor:
    missing = width - tensor.size(1)
    return torch.nn.functional.pad(tensor, (missing, 0) if is_left else (0, missing), value=value)
