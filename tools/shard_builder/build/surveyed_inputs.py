"""The inputs of a build after their first reading: counted, sound, and how they are to be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_stream.records.form_book import DecidedForms
from grpo_stream.records.formats.open_inputs import InputSource
from grpo_stream.records.formats.rules import Rules
from grpo_stream.records.stored_image import ImageReader
from shard_builder.build.build_settings import BuildSettings, content_of
from shard_builder.build.chunk_plan import Reading, Survey
from shard_builder.build.progress import Progress, Tell
from shard_builder.build.workers.cut_chunks import Cutter


@dataclass(frozen=True)
class BuildPlan:
    """What is known of a build once its records are cut: all but what will become of them."""

    names: tuple[str, ...]
    """The inputs, as people and lists name them."""
    survey: Survey
    rules: tuple[Rules, ...]
    """How the records of each form are written."""
    content: dict[str, Any]
    """Everything that decides the data set."""
    num_chunks: Mapping[str, int]
    """By split."""
    facts: tuple[dict[str, object], ...]
    """How the records of each input are read, and why."""
    lines: tuple[str, ...]
    """The same, for people."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; one empty name where the set is not split."""
        return tuple(self.num_chunks)


@dataclass(frozen=True)
class SurveyedInputs:
    """What the first reading found, ready for the second."""

    reading: Reading
    survey: Survey
    forms: DecidedForms
    names: tuple[str, ...]
    """The inputs, as people and lists name them."""
    content: dict[str, Any]
    """Everything that decides the data set."""
    facts: tuple[dict[str, object], ...]
    """How the records of each input are read, and why."""
    lines: tuple[str, ...]
    """The same, for people."""

    def cutter(self, settings: BuildSettings, reader: ImageReader) -> Cutter:
        """What cuts the records into chunks."""
        return Cutter(
            settings.limits,
            self.reading,
            self.forms.rules,
            settings.split,
            reader,
            by_image=settings.by_image,
        )

    def plan(self, num_chunks: Mapping[str, int]) -> BuildPlan:
        """The plan of the whole build.

        Args:
            num_chunks: Of every split.
        """
        return BuildPlan(
            self.names,
            self.survey,
            self.forms.rules,
            self.content,
            num_chunks,
            self.facts,
            self.lines,
        )


def survey_inputs(
    settings: BuildSettings,
    sources: Sequence[InputSource],
    rules: Sequence[Rules],
    reader: ImageReader,
    temp: Path,
    tell: Tell,
) -> SurveyedInputs:
    """Reads all inputs once.

    Args:
        settings: Of the build.
        sources: The inputs.
        rules: What the user calls the fields of each, and says of its numbers.
        reader: Gives the sizes of images, which are evidence of how boxes are to be read.
        temp: A folder for the records of a shuffle.
        tell: Gets the progress.

    Raises:
        RecordError: an input is damaged as a whole.
        ConfigError: the records do not decide how their numbers are to be read.
    """
    reading = Reading(
        sources, rules, settings.where, settings.shuffle_seed, temp, by_image=settings.by_image
    )
    survey = reading.survey(lambda num_records: tell(Progress("read", None, num_records)))
    forms = reading.forms.decide(reader.size_of, settings.flags, settings.accept_reading)
    names = tuple(source.name for source in sources)
    forms.check(names, can_accept=True)
    base_names = [summary.name for summary in survey.inputs]
    return SurveyedInputs(
        reading,
        survey,
        forms,
        names,
        content_of(settings, forms, base_names, survey),
        tuple(forms.facts(names)),
        tuple(forms.lines(names)),
    )
