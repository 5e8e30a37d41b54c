"""The book of a build: what was rejected and why, what was warned of, what came before."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from grpo_stream.errors import ImageError, RecordError
from tools.shard_builder.judge import Verdict

REJECTS_NAME = "rejects.jsonl"
WARNINGS_NAME = "warnings.jsonl"


class TooManyRejectsError(RecordError):
    """The build stopped at the rejects it may have; there is no manifest."""


@dataclass(frozen=True)
class Place:
    """Where a record stands."""

    position: int
    """Over all inputs, from 0."""
    input: Path
    index: int
    """In its input, from 0."""


class Ledger:
    """Counts and lists what was rejected and warned of, and knows records that came before.

    It holds about 200 bytes for every sample, to find the same question asked twice.

    Args:
        image_key: The records' field of the image path, which the lists repeat.
        max_rejects: Rejected records that are allowed; None for any number.
    """

    def __init__(self, image_key: str, max_rejects: int | None) -> None:
        self.num_samples = 0
        self.rejects: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.first_rejects: list[str] = []
        self._max_rejects = max_rejects
        self._image_key = image_key
        self._seen: dict[int, tuple[int, int]] = {}
        self._files: dict[str, TextIO] = {}

    def write_to(self, folder: Path, stack: ExitStack) -> None:
        """Opens both lists in ``folder``; ``stack`` closes them."""
        for name in (REJECTS_NAME, WARNINGS_NAME):
            file = (folder / name).open("w", encoding="utf-8")
            self._files[name] = stack.enter_context(file)

    def take(self, place: Place, record: Any, verdict: Verdict) -> None:
        """Counts a sample and lists its warnings."""
        self.num_samples += 1
        for cause, detail in [*verdict.warnings, *self._repeated(place, verdict)]:
            self.warnings[cause] += 1
            self._write(WARNINGS_NAME, place, record, cause, detail)

    def reject(self, place: Place, record: Any, error: RecordError | ImageError) -> None:
        """Counts and lists a record that is no sample.

        Raises:
            TooManyRejectsError: that was one too many.
        """
        self.rejects[error.cause] += 1
        self._write(REJECTS_NAME, place, record, error.cause, error.detail)
        if len(self.first_rejects) < 5:
            self.first_rejects.append(f"{place.input} record {place.index}: {error}")
        if self._max_rejects is not None and self.rejects.total() > self._max_rejects:
            detail = f"{self.rejects.total()} rejects, at most {self._max_rejects} are allowed"
            raise TooManyRejectsError("too_many_rejects", f"{detail}{self.hint()}")

    def hint(self) -> str:
        """The first rejects, one a line, to end an error message with."""
        return "".join(f"\n  {line}" for line in self.first_rejects)

    def postfix(self) -> dict[str, int]:
        """For the progress bar."""
        return {"samples": self.num_samples, "rejects": self.rejects.total()}

    def _repeated(self, place: Place, verdict: Verdict) -> Iterator[tuple[str, str]]:
        sample = verdict.sample
        question = _hash(sample.image, sample.prompt.encode())
        answer = _hash(repr(sample.solution).encode())
        position, before = self._seen.setdefault(question, (place.position, answer))
        if position != place.position:
            if before == answer:
                yield "duplicate", f"same image, prompt and solution as record {position} overall"
            else:
                yield "conflict", f"same image and prompt, other solution than record {position}"

    def _write(self, name: str, place: Place, record: Any, cause: str, detail: str) -> None:
        if name in self._files:
            image = record.get(self._image_key) if isinstance(record, dict) else None
            line = {
                "input": str(place.input),
                "index": place.index,
                "image": image[:500] if isinstance(image, str) else None,
                "cause": cause,
                "detail": detail,
            }
            # ASCII: a path may hold letters that UTF-8 cannot.
            self._files[name].write(json.dumps(line) + "\n")


def _hash(*parts: bytes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return int.from_bytes(digest.digest(), "little")
