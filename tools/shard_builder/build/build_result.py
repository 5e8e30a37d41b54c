"""The end of a build: lists and manifests, unless too much was left out; what callers get."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from grpo_stream.errors import RecordError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import Store
from shard_builder.build.assemble import Assembled, assemble
from shard_builder.build.build_settings import BuildSettings
from shard_builder.build.chunk_plan import Survey
from shard_builder.build.output.output_folder import Output
from shard_builder.build.progress import Progress, Tell
from shard_builder.build.reject_share import share_text, warning_line
from shard_builder.build.surveyed_inputs import BuildPlan
from shard_builder.build.workers.worker import split_store


@dataclass(frozen=True)
class BuildResult:
    """What a build did."""

    num_records: int
    num_samples: int
    rejects: dict[str, int]
    """Rejected records by cause."""
    warnings: dict[str, int]
    """Warnings by cause."""
    first_rejects: list[str]
    """The first few, for people."""
    manifests: dict[str, Manifest]
    """By split, under ``""`` where there is none; empty after a dry run."""
    readings: tuple[dict[str, object], ...] = ()
    """How the records of each input are read, and why."""
    reading_lines: tuple[str, ...] = ()
    """The same, for people."""
    is_new: bool = True
    """False where the finished data set was there already: nothing was done."""

    @property
    def warning(self) -> str | None:
        """What is to be said last, also to who wants to hear nothing; mostly None."""
        return warning_line(self.num_records, self.rejects)

    @property
    def manifest(self) -> Manifest | None:
        """The one manifest of a set without splits."""
        return self.manifests.get("")


class TooManyRejectsError(RecordError):
    """The build stopped at the rejects it may have; there is no manifest."""


def finish_build(
    settings: BuildSettings,
    plan: BuildPlan,
    state: Store,
    temp: Path,
    output: Output | None,
    tell: Tell,
) -> BuildResult:
    """Reads the results of all chunks, writes lists and manifests, unless too much was left out.

    Args:
        settings: Of the build.
        plan: Of the build.
        state: Where the results are.
        temp: A folder for temporary files.
        output: The place of the data set, locked; None in a dry run.
        tell: Gets the progress.

    Raises:
        RecordError: no sample is left, or too many records are not; there is no manifest then.
        StoreError: something of what was written is there no more.
    """
    tell(Progress("finish", None))
    parts = {
        split: assemble(state, split, num_chunks, plan.names, temp / f"lists{split}")
        for split, num_chunks in plan.num_chunks.items()
    }
    num_samples = sum(part.totals["num_samples"] for part in parts.values())
    rejects = _summed(part.rejects.counts for part in parts.values())
    limit = settings.max_rejects
    if limit is not None and sum(rejects.values()) > limit:  # only parts that each kept to it
        detail = f"{sum(rejects.values())} rejects in all parts, at most {limit} are allowed"
        raise TooManyRejectsError("too_many_rejects", detail)
    num_allowed = settings.max_reject_share * plan.survey.num_wanted
    if num_samples == 0 or sum(rejects.values()) > num_allowed:
        if output is not None:
            _save_lists(settings.out, parts, is_failed=True)
            output.abandon()
        raise _left_out(settings, plan.survey, num_samples, rejects, parts)
    manifests = {}
    if output is not None:
        output.check()
        _save_lists(settings.out, parts)
        for split, part in parts.items():
            manifests[split] = part.manifest({**plan.content, "split_name": split})
        output.commit(manifests, {split: part.tags for split, part in parts.items()})
    return BuildResult(
        num_records=plan.survey.num_wanted,
        num_samples=num_samples,
        rejects=rejects,
        warnings=_summed(part.warnings.counts for part in parts.values()),
        first_rejects=[],
        manifests=manifests,
        readings=plan.facts,
        reading_lines=plan.lines,
    )


def result_found(
    manifests: dict[str, Manifest],
    readings: tuple[dict[str, object], ...] = (),
    reading_lines: tuple[str, ...] = (),
) -> BuildResult:
    """What is said of a finished data set that was there already."""
    totals = Counter[str]()
    for manifest in manifests.values():
        totals.update(manifest.totals)
    return BuildResult(
        num_records=totals["num_records"],
        num_samples=totals["num_samples"],
        rejects=_summed(Counter(manifest.rejects) for manifest in manifests.values()),
        warnings={},
        first_rejects=[],
        manifests=manifests,
        readings=readings,
        reading_lines=reading_lines,
        is_new=False,
    )


def _summed(counts: Iterable[Counter[str]]) -> dict[str, int]:
    return dict(sum(counts, Counter[str]()).most_common())


def _save_lists(out: str, parts: Mapping[str, Assembled], *, is_failed: bool = False) -> None:
    for split, part in parts.items():
        if part.totals["num_records"] or not is_failed:
            part.rejects.save(split_store(out, split))
            part.warnings.save(split_store(out, split))


def _left_out(
    settings: BuildSettings,
    survey: Survey,
    num_samples: int,
    rejects: dict[str, int],
    parts: Mapping[str, Assembled],
) -> RecordError:
    """The error of a build that leaves out too much, or all."""
    examples: dict[str, str] = {}
    for part in parts.values():
        examples = part.rejects.examples | examples
    if not rejects:
        return RecordError("no_samples", _why_none(survey, rejects))
    text = share_text(survey.num_wanted, rejects, examples, settings.given_flags)
    if num_samples == 0:
        causes, _, hints = text.partition("\n")
        return RecordError("no_samples", f"{_why_none(survey, rejects)}\n{hints or causes}")
    more = f"more than --max-reject-share {settings.max_reject_share:g} allows; rejects.jsonl in "
    lists = "--out lists them" if not settings.dry_run else "--out would list them"
    first, _, rest = text.partition("\n")
    return TooManyRejectsError("too_many_rejects", f"{first}, {more}{lists}\n{rest}")


def _why_none(survey: Survey, rejects: dict[str, int]) -> str:
    num_records = sum(summary.num_records for summary in survey.inputs)
    if num_records == 0:
        return "the inputs hold no record"
    if survey.num_wanted == 0:
        return f"none of {num_records} records has what --where asks for"
    causes = ", ".join(f"{cause} {count}" for cause, count in rejects.items())
    return f"all of {survey.num_wanted} records are rejected ({causes})"
