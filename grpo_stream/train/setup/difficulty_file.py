"""``--difficulty FILE``: from what an earlier run found hard to how often each sample comes.

The file is a run's ``difficulty.jsonl``, an evaluation's ``answers.jsonl``, or lines of one's own
with ``key`` and ``weight``; told apart line by line.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.evaluation.answer_metrics import is_right
from grpo_stream.grounding.evaluation.evaluation_files import ANSWERS_NAME
from grpo_stream.grounding.scores import ScoredAnswer
from grpo_stream.stream.record_source import RecordSource
from grpo_stream.stream.selected_source import MAX_WEIGHT, SelectedSource, count_copies
from grpo_stream.stream.sources import ShardSource, Source
from grpo_stream.train.cluster.together import once_per_node
from grpo_stream.train.observe.difficulty_log import FILE_NAME

DifficultyRule = Literal["uncertain", "hard"]

LEAST_WEIGHT = 0.1
"""Of what a rule would leave out: a policy changes, and a rule looks back."""


@dataclass(frozen=True)
class DifficultySettings:
    """How samples are chosen by what is known of them."""

    path: str
    """A file, or the folder of a run or report that has one."""
    rule: DifficultyRule = "uncertain"
    keep: tuple[float, float] | None = None
    """Samples with a share of success in this range, ends included, come once, others never."""
    other: float = 1.0
    """Weight of samples that the file does not name."""

    def weight(self, success: float) -> float:
        """Of a sample, by its share of success, or mean reward.

        ``uncertain``: 4 p (1 - p), the variance of a hit with chance p over its greatest, as
        rewards of 0 and 1 teach by how they differ; ``hard``: 2 (1 - p).
        """
        if self.keep is not None:
            return float(self.keep[0] <= success <= self.keep[1])
        share = min(1.0, max(0.0, success))
        weight = 4 * share * (1 - share) if self.rule == "uncertain" else 2 * (1 - share)
        return max(LEAST_WEIGHT, weight)


def select_by_difficulty(source: Source, settings: DifficultySettings) -> SelectedSource:
    """The samples of a data set as often as their difficulty says.

    Collective, once ranks have joined: the first rank of each node reads the file and the keys.

    Raises:
        ConfigError: the file is not there or none of its kind, or it leaves nothing.
        StoreError, ShardFormatError: the keys cannot be read.
    """
    if not isinstance(source, (ShardSource, RecordSource)):
        raise ConfigError("difficulty", settings.path, "is for samples one by one; leave it out")

    def count() -> tuple[Any, int, int]:
        weights = read_weights(settings)
        num_shards = len(source.shard_counts)
        copies, num_known = count_copies(source.keys, num_shards, weights, settings.other)
        return copies, num_known, len(weights)

    copies, num_known, num_named = once_per_node(count)
    if num_known == 0:
        expected = (
            f"names {num_named} samples, none of which is in this data set: it is of another one; "
            "give the file of a run on this one"
        )
        raise ConfigError("difficulty", settings.path, expected)
    if not copies.any():
        expected = "leaves no sample; give a wider difficulty_keep, for example 0 0.9"
        raise ConfigError("difficulty", settings.path, expected)
    words = (
        f"{num_known:,} of {len(copies):,} samples are known; {int((copies > 0).sum()):,} are in, "
        f"{int(copies.sum(dtype=int)):,} places an epoch"
    )
    return SelectedSource(source, copies, f"difficulty {settings.path}: {words}")


def read_weights(settings: DifficultySettings) -> dict[str, float]:
    """The weight of each sample that a file names, by key.

    Of several rollouts of a sample the last one counts: the one of the highest global step, and of
    equal ones the later line.

    Raises:
        ConfigError: see :func:`select_by_difficulty`.
    """
    path = _find(settings.path)
    steps: dict[str, int] = {}
    weights: dict[str, float] = {}
    for number, row in enumerate(_rows(path, settings.path), 1):
        try:
            key, step, weight = _read(row, settings)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            expected = (
                f"line {number} is none of a difficulty.jsonl, of an answers.jsonl, or with key "
                f"and weight from 0 to {MAX_WEIGHT:g} ({error})"
            )
            raise ConfigError("difficulty", settings.path, expected) from error
        if weight is not None and step >= steps.get(key, step):
            steps[key], weights[key] = step, weight
    return weights


def _read(row: Mapping[str, Any], settings: DifficultySettings) -> tuple[str, int, float | None]:
    """Key, global step and weight of a line; no weight where it says nothing."""
    key = row["key"]
    if not isinstance(key, str):
        raise TypeError(f"key={key!r} is no text")
    if "weight" in row:
        if settings.keep is not None:
            raise ValueError("it has weights, which difficulty_keep does not go with")
        weight = float(row["weight"])
        if not 0 <= weight <= MAX_WEIGHT:
            raise ValueError(f"weight={weight}")
        return key, 0, weight
    if "global_step" in row:
        success, step = row["mean"], int(row["global_step"])
    else:
        success, step = _share_right(ScoredAnswer.from_dict(row)), 0
    if success is None:
        return key, step, None
    if not math.isfinite(success):
        raise ValueError(f"mean={success}")
    return key, step, settings.weight(float(success))


def _share_right(answer: ScoredAnswer) -> float | None:
    """Of the sampled answers, or of the one; None where right and wrong mean nothing."""
    found = [one["is_right"] for one in answer.sampled] or [is_right(answer)]
    known = [bool(one) for one in found if one is not None]
    return sum(known) / len(known) if known else None


def _find(path: str) -> Path:
    place = Path(path)
    names = (ANSWERS_NAME, FILE_NAME) if place.is_dir() else ("",)
    found = next((place / name for name in names if (place / name).is_file()), None)
    if found is None:
        expected = f"is no file, and no folder with {ANSWERS_NAME} or {FILE_NAME}"
        raise ConfigError("difficulty", path, expected)
    return found


def _rows(path: Path, name: str) -> Iterator[Mapping[str, Any]]:
    """The lines; a last one that was cut off is left out."""
    with path.open(encoding="utf-8", errors="surrogatepass") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n") or not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError("difficulty", name, f"line {number} is no JSON") from error
            if not isinstance(row, dict):
                raise ConfigError("difficulty", name, f"line {number} is no JSON object")
            yield row
