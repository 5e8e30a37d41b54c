"""The build: every record judged, samples packed, rejects and warnings listed, manifest last."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.image_encoding import codec_versions
from grpo_stream.records.formats.coco import DEFAULT_CATEGORY_PROMPT
from grpo_stream.records.formats.open_inputs import RuleFlags, expand_inputs, rules_of
from grpo_stream.records.formats.rules import Rules
from grpo_stream.records.stored_image import ImageReader, PictureRules
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import SCHEMA_VERSION
from grpo_stream.storage.store import LocalStore, Store, open_store
from shard_builder.build.assemble import assemble
from shard_builder.build.chunk_plan import Chunk, Cutter, Reading, ShardLimits, Splits, Survey
from shard_builder.build.output_folder import OUR_NAMES, Output
from shard_builder.build.progress import Progress, Tell, tell_nobody
from shard_builder.build.temp_folder import temp_folder
from shard_builder.build.worker import (
    NUM_FIRST_REJECTS,
    Job,
    News,
    Reject,
    rare_collections,
    split_store,
)
from shard_builder.build.worker_pool import Crew, run_chunks, start_crew


@dataclass(frozen=True)
class BuildSettings:
    """Everything that a build depends on."""

    inputs: tuple[str, ...]
    """Files, globs or URLs; see :func:`~grpo_stream.records.formats.open_inputs.expand_inputs`."""
    images_root: str
    """Folder or URL that image paths start from."""
    out: str
    """Folder or URL of the data set."""
    input_format: str = "auto"
    rules: Rules = field(default_factory=Rules)
    """How records are written where neither their format nor ``flags`` says anything."""
    flags: RuleFlags | None = None
    """What the user said of the records, which goes before what their format implies."""
    category_prompt: str = DEFAULT_CATEGORY_PROMPT
    """What is asked for a category of COCO."""
    where: tuple[tuple[str, str], ...] = ()
    """Only records whose fields have these values, as in ``(("split", "train"),)``; others are
    passed over without a word."""
    split: Splits | None = None
    """Named shares of the images that become data sets of their own, in folders of ``out``."""
    pictures: PictureRules = field(default_factory=PictureRules)
    limits: ShardLimits = field(default_factory=ShardLimits)
    shuffle_seed: int | None = None
    """Shuffles all records before packing, through temporary files; None keeps their order."""
    max_rejects: int | None = None
    """Rejected records after which the build stops; None for any number, 0 for none at all."""
    num_workers: int = 1
    """Processes that judge and pack; 1 does it in this one. A script that asks for more must
    start from ``if __name__ == "__main__":``, as with every spawned process."""
    overwrite: bool = False
    """Replace the data set in ``out``."""
    dry_run: bool = False
    """Judge everything, write nothing."""


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
    is_new: bool = True
    """False where the finished data set was there already: nothing was done."""

    @property
    def manifest(self) -> Manifest | None:
        """The one manifest of a set without splits."""
        return self.manifests.get("")


class TooManyRejectsError(RecordError):
    """The build stopped at the rejects it may have; there is no manifest."""


def build(settings: BuildSettings, tell: Tell = tell_nobody) -> BuildResult:
    """Builds a data set; equal inputs and settings give equal files.

    The inputs are read twice, first to find damaged files and to count, so that a file that was
    cut short is known before a shard is written. A build that was killed resumes when it is
    started again with the same inputs and settings: only the chunks that were being worked on
    are done again. A finished one is recognised and left alone.

    Memory does not grow with the number of records beyond 64 MiB of them, apart from the
    manifest's line a shard: each process holds the records of a few chunks and some images; a
    shuffle holds a 256th part of all records at a time, the search for repeated questions a
    256th part of 28 bytes a sample, or 64 MiB.

    Args:
        settings: What to build.
        tell: Gets the progress, a few times a second.

    Raises:
        ConfigError: a path or setting cannot work; nothing was written.
        RecordError: an input file is damaged, there are too many rejects, or no sample is left;
            there is no manifest then.
        StoreError: a shard cannot be written or uploaded.
        WorkerDiedError: a worker process was killed.
    """
    _check(settings)
    sources = expand_inputs(settings.inputs, settings.input_format, settings.category_prompt)
    rules = tuple(rules_of(source, settings.rules, settings.flags) for source in sources)
    splits = ("",) if settings.split is None else settings.split.names
    with ExitStack() as stack:
        output = None
        if not settings.dry_run:  # before the inputs are read, which may take long
            output = Output(settings.out, splits, settings.images_root)
            stack.callback(output.close)
        temp = stack.enter_context(temp_folder())
        stack.enter_context(rare_collections())
        job = Job(
            out=settings.out,
            images_root=settings.images_root,
            rules=rules,
            pictures=settings.pictures,
            limits=settings.limits,
            state=settings.out if output is not None else str(temp / "state"),
            spool=temp / "spool",
            dry_run=settings.dry_run,
        )
        # Before the inputs are read: workers start meanwhile.
        crew = start_crew(job, settings.num_workers)
        stack.callback(crew.stop)
        reading = Reading(sources, rules, settings.where, settings.shuffle_seed, temp)
        survey = reading.survey(lambda num_records: tell(Progress("read", None, num_records)))
        content = _content(settings, rules, survey)
        if output is not None:
            found = output.begin(content, overwrite=settings.overwrite)
            if found is not None:
                return _found(found)
        names = [source.name for source in sources]
        run = _Run(crew, settings, names, survey.num_wanted, tell)
        reader = ImageReader(job.images_root, job.pictures)
        stack.callback(reader.close)
        cutter = Cutter(job.limits, sources, rules, settings.split, reader)
        run.build(cutter.cut(reading.records()), output)
        tell(Progress("finish", None))
        state = open_store(job.state)
        parts = {
            split: assemble(state, split, cutter.num_chunks[split], names, temp / f"lists{split}")
            for split in splits
        }
        num_samples = sum(part.totals["num_samples"] for part in parts.values())
        if num_samples == 0:
            if output is not None:
                output.abandon()
            rejects = _summed(part.rejects.counts for part in parts.values())
            raise RecordError("no_samples", _why_none(survey, rejects) + run.hint())
        manifests = {}
        if output is not None:
            output.check()
            for split, part in parts.items():
                part.rejects.save(split_store(job.out, split))
                part.warnings.save(split_store(job.out, split))
                manifests[split] = part.manifest({**content, "split_name": split})
            output.commit(manifests, {split: part.tags for split, part in parts.items()})
        return BuildResult(
            num_records=survey.num_wanted,
            num_samples=num_samples,
            rejects=_summed(part.rejects.counts for part in parts.values()),
            warnings=_summed(part.warnings.counts for part in parts.values()),
            first_rejects=run.first_rejects(),
            manifests=manifests,
        )


class _Run:
    """The middle of a build: chunks that are not done yet are built, rejects are counted."""

    def __init__(
        self, crew: Crew, settings: BuildSettings, names: list[str], num_total: int, tell: Tell
    ) -> None:
        self._crew = crew
        self._settings = settings
        self._names = names
        self._progress = Progress("build", num_total)
        self._tell = tell
        self._first: list[Reject] = []

    def build(self, chunks: Iterator[Chunk], output: Output | None) -> None:
        missing = self._missing(chunks, output)
        self._tell(self._progress)
        for _ in run_chunks(missing, self._crew, self._hear):
            if output is not None:
                output.check(asks_store=False)

    def first_rejects(self) -> list[str]:
        """A line for each of the first few, for people."""
        return [
            f"{self._names[reject.place.input]} record {reject.place.record}: "
            f"{reject.cause}: {reject.detail}"
            for reject in self._first
        ]

    def hint(self) -> str:
        """The first rejects, one a line, to end an error message with."""
        return "".join(f"\n  {line}" for line in self.first_rejects())

    def _missing(self, chunks: Iterator[Chunk], output: Output | None) -> Iterator[Chunk]:
        for chunk in chunks:
            result = None if output is None else output.result_of(chunk.split, chunk.number)
            if result is None:
                yield chunk
            else:
                self._hear(result.news())

    def _hear(self, news: News) -> None:
        now = self._progress
        self._progress = replace(
            now,
            num_records=now.num_records + news.num_records,
            num_rejects=now.num_rejects + news.num_rejects,
            num_image_bytes=now.num_image_bytes + news.num_image_bytes,
        )
        self._first = sorted([*self._first, *news.first_rejects])[:NUM_FIRST_REJECTS]
        self._tell(self._progress)
        limit = self._settings.max_rejects
        if limit is not None and self._progress.num_rejects > limit:
            detail = f"{self._progress.num_rejects} rejects, at most {limit} are allowed"
            raise TooManyRejectsError("too_many_rejects", f"{detail}{self.hint()}")


def _found(manifests: dict[str, Manifest]) -> BuildResult:
    totals = Counter[str]()
    for manifest in manifests.values():
        totals.update(manifest.totals)
    rejects = _summed(Counter(manifest.rejects) for manifest in manifests.values())
    return BuildResult(
        totals["num_records"], totals["num_samples"], rejects, {}, [], manifests, is_new=False
    )


def _summed(counts: Iterable[Counter[str]]) -> dict[str, int]:
    return dict(sum(counts, Counter[str]()).most_common())


def _why_none(survey: Survey, rejects: dict[str, int]) -> str:
    num_records = sum(summary.num_records for summary in survey.inputs)
    if num_records == 0:
        return "the inputs hold no record"
    if survey.num_wanted == 0:
        return f"none of {num_records} records has what --where asks for"
    causes = ", ".join(f"{cause} {count}" for cause, count in rejects.items())
    return f"all of {survey.num_wanted} records are rejected ({causes})"


def _open(flag: str, url: str) -> Store:
    try:
        return open_store(url)
    except ConfigError as error:
        raise ConfigError(flag, url, error.expected) from error


def _content(settings: BuildSettings, rules: tuple[Rules, ...], survey: Survey) -> dict[str, Any]:
    """Everything that decides the content, without the machine's paths."""
    return {
        "schema_version": SCHEMA_VERSION,
        "inputs": survey.to_dicts(),
        "where": [list(pair) for pair in settings.where],
        "rules": [asdict(rule) for rule in rules],
        "split": None if settings.split is None else dict(settings.split.shares),
        "pictures": asdict(settings.pictures),
        "shard_limits": asdict(settings.limits),
        "shuffle_seed": settings.shuffle_seed,
        "category_prompt": settings.category_prompt,
        "codecs": codec_versions(),
    }


def _check(settings: BuildSettings) -> None:
    for name, value, example in (
        ("--samples-per-shard", settings.limits.max_samples, "1000"),
        ("--max-shard-bytes", settings.limits.max_bytes, "256MiB"),
        ("--workers", settings.num_workers, "4"),
    ):
        if value < 1:
            raise ConfigError(name, value, f"must be at least 1, for example {example}")
    if settings.max_rejects is not None and settings.max_rejects < 0:
        expected = "must be 0 or more, for example 100"
        raise ConfigError("--max-rejects", settings.max_rejects, expected)
    root = _open("--images-root", settings.images_root)
    if isinstance(root, LocalStore) and not root.folder.is_dir():
        expected = "must be the folder that image paths start from"
        raise ConfigError("--images-root", settings.images_root, expected)
    out = _open("--out", settings.out)
    if isinstance(out, LocalStore):
        for word in settings.inputs:
            path = Path(word)
            if path.parent.resolve() == out.folder.resolve() and any(
                fnmatch(path.name, pattern) for pattern in OUR_NAMES
            ):
                raise ConfigError("INPUT", word, "is replaced by the build: give a copy elsewhere")
    elif settings.out.startswith(("http://", "https://")):
        expected = "web servers take no uploads: give a folder, s3://, gs:// or az://"
        raise ConfigError("--out", settings.out, expected)
