"""What each block of ``gpu_check`` should find on a GPU, in words and as a check of its figures."""

from collections.abc import Callable
from typing import Any, NamedTuple

Figures = dict[str, Any]


class Expectation(NamedTuple):
    """One thing that should be so."""

    words: str
    is_met: Callable[[Figures], bool]


class Block(NamedTuple):
    """A block: its limit, and what it should find."""

    seconds: float
    """After so many it is ended; all together ten minutes."""
    expected: tuple[Expectation, ...]


def _memory_is_near(found: Figures) -> bool:
    return all(0.6 < one["measured"] / one["estimated"] < 1.25 for one in found.values())


def _checkpointing_is_cheap(found: Figures) -> bool:
    return all(found[f"{n} groups, checkpointing"] < 1.4 * found[f"{n} groups"] for n in (1, 4))


_OF_CUDNN = ("cudnn_generated", "cudnn::fusion", "conv3d", "implicit_gemm")

BLOCKS: dict[str, Block] = {
    "environment": Block(
        25,
        (
            Expectation("cuDNN's attention is off", lambda f: not f["cudnn_attention"]),
            Expectation(
                "on a GPU expandable_segments are in allocator",
                lambda f: f["allocator"].get("expandable_segments") == "True",
            ),
        ),
    ),
    "kernels": Block(
        55,
        (
            Expectation("log_sums; else completions attend by a mask", lambda f: f["log_sums"]),
            Expectation(
                "flash kernels attend",
                lambda f: any("flash" in name.lower() for name in f["kernels"]),
            ),
            Expectation(
                "none of cuDNN's attention, and no convolution for patches",
                lambda f: (
                    not any(word in name.lower() for name in f["kernels"] for word in _OF_CUDNN)
                ),
            ),
        ),
    ),
    "exactness": Block(
        60,
        (
            Expectation(
                "packed_error at most 1.5 x plain_error, both in bfloat16",
                lambda f: f["packed_error"] < 1.5 * f["plain_error"],
            ),
        ),
    ),
    "tower": Block(
        50,
        (
            Expectation("batched in half of stock's time", lambda f: f["batched"] < f["stock"] / 2),
            Expectation("the same to bfloat16: 0.05", lambda f: f["largest_difference"] < 0.05),
        ),
    ),
    "micro_step": Block(
        50,
        (
            Expectation(
                "4 groups in less than 4 x 1 group",
                lambda f: f["4 groups"] < 4 * f["1 groups"],
            ),
            Expectation("checkpointing at most 1.4 x", _checkpointing_is_cheap),
        ),
    ),
    "memory": Block(50, (Expectation("measured is 0.6 to 1.25 of estimated", _memory_is_near),)),
    "rollout": Block(
        70,
        (
            Expectation(
                "a token of ours in at most 1.5 x generate's",
                lambda f: f["ours, seconds_a_token"] < 1.5 * f["generate, seconds_a_token"],
            ),
            Expectation(
                "reading_weights is below both",
                lambda f: f["reading_weights"] < f["ours, seconds_a_token"],
            ),
        ),
    ),
    "zero": Block(
        80,
        (
            Expectation(
                "leaves take less than stage 3", lambda f: f["stage 3, leaves"] < f["stage 3"]
            ),
            Expectation("stage 2 less than leaves", lambda f: f["stage 2"] < f["stage 3, leaves"]),
        ),
    ),
    "bad_step": Block(
        40,
        (
            Expectation(
                "weights move in steps 1 and 3, not in 2",
                lambda f: f["moved"] == [True, False, True],
            ),
            Expectation("they stay finite", lambda f: f["finite"]),
            Expectation("the step is logged", lambda f: len(f["logged"]) == 1),
        ),
    ),
    "steps": Block(
        120,
        (
            Expectation("trl's step takes at least 2 x ours", lambda f: f["step_ratio"] > 2),
            Expectation(
                "log-probabilities within 0.5 in bfloat16",
                lambda f: f["max_abs_logprob_diff"] < 0.5,
            ),
        ),
    ),
}
"""In the order in which they run."""


def red(name: str, found: Figures) -> list[str]:
    """Expectations of a block that are not met, or that its figures say nothing of.

    Args:
        name: Of the block.
        found: Its figures.
    """
    return [one.words for one in BLOCKS[name].expected if not _is_met(one, found)]


def _is_met(expectation: Expectation, found: Figures) -> bool:
    try:
        return bool(expectation.is_met(found))
    except KeyError:
        return False
