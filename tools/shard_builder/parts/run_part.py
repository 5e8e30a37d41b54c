"""``build --part I/N``: one part of a build, on any machine, in any order, even twice."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from grpo_stream.errors import ConfigError, GrpoStreamError, StoreError
from grpo_stream.records.formats.open_inputs import expand_inputs, rules_of
from grpo_stream.storage.store import open_store
from shard_builder.build.build import ChunkRun
from shard_builder.build.build_result import BuildResult
from shard_builder.build.build_settings import BuildSettings, check_settings
from shard_builder.build.chunk_result import ChunkResult
from shard_builder.build.output.kept_results import KeptResults
from shard_builder.build.output.output_lock import PlaceTakenError
from shard_builder.build.output.temp_folder import temp_folder
from shard_builder.build.progress import Tell, tell_nobody
from shard_builder.build.workers.executors import crew_of
from shard_builder.build.workers.worker import rare_collections, split_store
from shard_builder.parts.finish_parts import clear_leftovers, finish, is_finished
from shard_builder.parts.make_plan import make_plan, plan_of
from shard_builder.parts.plan_files import StoredPlan, load_plan, stored_chunks
from shard_builder.parts.plan_request import Part, digest_of, request_of

_SECONDS_BETWEEN_LOOKS = 5.0


@dataclass(frozen=True)
class PartResult:
    """What came of a part."""

    part: Part
    num_chunks: int
    """Of this part; of the whole build where it only made the plan."""
    num_records: int = 0
    """Judged, those of earlier runs of this part included."""
    num_rejects: int = 0
    first_rejects: tuple[str, ...] = ()
    """The first few, for people."""
    missing_parts: tuple[int, ...] = ()
    """Parts that are not whole yet."""
    finished: BuildResult | None = None
    """The data set, where this part was the last, or it was there already."""
    is_finished_elsewhere: bool = False
    """Another process has finished the data set, or is at it."""


class _FinishedMeanwhileError(Exception):
    """The plan is gone: another process has finished the build."""


def build_part(settings: BuildSettings, part: Part, tell: Tell = tell_nobody) -> PartResult:
    """Builds a part; the one that ends last finishes the data set.

    Parts may run at the same time, on machines that share ``settings.out``, in any order, twice,
    or twice at once: what becomes of a chunk depends on nothing outside it, and all write the
    same bytes. The first makes the plan, which the others wait for, unless ``plan/N`` made it.

    Args:
        settings: The same for all parts, apart from ``num_workers``.
        part: Which.
        tell: Gets the progress, a few times a second.

    Raises:
        ConfigError: a setting cannot work, or is not the plan's; nothing was written.
        RecordError, StoreError, WorkerDiedError: as :func:`~shard_builder.build.build.build`.
    """
    _check(settings, part)
    sources = expand_inputs(settings.inputs, settings.input_format, settings.category_prompt)
    rules = [rules_of(source, settings.rules, settings.flags) for source in sources]
    request = request_of(settings, sources, part.num_parts)
    make = make_plan if settings.overwrite else plan_of
    plan = make(settings, sources, rules, request, part, tell)
    if isinstance(plan, BuildResult):
        return PartResult(part, 0, finished=plan)
    if part.number == 0:
        return PartResult(part, sum(plan.build.num_chunks.values()))
    with _or_finished(settings.out, plan):
        place = _PartPlace(settings, plan)
        result = _build_chunks(settings, plan, part, place, tell)
        missing = plan.missing(open_store(settings.out))
        place.check()  # else what is missing may be missing because all is finished
        if missing:
            return replace(result, missing_parts=tuple(sorted(missing)))
        return replace(result, finished=finish(settings.out, tell))
    clear_leftovers(settings.out, plan)
    return PartResult(part, len(plan.chunks_of(part)), is_finished_elsewhere=True)


def _check(settings: BuildSettings, part: Part) -> None:
    check_settings(settings)
    if settings.dry_run:
        raise ConfigError("--part", part.name, "goes without --dry-run: that is one process's work")
    if settings.overwrite and part.number:
        expected = (
            "goes without --overwrite, or each part would remove what others have built: run "
            f"--part plan/{part.num_parts} --overwrite once, before the parts"
        )
        raise ConfigError("--part", part.name, expected)


def _build_chunks(
    settings: BuildSettings, plan: StoredPlan, part: Part, place: "_PartPlace", tell: Tell
) -> PartResult:
    chunks = plan.chunks_of(part)
    if not chunks:
        return PartResult(part, 0)
    num_all = sum(plan.build.num_chunks.values())
    with ExitStack() as stack:
        temp = stack.enter_context(temp_folder())
        stack.enter_context(rare_collections())
        crew = crew_of(settings, settings.job(settings.out, temp / "spool"))
        stack.callback(crew.stop)
        num_records = round(plan.build.survey.num_wanted * len(chunks) / num_all)
        run = ChunkRun(crew, settings, plan.build.names, num_records, tell)
        run.build(stored_chunks(open_store(settings.out), plan, chunks), place)
    return PartResult(
        part,
        len(chunks),
        run.progress.num_records,
        run.progress.num_rejects,
        tuple(run.first_rejects()),
    )


@contextmanager
def _or_finished(out: str, plan: StoredPlan) -> Iterator[None]:
    """Ends the block in peace where another process has finished the build in the meantime.

    What it then runs into is of any kind: a shard's temporary file is gone, or a list of records.
    """
    try:
        yield
    except (_FinishedMeanwhileError, PlaceTakenError):
        return
    except (GrpoStreamError, OSError):
        if not is_finished(out, plan):
            raise


class _PartPlace:
    """The results of all parts, and whether the plan is still the one that this part read."""

    def __init__(self, settings: BuildSettings, plan: StoredPlan) -> None:
        self._out = settings.out
        self._store = open_store(settings.out)
        stores = {split: split_store(settings.out, split) for split in settings.split_names}
        self._kept = KeptResults(self._store, stores)
        self._plan = plan
        self._next = 0.0

    def result_of(self, split: str, number: int) -> ChunkResult | None:
        """What was made of a chunk, if all of that is still there."""
        return self._kept.result_of(split, number)

    def check(self, *, asks_store: bool = True) -> None:
        """Looks every few seconds, or now.

        Raises:
            _FinishedMeanwhileError: another process has finished the build.
            StoreError: another build has the place now (cause ``taken_over``).
        """
        if not asks_store and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        now = load_plan(self._store)
        if now is not None and digest_of(now.request) == digest_of(self._plan.request):
            return
        if is_finished(self._out, self._plan):
            raise _FinishedMeanwhileError
        detail = f"{self._out}: another plan, or none, is there now: this part stops here"
        raise StoreError("taken_over", detail)
