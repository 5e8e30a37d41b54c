"""Runs a pass: in threads of this process, on a Ray cluster, or one part of it."""

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from grpo_stream.errors import ConfigError
from shard_builder.build.build_settings import Executor, check_executor
from shard_builder.datasets.scan_shards import OnProgress, no_progress
from shard_builder.parts.finish_parts import PartsMissingError, named_parts
from shard_builder.parts.plan_request import Part
from shard_builder.passes.shard_pass import ShardPass, look_here
from shard_builder.passes.stored_findings import StoredFindings

JOIN_WORD = "join"
"""Instead of a part's number: conclude from what the parts have found."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class PassSettings:
    """Where a pass takes place."""

    workers: int = 1
    """Shards that are read at the same time, each in a thread."""
    executor: Executor = "local"
    ray_address: str | None = None
    """As of a build: :class:`~shard_builder.build.build_settings.BuildSettings`."""
    part: Part | None = None
    """Only this part; the one that ends last concludes. Number 0 only concludes."""
    parts_at: str = ""
    """Folder or URL where parts keep what they find; empty for a folder beside the shards."""


@dataclass(frozen=True)
class PartDone:
    """A part that was not the last."""

    part: Part
    num_shards: int
    """That are its own."""
    missing_parts: tuple[int, ...]
    """Parts that are not whole yet."""


def run_pass(
    one: ShardPass[Result], settings: PassSettings, on_progress: OnProgress = no_progress
) -> Result | PartDone:
    """Looks at all shards, or at those of a part.

    Parts may run at the same time, in any order, twice, or twice at once; what one has found is
    kept, so that no shard is read again when it is run again, or to conclude.

    Args:
        one: What to look for.
        settings: Where.
        on_progress: Is told of samples and bytes.

    Raises:
        ConfigError: a setting cannot work; nothing was read or written.
        PartsMissingError: parts are to be joined that have not run.
        GrpoStreamError: what the pass finds wrong.
    """
    if settings.workers < 1:
        raise ConfigError("--workers", settings.workers, "must be at least 1, for example 8")
    check_executor(settings.executor, settings.ray_address)
    if settings.part is None:
        if settings.parts_at:
            raise ConfigError("--parts-at", settings.parts_at, "goes with --part I/N")
        with closing(_look(one, range(one.num_shards), settings, on_progress)) as findings:
            return one.conclude(findings)
    return _run_part(one, settings.part, settings, on_progress)


def _run_part(
    one: ShardPass[Result], part: Part, settings: PassSettings, on_progress: OnProgress
) -> Result | PartDone:
    stored = StoredFindings(one, part.num_parts, settings.parts_at)
    result: Result | None = stored.result()
    if result is not None:
        return result
    if part.number == 0:
        missing = stored.missing_parts()
        if missing:
            raise PartsMissingError(_missing_text(stored, part, missing))
        return cast("Result", stored.conclude())
    numbers = stored.numbers_of(part)
    done = stored.done()
    left = [number for number in numbers if number not in done]
    with closing(_look(one, left, settings, on_progress)) as findings:
        for number, finding in zip(left, findings, strict=True):
            stored.save(number, finding)
    result = stored.result()
    if result is not None:  # this part ran on another machine, too
        stored.clear(left)
        return result
    missing = stored.missing_parts()
    if missing:
        return PartDone(part, len(numbers), missing)
    return cast("Result", stored.conclude())


def _look(
    one: ShardPass[Any], numbers: Iterable[int], settings: PassSettings, on_progress: OnProgress
) -> Generator[Any, None, None]:
    if settings.executor == "ray":
        from shard_builder.passes.ray_looks import look_on_ray  # noqa: PLC0415 - an extra

        return look_on_ray(one, numbers, settings.ray_address, on_progress)
    return look_here(one, numbers, settings.workers, on_progress)


def _missing_text(stored: StoredFindings, part: Part, missing: tuple[int, ...]) -> str:
    return (
        f"{stored.place}: of {part.num_parts} parts {len(missing)} are not whole yet: "
        f"{named_parts(missing)}. Run them, with --part {missing[0]}/{part.num_parts} and so on"
    )
