"""Reward functions that must not teach anything: what a rise is to be compared with.

launch/train.py ... --reward_funcs benchmarks.step.controls:shuffled_accuracy
"""

import random
from typing import Any

from grpo_stream.grounding.rewards import accuracy_reward_coord

_shuffle = random.Random(0).shuffle  # noqa: S311 - no secret


def shuffled_accuracy(**columns: Any) -> list[float | None]:
    """``accuracy_reward_coord`` dealt out at random over the completions of this rank.

    The same rewards in the same amounts, but for other answers: what is left of a gain under this
    reward is not learnt from the answers' places.
    """
    rewards = accuracy_reward_coord(**columns)
    _shuffle(rewards)
    return rewards
