"""Records that ask what another one asked before, found without holding all records in memory."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shard_builder.build.chunk_result import ChunkResult
from shard_builder.build.spill_buckets import NUM_BUCKETS, Buckets

CauseDetail = tuple[str, str]
"""Cause and detail of a warning."""

_Rows = NDArray[np.void]
_QUESTION = np.dtype(
    [("question", "<u8"), ("answer", "<u4"), ("ordinal", "<u8"), ("position", "<u8")]
)
_REPEAT = np.dtype([("ordinal", "<u8"), ("is_same", "?"), ("earlier", "<u8")])


def find_repeats(
    results: Callable[[], Iterator[ChunkResult]], folder: Path
) -> Iterator[dict[int, CauseDetail]]:
    """For each result in turn: warnings (cause, detail) of samples, by their number in it.

    Causes: ``duplicate`` (image, prompt and solution were there before) and ``conflict`` (image
    and prompt were, with another solution). "Before" is the order of the data set.

    Args:
        results: Gives the results in the order of the data set; called once.
        folder: For temporary files, 28 bytes a sample where there are very many.
    """
    questions = Buckets(folder / "questions")
    counts = []
    num_samples = 0
    for result in results():
        rows = _rows(result, num_samples)
        _deal(questions, rows["question"] % NUM_BUCKETS, rows)
        counts.append(len(rows))
        num_samples += len(rows)
    repeats = Buckets(folder / "repeats")
    for group in questions.groups():
        found = _repeats(np.frombuffer(b"".join(group), _QUESTION))
        _deal(repeats, found["ordinal"] * NUM_BUCKETS // max(num_samples, 1), found)
    questions.clear()
    in_order = _in_order(repeats)
    at = 0
    repeat = next(in_order, None)
    for count in counts:
        warnings = {}
        while repeat is not None and repeat[0] < at + count:
            warnings[repeat[0] - at] = _warning(*repeat[1:])
            repeat = next(in_order, None)
        yield warnings
        at += count


def _rows(result: ChunkResult, first_ordinal: int) -> _Rows:
    notes = result.notes
    rows = np.empty(len(notes), _QUESTION)
    rows["question"] = notes.questions
    rows["answer"] = notes.answers
    rows["ordinal"] = np.arange(first_ordinal, first_ordinal + len(notes))
    rows["position"] = notes.positions
    return rows


def _deal(buckets: Buckets, numbers: NDArray[np.uint64], rows: _Rows) -> None:
    order = np.argsort(numbers, kind="stable")
    found, starts = np.unique(numbers[order], return_index=True)
    for bucket, part in zip(found.tolist(), np.split(rows[order], starts[1:]), strict=False):
        buckets.add(bucket, part.tobytes())


def _repeats(rows: _Rows) -> _Rows:
    """Those of ``rows`` whose question was asked before, in the order of the data set."""
    rows = rows[np.lexsort((rows["ordinal"], rows["question"]))]
    asked = rows["question"]
    is_first = np.r_[True, asked[1:] != asked[:-1]][: len(rows)]
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))[~is_first]
    again = rows[~is_first]
    found = np.empty(len(again), _REPEAT)
    found["ordinal"] = again["ordinal"]
    found["is_same"] = again["answer"] == rows["answer"][first]
    found["earlier"] = rows["position"][first]
    return found


def _in_order(repeats: Buckets) -> Iterator[tuple[int, bool, int]]:
    for group in repeats.groups():
        rows = np.frombuffer(b"".join(group), _REPEAT)
        yield from rows[np.argsort(rows["ordinal"])].tolist()


def _warning(is_same: bool, position: int) -> CauseDetail:
    if is_same:
        return "duplicate", f"same image, prompt and solution as record {position} overall"
    return "conflict", f"same image and prompt, other solution than record {position}"
