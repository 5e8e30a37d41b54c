"""COCO's instances: one document of images, annotations and categories."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.forms import Form, Formed
from grpo_stream.records.formats.json_stream import JsonText

DEFAULT_CATEGORY_PROMPT = "Locate the {category}."
"""What is asked for a category where the user gives no words of their own."""

_IMAGE_FIELDS = (
    "id", "file_name", "width", "height", "caption", "expressions", "dataset_name", "original_id",
)  # fmt: skip


class Annotation(NamedTuple):
    """What is kept of an annotation; values are as they stand, or None."""

    position: int
    """In the document's list, from 0."""
    id: Any
    image_id: Any
    category_id: Any
    bbox: Any
    is_crowd: bool


@dataclass
class Document:
    """What is kept of a document: about 500 bytes for each annotation and image, no outlines."""

    name: str
    images: list[dict[str, Any] | RecordError] = field(default_factory=list)
    annotations: list[Annotation | RecordError] = field(default_factory=list)
    categories: dict[Any, str] = field(default_factory=dict)

    def by_image(self) -> dict[Any, list[Annotation]]:
        """The annotations of each image id, in order."""
        grouped: dict[Any, list[Annotation]] = {}
        for annotation in self.annotations:
            if isinstance(annotation, Annotation):
                grouped.setdefault(annotation.image_id, []).append(annotation)
        return grouped

    def lost(self) -> Iterator[RecordError]:
        """Why annotations belong to no image, for those that do."""
        known = {image["id"] for image in self.images if isinstance(image, dict)}
        for annotation in self.annotations:
            if isinstance(annotation, RecordError):
                yield annotation
            elif annotation.image_id not in known:
                detail = f"annotations[{annotation.position}]: no image {annotation.image_id!r}"
                yield RecordError("annotation_without_image", detail)


def load_document(text: JsonText, name: str) -> Document:
    """Reads a whole document, element by element, so that the outlines are never in memory.

    Raises:
        RecordError: causes ``input_not_json``, ``input_not_utf8``, ``input_unreadable``, and
            ``input_not_coco`` without ``images``.
    """
    document = Document(name)
    seen = set()
    for member, position, value in text.members():
        seen.add(member)
        if position is None:
            continue
        if member == "images":
            document.images.append(_image(value, position))
        elif member == "annotations":
            document.annotations.append(_annotation(value, position))
        elif member == "categories" and isinstance(value, dict):
            category = _id(value.get("id"))
            if category is not None and isinstance(value.get("name"), str):
                document.categories[category] = value["name"]
    text.end()
    if not document.images:
        detail = f"{name} lists no images; its members with content are {sorted(seen)[:9]}"
        raise RecordError("input_not_coco", detail)
    return document


def coco_records(document: Document, category_prompt: str) -> Iterator[tuple[int, Formed]]:
    """One record for each category in each image; its boxes are ``x, y, width, height``.

    Several instances give a list of boxes. Crowd regions (``iscrowd``) are left out.

    Args:
        document: The whole input.
        category_prompt: The prompt, with ``{category}`` in it.

    Yields:
        The image's position in ``images`` and a record, or what is wrong with the image or with
        one of its annotations; last, with the number of images, annotations of no image.
    """
    form = Form("coco", "annotations.bbox", "xywh", "pixels")
    grouped = document.by_image()
    for index, image in enumerate(document.images):
        if isinstance(image, RecordError):
            yield index, image
            continue
        found: dict[Any, list[Annotation]] = {}
        for annotation in grouped.get(image["id"], ()):
            if not annotation.is_crowd:
                found.setdefault(annotation.category_id, []).append(annotation)
        for category_id, annotations in found.items():
            category = document.categories.get(category_id)
            if category is None:
                where = f"annotations[{annotations[0].position}]"
                detail = f"{where}: no category {category_id!r}"
                yield index, RecordError("category_unknown", detail)
                continue
            prompt = category_prompt.replace("{category}", category)
            named = {"prompt": prompt, "category": category}
            yield index, (form, image_fields(image) | named | box_fields(annotations))
    for error in document.lost():
        yield len(document.images), error


def image_fields(image: Mapping[str, Any]) -> dict[str, Any]:
    """A record's fields of its image."""
    kept = ("width", "height", "dataset_name", "original_id")
    fields = {name: image[name] for name in kept if name in image}
    if "file_name" in image:
        fields["image"] = image["file_name"]
    return fields | {"image_id": image["id"]}


def box_fields(annotations: list[Annotation]) -> dict[str, Any]:
    """A record's fields of its boxes; a box that is missing is left to the judge."""
    fields: dict[str, Any] = {"annotation_ids": [annotation.id for annotation in annotations]}
    boxes = [annotation.bbox for annotation in annotations]
    if boxes not in ([], [None]):
        fields["solution"] = boxes[0] if len(boxes) == 1 else boxes
    return fields


def _image(value: object, position: int) -> dict[str, Any] | RecordError:
    if not isinstance(value, dict) or _id(value.get("id")) is None:
        return RecordError("image_entry", f"images[{position}] is no object with an id")
    return {name: value[name] for name in _IMAGE_FIELDS if name in value}


def _annotation(value: object, position: int) -> Annotation | RecordError:
    if not isinstance(value, dict) or _id(value.get("image_id")) is None:
        detail = f"annotations[{position}] is no object with an image_id"
        return RecordError("annotation_entry", detail)
    return Annotation(
        position,
        _id(value.get("id")),
        _id(value["image_id"]),
        _id(value.get("category_id")),
        value.get("bbox"),
        bool(value.get("iscrowd")),
    )


def _id(value: object) -> Any:
    return value if isinstance(value, (int, str)) else None
