"""The build: every record judged, samples packed, rejects and warnings listed, manifest last."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.image_encoding import codec_versions
from grpo_stream.records.form_book import DecidedForms
from grpo_stream.records.formats.coco import DEFAULT_CATEGORY_PROMPT
from grpo_stream.records.formats.open_inputs import RuleFlags, expand_inputs, rules_of
from grpo_stream.records.formats.rules import Rules
from grpo_stream.records.readings import READING_NAMES
from grpo_stream.records.stored_image import ImageReader, PictureRules
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import SCHEMA_VERSION
from grpo_stream.storage.store import LocalStore, Store, open_store
from shard_builder.build.assemble import Assembled, assemble
from shard_builder.build.chunk_plan import Chunk, Cutter, Reading, ShardLimits, Splits, Survey
from shard_builder.build.output_folder import OUR_NAMES, Output
from shard_builder.build.progress import Progress, Tell, tell_nobody
from shard_builder.build.reject_share import share_text, warning_line
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
    by_image: bool = False
    """The records of an image become neighbours in one shard, so that training may compute it once
    for all of them; the images are in an order of their own."""
    shuffle_seed: int | None = None
    """Shuffles all records before packing, through temporary files; None keeps their order."""
    max_rejects: int | None = None
    """Rejected records after which the build stops; None for any number, 0 for none at all."""
    max_reject_share: float = 0.5
    """Share of rejected records above which the build ends with an error, and without a set."""
    accept_reading: str | None = None
    """The reading, as in ``xyxy-pixels``, that is taken where the records fit several."""
    given_flags: tuple[str, ...] = ()
    """What the user gave, so that no hint asks for it."""
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
            pictures=settings.pictures,
            limits=settings.limits,
            state=settings.out if output is not None else str(temp / "state"),
            spool=temp / "spool",
            dry_run=settings.dry_run,
            by_image=settings.by_image,
        )
        # Before the inputs are read: workers start meanwhile.
        crew = start_crew(job, settings.num_workers)
        stack.callback(crew.stop)
        reading = Reading(
            sources, rules, settings.where, settings.shuffle_seed, temp, by_image=settings.by_image
        )
        survey = reading.survey(lambda num_records: tell(Progress("read", None, num_records)))
        reader = ImageReader(job.images_root, job.pictures)
        stack.callback(reader.close)
        forms = reading.forms.decide(reader.size_of, settings.flags, settings.accept_reading)
        words = [source.name for source in sources]
        forms.check(words, can_accept=True)
        inputs = [summary.name for summary in survey.inputs]
        content = _content(settings, forms, inputs, survey)
        read_as = (tuple(forms.facts(words)), tuple(forms.lines(words)))
        if output is not None:
            found = output.begin(content, overwrite=settings.overwrite)
            if found is not None:
                return replace(_found(found), readings=read_as[0], reading_lines=read_as[1])
        run = _Run(crew, settings, words, survey.num_wanted, tell)
        by_image = settings.by_image
        cutter = Cutter(job.limits, reading, forms.rules, settings.split, reader, by_image=by_image)
        run.build(cutter.cut(reading.records()), output)
        tell(Progress("finish", None))
        state = open_store(job.state)
        parts = {
            split: assemble(state, split, cutter.num_chunks[split], words, temp / f"lists{split}")
            for split in splits
        }
        result = _finish(settings, content, survey, parts, output)
        return replace(
            result,
            first_rejects=run.first_rejects(),
            readings=read_as[0],
            reading_lines=read_as[1],
        )


def _finish(
    settings: BuildSettings,
    content: dict[str, Any],
    survey: Survey,
    parts: dict[str, Assembled],
    output: Output | None,
) -> BuildResult:
    """Writes lists and manifests, the manifests last, unless too much was left out."""
    num_samples = sum(part.totals["num_samples"] for part in parts.values())
    rejects = _summed(part.rejects.counts for part in parts.values())
    num_allowed = settings.max_reject_share * survey.num_wanted
    if num_samples == 0 or sum(rejects.values()) > num_allowed:
        if output is not None:
            _save_lists(settings.out, parts, is_failed=True)
            output.abandon()
        raise _left_out(settings, survey, num_samples, rejects, parts)
    manifests = {}
    if output is not None:
        output.check()
        _save_lists(settings.out, parts)
        for split, part in parts.items():
            manifests[split] = part.manifest({**content, "split_name": split})
        output.commit(manifests, {split: part.tags for split, part in parts.items()})
    return BuildResult(
        num_records=survey.num_wanted,
        num_samples=num_samples,
        rejects=rejects,
        warnings=_summed(part.warnings.counts for part in parts.values()),
        first_rejects=[],
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


def _open(flag: str, url: str) -> Store:
    try:
        return open_store(url)
    except ConfigError as error:
        raise ConfigError(flag, url, error.expected) from error


def _content(
    settings: BuildSettings, forms: DecidedForms, inputs: list[str], survey: Survey
) -> dict[str, Any]:
    """Everything that decides the content, without the machine's paths."""
    return {
        "schema_version": SCHEMA_VERSION,
        "inputs": survey.to_dicts(),
        "where": [list(pair) for pair in settings.where],
        "rules": [_rule(rule) for rule in forms.rules],
        "readings": forms.facts(inputs),
        "split": None if settings.split is None else dict(settings.split.shares),
        "pictures": asdict(settings.pictures),
        "shard_limits": asdict(settings.limits),
        "shuffle_seed": settings.shuffle_seed,
        **({"group_by": "image"} if settings.by_image else {}),
        "category_prompt": settings.category_prompt,
        "codecs": codec_versions(),
    }


def _rule(rule: Rules) -> dict[str, Any]:
    fields = asdict(rule)
    del fields["told"]  # how it was said decides nothing
    fields["warning"] = None if rule.warning is None else list(rule.warning)
    return fields


def _check(settings: BuildSettings) -> None:
    for name, value, example in (
        ("--samples-per-shard", settings.limits.max_samples, "1000"),
        ("--max-shard-bytes", settings.limits.max_bytes, "256MiB"),
        ("--workers", settings.num_workers, "4"),
    ):
        if value < 1:
            raise ConfigError(name, value, f"must be at least 1, for example {example}")
    if not 0 <= settings.max_reject_share <= 1:
        expected = "must be 0 to 1, for example 0.5"
        raise ConfigError("--max-reject-share", settings.max_reject_share, expected)
    if settings.accept_reading is not None and settings.accept_reading not in READING_NAMES:
        expected = f"must be one of {', '.join(READING_NAMES)}"
        raise ConfigError("--accept-reading", settings.accept_reading, expected)
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
