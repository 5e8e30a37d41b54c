"""Rewards are numbers: one that is infinite would make advantages, and then weights, infinite."""

import math
from collections.abc import Sequence

import torch
from accelerate.utils import gather_object

from grpo_stream.errors import RewardError


def check_finite(
    rewards: torch.Tensor, names: Sequence[str], weights: torch.Tensor, keys: Sequence[str]
) -> None:
    """Checks the rewards of a rollout; every rank must call, and all raise the same.

    NaN is what trl (1.16) makes of None: the reward does not apply to that completion.

    Args:
        rewards: Shape (completions of all ranks, reward functions).
        names: Of the reward functions.
        weights: Shape (reward functions,).
        keys: Of this rank's completions.

    Raises:
        RewardError: naming reward, value and sample.
    """
    weighted = rewards * weights.to(rewards.device)
    wrong = weighted.isinf().any(dim=1) | weighted.nansum(dim=1).isinf()
    if not bool(wrong.any()):
        return
    of_all_ranks: list[str] = gather_object(list(keys))
    row = int(wrong.nonzero()[0])
    column = int(weighted[row].abs().nan_to_num(0.0, posinf=math.inf).argmax())
    num_wrong = int(wrong.sum())
    raise RewardError(
        f"the reward {names[column]} is {rewards[row, column].item()} for sample "
        f"{of_all_ranks[row]} (weight {weights[column].item():g}), and so for {num_wrong} of "
        f"{len(rewards)} completions: a reward is a finite number, or None where it does not apply"
    )
