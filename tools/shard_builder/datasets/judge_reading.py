"""Whether the numbers of tars that others made are pixels, as every reader takes them."""

from collections.abc import Iterator

from grpo_stream.errors import ConfigError
from grpo_stream.records.evidence import Looked, Sampled
from grpo_stream.records.formats.open_inputs import RuleFlags
from grpo_stream.records.formats.rows.plain_records import DOCUMENTED
from grpo_stream.records.readings import Decision, decide, in_words
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import Sample

ACCEPTED = "xyxy-pixels"
"""What ``--accept-reading`` may say of tars: nothing else is read from them."""

_FORM = DOCUMENTED._replace(reader="shards")


def places_of(sample: Sample, number: int) -> Iterator[Looked]:
    """The boxes and points of a sample, to be held against its images.

    Args:
        sample: As it is stored.
        number: Its position in its shard.
    """
    for solution, image in zip(sample.solutions, sample.solution_images, strict=True):
        if len(solution) > 4:  # polygons are written here alone, in pixels
            continue
        name = f"{sample.key}.{sample.images[image][0]}"
        yield Looked(number, sample.prompt, name, sample.sizes[image], solution)


def judge_reading(sampled: Sampled, accepted: str | None) -> tuple[Decision, str | None]:
    """What the numbers look like, and what is wrong where these are no pixels.

    Raises:
        ConfigError: an unknown reading is to be accepted.
    """
    if accepted not in (None, ACCEPTED):
        expected = f"must be {ACCEPTED}, as stored boxes are read as pixels in any case"
        raise ConfigError("--accept-reading", accepted, expected)
    told = None if accepted is None else RuleFlags(box_format="xyxy", coords="pixels")
    decision = decide(_FORM, sampled.items(), sampled.num_seen, told)
    if decision.reading.name == ACCEPTED and decision.is_decided:
        return decision, None
    other = next(one for one in decision.fits if one.reading.name != ACCEPTED)
    num = len(decision.looked)
    fault = (
        f"its boxes look like {in_words(other.reading)}: {other.num_fitting} of {num} fit, and "
        "stored boxes are read as pixels. Make shards of pixels with shard-builder build TAR... "
        f"--coords {other.reading.coords}; if they are pixels, shard-builder index with "
        f"--accept-reading {ACCEPTED}"
    )
    return decision, fault


def is_judged(manifest: Manifest) -> bool:
    """Whether a set says how its numbers were read, or was not made of others' tars."""
    return "readings" in manifest.settings or manifest.settings.get("made_by") != "index"


def reading_lines(manifest: Manifest) -> list[str]:
    """How the numbers of a set's records were read, a line for each form of each input."""
    readings = manifest.settings.get("readings")
    lines = []
    for one in readings if isinstance(readings, list) else ():
        if isinstance(one, dict) and one.get("box_format") is None:
            words = f"{one.get('num_records')} records of what is not there"
            lines.append(f"{one.get('input', 'tars')}, {one.get('format')}: {words}")
        elif isinstance(one, dict):
            counts = f"{one.get('num_fitting')} of {one.get('num_looked_at')} fit"
            lines.append(
                f"{one.get('input', 'tars')}, {one.get('format')}, {one.get('fields')}: "
                f"{one.get('box_format')} in {one.get('coords')} "
                f"({one.get('decided_by')}; {counts}, {one.get('num_records')} records)"
            )
    return lines
