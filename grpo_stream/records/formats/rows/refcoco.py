"""RefCOCO, RefCOCO+ and RefCOCOg in the forms that people have as JSON or tables.

* MDETR's ``finetune_refcoco_train.json``: a COCO document whose images have a ``caption`` (or
  ``expressions``).
* The list of references, ``{"ref_id", "ann_id", "image_id", "sentences": [{"sent"}], ...}``, with
  ``bbox`` in it or with COCO's ``instances.json`` beside it.
* Tables: one row a reference with ``bbox`` and its sentences in ``answer`` or ``sentences``.
* One row a sentence: ``{"img_path", "expression", "bbox"}`` or ``{"image", "sent", "bbox"}``.

The first two and tables with ``answer`` write boxes as ``x, y, width, height``; rows with one
sentence, and those with ``raw_anns``, mostly as ``x1, y1, x2, y2``. All are pixels. That holds
where the user says ``--format refcoco``; else only COCO's own boxes are taken as defined, and of
others all rows decide.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.coco import Document, box_fields, image_fields
from grpo_stream.records.formats.forms import Context, Form, Formed
from grpo_stream.records.formats.image_values import unwrapped_image
from grpo_stream.records.formats.rows.box_fields import with_numbers
from grpo_stream.records.formats.rules import BoxFormat, Coords

_LIST_KEYS = ("sentences", "answer", "captions")
_SENTENCE_KEYS = ("expression", "sent", "sentence", "caption", "phrase")
_IMAGE_KEYS = ("image_path", "img_path", "image", "file_name")
_BULKY = ("segmentation", "raw_anns", "raw_image_info", "raw_sentences", "question")
_TAKEN = {*_LIST_KEYS, *_SENTENCE_KEYS, *_IMAGE_KEYS, *_BULKY, "bbox"}
_WITH_ANNOTATION = re.compile(r"(COCO_\w+?_\d{12})_\d+(\.jpg)")


class Instances:
    """COCO's ``instances.json`` of a list of references, read when it is first asked.

    Args:
        load: Reads the document; raises RecordError.
    """

    def __init__(self, load: Callable[[], Document]) -> None:
        self._load = load

    def fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What the document says of a reference's image and box; may be nothing.

        Raises:
            RecordError: as :func:`~grpo_stream.records.formats.coco.load_document`.
        """
        annotation, images = self._annotations.get(_key(row.get("ann_id"))), self._images
        if annotation is None:
            return {}
        image = images.get(annotation.image_id)
        return box_fields([annotation]) | (image_fields(image) if image else {})

    @cached_property
    def _document(self) -> Document:
        return self._load()

    @cached_property
    def _annotations(self) -> dict[Any, Any]:
        annotations = self._document.annotations
        return {a.id: a for a in annotations if not isinstance(a, RecordError)}

    @cached_property
    def _images(self) -> dict[Any, dict[str, Any]]:
        return {image["id"]: image for image in self._document.images if isinstance(image, dict)}


def refcoco_records(row: Mapping[str, Any], context: Context) -> Iterator[Formed]:
    """One record for each sentence of a row; outlines and raw copies are not kept.

    Yields:
        Records with ``image``, ``prompt`` and ``solution``, or one RecordError, cause
        ``prompt_missing``.

    Raises:
        RecordError: ``instances.json`` beside the file cannot be read.
    """
    fields = {name: value for name, value in row.items() if name not in _TAKEN}
    box_format, coords = refcoco_layout(row) if context.is_told else (None, None)
    form = Form(context.name, "bbox", box_format, coords, ("xywh", "xyxy"))
    if row.get("bbox") is not None:
        fields["solution"] = row["bbox"]
    elif "ann_id" in row and context.annotated is not None:
        fields |= context.annotated(row)
        form = Form(context.name, "bbox of instances.json", "xywh", "pixels")
    if "image" not in fields and (image := _image(row)) is not None:
        fields["image"] = unwrapped_image(image)
    prompts = list(_prompts(row))
    if not prompts:
        names = ", ".join((*_LIST_KEYS[:2], *_SENTENCE_KEYS))
        yield RecordError("prompt_missing", f"no sentence in any of {names}, but {list(row)}"[:300])
    for prompt in prompts:
        yield with_numbers(form, fields | prompt)


def refcoco_document_records(document: Document) -> Iterator[tuple[int, Formed]]:
    """One record for each sentence of each image of a COCO document.

    Yields:
        The image's position in ``images`` and a record, or what is wrong with the image; last,
        with the number of images, annotations of no image.
    """
    form = Form("refcoco", "annotations.bbox", "xywh", "pixels")
    grouped = document.by_image()
    for index, image in enumerate(document.images):
        if isinstance(image, RecordError):
            yield index, image
            continue
        fields = image_fields(image) | box_fields(grouped.get(image["id"], []))
        expressions = image.get("expressions", [image.get("caption")])
        for sentence in expressions if isinstance(expressions, list) else [expressions]:
            yield index, (form, fields | ({} if sentence is None else {"prompt": sentence}))
    for error in document.lost():
        yield len(document.images), error


def is_reference(row: Mapping[str, Any]) -> bool:
    """Whether a row has a box (or the number of one) and sentences."""
    is_located = "bbox" in row or "ann_id" in row
    return is_located and bool({"sentences", "expression", "sent"} & row.keys())


def refcoco_layout(row: Mapping[str, Any]) -> tuple[BoxFormat, Coords]:
    """How the boxes of an input are written that begins with this row."""
    is_list = any(isinstance(row.get(name), list) for name in _LIST_KEYS)
    return "xywh" if is_list and "raw_anns" not in row else "xyxy", "pixels"


def _prompts(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name in _LIST_KEYS:
        if isinstance(row.get(name), list) and row[name]:
            for sentence in row[name]:
                if not isinstance(sentence, dict):
                    yield {"prompt": sentence}
                    continue
                prompt = {"prompt": sentence.get("sent", sentence.get("raw"))}
                yield prompt | {"sent_id": sentence["sent_id"]} if "sent_id" in sentence else prompt
            return
    for name in _SENTENCE_KEYS:
        if row.get(name) is not None:
            yield {"prompt": row[name]}
            return


def _image(row: Mapping[str, Any]) -> Any:
    if not isinstance(row.get("image"), (str, type(None))):
        return row["image"]  # the image itself
    name = next((row[key] for key in _IMAGE_KEYS if row.get(key) is not None), None)
    if isinstance(name, str) and (found := _WITH_ANNOTATION.fullmatch(name)):
        return found.group(1) + found.group(2)  # refs name COCO's file and the annotation in it
    return name


def _key(value: object) -> Any:
    return value if isinstance(value, (int, str)) else None
