"""The build: every record judged, samples packed, rejects and warnings listed, manifest last."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Protocol

from grpo_stream.records.formats.open_inputs import expand_inputs, rules_of
from grpo_stream.records.stored_image import ImageReader
from grpo_stream.storage.store import open_store
from shard_builder.build.build_result import (
    BuildResult,
    TooManyRejectsError,
    finish_build,
    result_found,
)
from shard_builder.build.build_settings import BuildSettings, check_settings
from shard_builder.build.chunk_plan import Chunk, LaterChunk
from shard_builder.build.chunk_result import NUM_FIRST_REJECTS, ChunkResult, News, Reject
from shard_builder.build.output.output_folder import Output
from shard_builder.build.output.temp_folder import temp_folder
from shard_builder.build.progress import Progress, Tell, tell_nobody
from shard_builder.build.surveyed_inputs import survey_inputs
from shard_builder.build.workers.executors import crew_of
from shard_builder.build.workers.worker import rare_collections
from shard_builder.build.workers.worker_pool import Crew, run_chunks

__all__ = ["BuildResult", "BuildSettings", "ChunkRun", "TooManyRejectsError", "build"]


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
    check_settings(settings)
    sources = expand_inputs(settings.inputs, settings.input_format, settings.category_prompt)
    rules = [rules_of(source, settings.rules, settings.flags) for source in sources]
    with ExitStack() as stack:
        output = None
        if not settings.dry_run:  # before the inputs are read, which may take long
            output = Output(settings.out, settings.split_names, settings.images_root)
            stack.callback(output.close)
        temp = stack.enter_context(temp_folder())
        stack.enter_context(rare_collections())
        state = settings.out if output is not None else str(temp / "state")
        job = settings.job(state, temp / "spool")
        # Before the inputs are read: workers start meanwhile.
        crew = crew_of(settings, job)
        stack.callback(crew.stop)
        reader = ImageReader(job.images_root, job.pictures)
        stack.callback(reader.close)
        inputs = survey_inputs(settings, sources, rules, reader, temp, tell)
        if output is not None:
            found = output.begin(inputs.content, overwrite=settings.overwrite)
            if found is not None:
                return result_found(found, inputs.facts, inputs.lines)
        run = ChunkRun(crew, settings, inputs.names, inputs.survey.num_wanted, tell)
        cutter = inputs.cutter(settings, reader)
        run.build(cutter.cut(inputs.reading.records()), output)
        plan = inputs.plan({split: cutter.num_chunks[split] for split in settings.split_names})
        result = finish_build(settings, plan, open_store(state), temp, output, tell)
        if output is not None and settings.executor == "ray":
            output.remove_unfinished()  # of nodes that were lost, whose chunks others have built
        return replace(result, first_rejects=run.first_rejects())


class DoneBefore(Protocol):
    """Where results of earlier runs are kept."""

    def result_of(self, split: str, number: int) -> ChunkResult | None:
        """What was made of a chunk, if all of that is still there."""

    def check(self, *, asks_store: bool = True) -> None:
        """Raises StoreError (cause ``taken_over``) where the place is another build's now."""


class ChunkRun:
    """The middle of a build: chunks that are not done yet are built, rejects are counted.

    Args:
        crew: Builds them.
        settings: Of the build.
        names: Of the inputs.
        num_total: Records to come, for the progress; None where that is not known.
        tell: Gets the progress.
    """

    def __init__(
        self,
        crew: Crew,
        settings: BuildSettings,
        names: Sequence[str],
        num_total: int | None,
        tell: Tell,
    ) -> None:
        self._crew = crew
        self._settings = settings
        self._names = names
        self.progress = Progress("build", num_total)
        self._tell = tell
        self._first: list[Reject] = []

    def build(self, chunks: Iterable[Chunk | LaterChunk], done: DoneBefore | None) -> None:
        """Builds what ``done`` has not.

        Args:
            chunks: All of them, or what reads them when they are needed.
            done: None in a dry run.

        Raises:
            TooManyRejectsError: more records were rejected than may be.
        """
        missing = self._missing(chunks, done)
        self._tell(self.progress)
        for _ in run_chunks(missing, self._crew, self._hear):
            if done is not None:
                done.check(asks_store=False)

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

    def _missing(
        self, chunks: Iterable[Chunk | LaterChunk], done: DoneBefore | None
    ) -> Iterator[Chunk]:
        for chunk in chunks:
            result = None if done is None else done.result_of(chunk.split, chunk.number)
            if result is not None:
                self._hear(result.news())
            else:
                yield chunk if isinstance(chunk, Chunk) else chunk.read()

    def _hear(self, news: News) -> None:
        now = self.progress
        self.progress = replace(
            now,
            num_records=now.num_records + news.num_records,
            num_rejects=now.num_rejects + news.num_rejects,
            num_image_bytes=now.num_image_bytes + news.num_image_bytes,
        )
        self._first = sorted([*self._first, *news.first_rejects])[:NUM_FIRST_REJECTS]
        self._tell(self.progress)
        limit = self._settings.max_rejects
        if limit is not None and self.progress.num_rejects > limit:
            detail = f"{self.progress.num_rejects} rejects, at most {limit} are allowed"
            raise TooManyRejectsError("too_many_rejects", f"{detail}{self.hint()}")
