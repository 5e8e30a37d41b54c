"""The plan of a build in parts, beside its shards: what there is to build, and of which records."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from grpo_stream.errors import StoreError
from grpo_stream.records.formats.rules import Rules
from grpo_stream.storage.store import Store
from shard_builder.build.chunk_plan import Chunk, InputSummary, LaterChunk, Survey
from shard_builder.build.chunk_result import result_name
from shard_builder.build.output.kept_results import (
    PLAN_NAME,
    REQUEST_NAME,
    ROWS_FOLDER,
    result_names,
)
from shard_builder.build.surveyed_inputs import BuildPlan
from shard_builder.parts.plan_request import Part, digest_of
from shard_builder.parts.row_files import decode_rows, encode_rows
from shard_builder.parts.stored_json import load_object

_VERSION = 1
_REMEDY = "plan anew, with --overwrite"
_NUM_REQUESTS = 16
_MAX_WAITING_BYTES = 64 * 2**20


@dataclass(frozen=True)
class StoredPlan:
    """A plan as all parts see it."""

    request: dict[str, Any]
    """What it was made for."""
    build: BuildPlan
    given_flags: tuple[str, ...] = ()
    """What the planner was given, so that no hint asks for it."""

    @property
    def num_parts(self) -> int:
        """Parts that the build was cut into."""
        return int(self.request["num_parts"])

    def chunks_of(self, part: Part) -> list[tuple[str, int]]:
        """Split and number of the chunks of a part: every N-th, so that parts are alike."""
        return self._all_chunks()[part.number - 1 :: part.num_parts]

    def missing(self, store: Store) -> dict[int, list[tuple[str, int]]]:
        """The chunks that have no result, by part."""
        names = result_names(store)
        missing: dict[int, list[tuple[str, int]]] = {}
        for ordinal, chunk in enumerate(self._all_chunks()):
            if result_name(*chunk) not in names:
                missing.setdefault(ordinal % self.num_parts + 1, []).append(chunk)
        return missing

    def to_json(self) -> bytes:
        """JSON that :func:`load_plan` reads."""
        build = self.build
        values = {
            "version": _VERSION,
            "digest": digest_of(self.request),
            "request": self.request,
            "given_flags": self.given_flags,
            "names": build.names,
            "num_wanted": build.survey.num_wanted,
            "inputs": build.survey.to_dicts(),
            "rules": [asdict(rule) for rule in build.rules],
            "content": build.content,
            "num_chunks": dict(build.num_chunks),
            "facts": build.facts,
            "lines": build.lines,
        }
        return json.dumps(values, indent=1).encode()

    def _all_chunks(self) -> list[tuple[str, int]]:
        return [
            (split, number)
            for split, num_chunks in self.build.num_chunks.items()
            for number in range(num_chunks)
        ]


def load_plan(store: Store) -> StoredPlan | None:
    """The plan in a place; None where there is none.

    Raises:
        StoreError: it is damaged (cause ``unreadable``).
    """
    raw = load_object(store, PLAN_NAME, _REMEDY)
    if raw is None:
        return None
    try:
        if raw["version"] != _VERSION:
            raise ValueError(f"version {raw['version']}, this builder reads {_VERSION}")
        build = BuildPlan(
            names=tuple(raw["names"]),
            survey=Survey(tuple(InputSummary(**one) for one in raw["inputs"]), raw["num_wanted"]),
            rules=tuple(_rules(rule) for rule in raw["rules"]),
            content=raw["content"],
            num_chunks=raw["num_chunks"],
            facts=tuple(raw["facts"]),
            lines=tuple(raw["lines"]),
        )
        return StoredPlan(raw["request"], build, tuple(raw["given_flags"]))
    except (ValueError, TypeError, KeyError) as error:
        detail = f"{store.url}: {PLAN_NAME} cannot be used ({error})"
        raise StoreError("unreadable", f"{detail}: {_REMEDY}") from error


def load_request(store: Store) -> dict[str, Any] | None:
    """What the plan is made for that is being made; None where none is."""
    return load_object(store, REQUEST_NAME, _REMEDY)


def write_chunks(store: Store, chunks: Iterable[Chunk], check: Callable[[], None]) -> None:
    """Stores the records of all chunks.

    Args:
        store: The place of the data set.
        chunks: Of the whole build.
        check: Is called after each; raises where the place is another build's.
    """
    waiting: deque[tuple[Future[None], int]] = deque()
    num_bytes = 0
    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        for chunk in chunks:
            data = encode_rows(chunk.records)
            num_bytes += len(data)
            name = _rows_name(chunk.split, chunk.number)
            waiting.append((pool.submit(store.write, name, data), len(data)))
            while num_bytes > _MAX_WAITING_BYTES or len(waiting) > 2 * _NUM_REQUESTS:
                future, size = waiting.popleft()
                future.result()
                num_bytes -= size
            check()
        for future, _ in waiting:
            future.result()


def stored_chunks(
    store: Store, plan: StoredPlan, chunks: Iterable[tuple[str, int]]
) -> Iterator[LaterChunk]:
    """Chunks, whose records are read when they are needed.

    Args:
        store: The place of the data set.
        plan: Its plan.
        chunks: Split and number of each.
    """
    rules = plan.build.rules
    for split, number in chunks:

        def read(split: str = split, number: int = number) -> Chunk:
            name = _rows_name(split, number)
            return Chunk(split, number, decode_rows(store.read(name), name), rules)

        yield LaterChunk(split, number, read)


def _rows_name(split: str, number: int) -> str:
    return f"{ROWS_FOLDER}/{split or 'all'}-{number:06d}"


def _rules(fields: dict[str, Any]) -> Rules:
    warning = fields["warning"]
    pair = None if warning is None else (warning[0], warning[1])
    return Rules(**{**fields, "told": tuple(fields["told"]), "warning": pair})
