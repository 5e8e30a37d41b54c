"""What each block of ``gpu_check`` should find on a GPU, in words and as a check of its figures."""

from collections.abc import Callable
from typing import Any, NamedTuple

Figures = dict[str, Any]

FIGURE = "figure: "
"""Begins a line that has a figure, as JSON, among whatever else a block's process prints."""


class Expectation(NamedTuple):
    """One thing that should be so."""

    words: str
    is_met: Callable[[Figures], bool]


class Block(NamedTuple):
    """A block: its limit, and what it should find."""

    seconds: float
    """Its share of ten minutes."""
    expected: tuple[Expectation, ...]


def _memory_is_near(found: Figures) -> bool:
    return len(found) == len(_MICRO_STEPS) and all(
        0.6 < one["measured"] / one["estimated"] < 1.25 for one in found.values()
    )


def _checkpointing_is_cheap(found: Figures) -> bool:
    return all(
        found[f"{n} groups, checkpointing"]["seconds"] < 1.4 * found[f"{n} groups"]["seconds"]
        for n in (1, 4)
    )


def _is_near_arithmetic(found: Figures) -> bool:
    return all(found[name]["seconds"] < 3 * found[name]["arithmetic"] for name in _MICRO_STEPS[2:])


def _has(found: Figures, words: tuple[str, ...]) -> bool:
    return any(word in name.lower() for name in found["kernels"] for word in words)


_MICRO_STEPS = ("1 groups, checkpointing", "4 groups, checkpointing", "1 groups", "4 groups")
_OF_CUDNN = ("cudnn", "fort_native_sdpa")
_OF_CONVOLUTIONS = ("conv3d", "convolution", "implicit_gemm", "xmma_fprop", "vol2col")
OF_ATTENTION_AND_PATCHES = (
    "attention", "fmha", "flash", "sdpa", *_OF_CUDNN, *_OF_CONVOLUTIONS,
)  # fmt: skip
"""In the names of kernels (torch 2.8 to 2.13) and of operations that attend or convolve."""

BLOCKS: dict[str, Block] = {
    "environment": Block(
        60,  # the stack is read from the disk for the first time
        (
            Expectation("cuDNN's attention is off", lambda f: not f["cudnn_attention"]),
            Expectation(
                "on a GPU expandable_segments are in allocator",
                lambda f: f["allocator"]["expandable_segments"] == "True",
            ),
        ),
    ),
    "kernels": Block(
        45,
        (
            Expectation(
                "log_sums; else completions attend by a mask", lambda f: f["log_sums"] is True
            ),
            Expectation("flash kernels attend", lambda f: _has(f, ("flash",))),
            Expectation(
                "none of cuDNN's attention, and no convolution for patches",
                lambda f: not _has(f, (*_OF_CUDNN, *_OF_CONVOLUTIONS)),
            ),
        ),
    ),
    "exactness": Block(
        50,
        (
            Expectation(
                "packed_error at most 1.5 x plain_error, both in bfloat16",
                lambda f: f["packed_error"] < 1.5 * f["plain_error"],
            ),
            Expectation(
                "packed_float32_error, the largest, below 0.01",
                lambda f: f["packed_float32_error"] < 0.01,
            ),
        ),
    ),
    "tower": Block(
        40,
        (
            Expectation("batched in half of stock's time", lambda f: f["batched"] < f["stock"] / 2),
            Expectation(
                "features within 0.05 of stock's, relative to their length",
                lambda f: f["batched_difference"] < 0.05 and f.get("flash_difference", 0) < 0.05,
            ),
        ),
    ),
    "micro_step": Block(
        45,
        (
            Expectation(
                "4 groups in less than 4 x 1 group",
                lambda f: f["4 groups"]["seconds"] < 4 * f["1 groups"]["seconds"],
            ),
            Expectation("checkpointing at most 1.4 x", _checkpointing_is_cheap),
            Expectation("without it within 3 x arithmetic", _is_near_arithmetic),
        ),
    ),
    "memory": Block(45, (Expectation("measured is 0.6 to 1.25 of estimated", _memory_is_near),)),
    "zero": Block(
        75,
        (
            Expectation(
                "leaves take less than stage 3", lambda f: f["stage 3, leaves"] < f["stage 3"]
            ),
            Expectation("stage 2 less than leaves", lambda f: f["stage 2"] < f["stage 3, leaves"]),
        ),
    ),
    "bad_step": Block(
        35,
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
        90,
        (
            Expectation("trl's step takes at least 2 x ours", lambda f: f["step_ratio"] > 2),
            Expectation(
                "log-probabilities within 0.5 in bfloat16",
                lambda f: f["max_abs_logprob_diff"] < 0.5,
            ),
        ),
    ),
    "rollout": Block(
        115,
        (
            Expectation(
                "an eager token of 4 prompts in at most 1.5 x generate's of one",
                lambda f: f["eager"]["seconds_a_token"] < 1.5 * f["generate"]["seconds_a_token"],
            ),
            Expectation("compiled is compiled", lambda f: f["compiled"]["is_compiled"] is True),
            Expectation(
                "a compiled token in half of an eager one's time",
                lambda f: f["compiled"]["seconds_a_token"] < f["eager"]["seconds_a_token"] / 2,
            ),
            Expectation(
                "and within 4 x reading_weights, which is below all",
                lambda f: 1 < f["compiled"]["times_reading_weights"] < 4,
            ),
        ),
    ),
}
"""In the order in which they run; time that one leaves is there for those behind it."""


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
    except (KeyError, TypeError, ZeroDivisionError):  # not measured: an error stands there
        return False
