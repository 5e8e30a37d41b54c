"""The form of a record: where its numbers come from, and what its format says of them.

Every reader gives its records with their form. Records of one form in one input are read alike:
what the format leaves open is decided over all of them (``grpo_stream.records.readings``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.rules import BoxFormat, Coords, Rules
from grpo_stream.targets import WANTED_FIELD

NAMES_OF_IMAGES = (
    "image", "images", "image_path", "img_path", "img_filename", "img_url", "file_name",
    "screenshot", "image_file", "image_url",
)  # fmt: skip
"""Fields in which people name an image."""


class Form(NamedTuple):
    """How some records write their numbers, as far as their format says it."""

    reader: str
    """Its row of the table of readers."""
    fields: str
    """Where the numbers come from, for people."""
    box_format: BoxFormat | None = None
    """What the format defines; None where it does not."""
    coords: Coords | None = None
    box_formats: tuple[BoxFormat, ...] = ("xyxy",)
    """Where it defines none: what is usual for it."""
    warning: tuple[str, str] | None = None
    """Cause and detail of what every such record is warned of."""
    is_refusal: bool = False
    """What such records ask for is not there: they have no numbers."""


Formed = tuple[Form, dict[str, Any]] | RecordError
"""A record with its form, or why a row gives none."""


@dataclass(frozen=True)
class Context:
    """What a reader knows beside the row."""

    name: str = "json"
    """What the user calls the format, or the row of the table that recognised the record."""
    is_told: bool = False
    """The user named the format: what it defines holds."""
    rules: Rules = field(default_factory=Rules)
    """The names of a plain record's fields."""
    annotated: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    """What COCO's ``instances.json`` beside the file says of a reference."""
    category_prompt: str = ""


def says_nothing_is_there(row: Mapping[str, Any]) -> bool:
    """Whether a row of a benchmark asks for what is not there.

    OSWorld-G's ``box_type`` is ``refusal`` then, ScreenSpot-Pro's evaluator calls it a ``gt_type``
    of ``negative``, in upper case or lower; the numbers beside it, if any, mean nothing.
    """
    said = (("box_type", "refusal"), ("gt_type", "negative"))
    return any(str(row.get(name, "")).strip().lower() == word for name, word in said)


def refusal(record: dict[str, Any], reader: str) -> Formed:
    """A record without its place, that is answered rightly by saying that nothing is there."""
    form = Form(reader, "refusals", "xyxy", "pixels", is_refusal=True)
    return form, record | {"solution": [], WANTED_FIELD: "none"}


def missing(what: str, names: tuple[str, ...], row: Mapping[str, Any]) -> RecordError:
    """The error of a row that lacks a field, in the row's own words.

    Args:
        what: ``image``, ``prompt`` or ``solution``.
        names: What the field may be called.
        row: As the input has it.
    """
    listed = repr(list(row))
    listed = listed if len(listed) <= 120 else f"{listed[:117]}..."
    detail = f"no field {' or '.join(map(repr, names))} in {listed}"
    return RecordError(f"{what}_missing", detail)


def prompt_of(names: tuple[str, ...], row: Mapping[str, Any], context: Context) -> str | None:
    """The field that asks: the one that the user named, where the row has it, else of ``names``.

    So the same rows are asked in another language, as ``instruction_cn`` of ScreenSpot-Pro.
    """
    told = context.rules.prompt_key
    is_told = told != Rules.prompt_key and row.get(told) is not None
    return told if is_told else first_of(names, row)


def first_of(names: tuple[str, ...], row: Mapping[str, Any]) -> str | None:
    """The first of ``names`` that a row has a value for."""
    return next((name for name in names if row.get(name) is not None), None)
