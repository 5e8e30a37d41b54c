"""Records that ask what another one asked before, found without holding all records in memory."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tools.shard_builder.buckets import NUM_BUCKETS, Buckets
from tools.shard_builder.work import ChunkResult

CauseDetail = tuple[str, str]
"""Cause and detail of a warning."""


def find_repeats(
    results: Callable[[], Iterator[ChunkResult]], folder: Path
) -> Iterator[list[CauseDetail | None]]:
    """For each result in turn: for each of its samples a warning (cause, detail), or None.

    Causes: ``duplicate`` (image, prompt and solution were there before) and ``conflict`` (image
    and prompt were, with another solution). "Before" is the order of the data set.

    Args:
        results: Gives the results in the order of the data set; called twice.
        folder: For temporary files, about 40 bytes a sample where there are very many.
    """
    counts = []
    questions = Buckets(folder / "questions")
    ordinal = 0
    for result in results():
        for note in result.notes:
            asked = (note.question, note.answer, ordinal, note.place.position)
            questions.add(note.question % NUM_BUCKETS, asked)
            ordinal += 1
        counts.append(len(result.notes))
    repeats = Buckets(folder / "repeats")
    for bucket in range(NUM_BUCKETS):
        first: dict[int, tuple[int, int]] = {}
        for question, answer, at, position in questions.read(bucket):
            before, earlier = first.setdefault(question, (answer, position))
            if earlier != position:
                row = (at, before == answer, earlier)
                repeats.add(at * NUM_BUCKETS // ordinal, row)
    questions.clear()
    found = _in_order(repeats)
    at = 0
    repeat = next(found, None)
    for count in counts:
        warnings: list[CauseDetail | None] = [None] * count
        while repeat is not None and repeat[0] < at + count:
            warnings[repeat[0] - at] = _warning(*repeat[1:])
            repeat = next(found, None)
        yield warnings
        at += count


def _in_order(repeats: Buckets) -> Iterator[tuple[int, bool, int]]:
    for bucket in range(NUM_BUCKETS):
        yield from sorted(repeats.read(bucket))


def _warning(is_same: bool, position: int) -> CauseDetail:
    if is_same:
        return "duplicate", f"same image, prompt and solution as record {position} overall"
    return "conflict", f"same image and prompt, other solution than record {position}"
