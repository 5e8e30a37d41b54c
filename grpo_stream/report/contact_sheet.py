"""Pictures side by side on one sheet; a sample as a cell of it, with a closer look and words."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from grpo_stream.boxes import Size
from grpo_stream.report.drawn_text import drawable, font, wrap
from grpo_stream.report.gallery import TALL_RATIO, GallerySample, marks_on, zooms_of
from grpo_stream.report.marked_image import COLOURS, draw_marks
from grpo_stream.report.page_style import INK, PALE, PAPER, RULE, STAGE

CELL = Size(440, 392)
"""Pixels of a cell."""

_WIDE_STAGE = (0, 0, 440, 258)
_TALL_STAGE = (0, 0, 196, 392)
_GAP = 10
_WIDE_ZOOM, _TALL_ZOOM = Size(182, 114), Size(224, 140)
_PROMPT_PIXELS, _SMALL_PIXELS = 17, 13


def contact_sheet(images: Sequence[Image.Image], columns: int, gap: int = 12) -> Image.Image:
    """``images`` on one white sheet, row by row, each in the middle of its cell.

    Args:
        images: At least one.
        columns: Cells in a row.
        gap: Pixels between cells and around them.

    Raises:
        ValueError: no images, or less than one column.
    """
    if not images or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns: both must be at least 1")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell = Size(max(i.width for i in images), max(i.height for i in images))
    size = (gap + columns * (cell.width + gap), gap + rows * (cell.height + gap))
    sheet = Image.new("RGB", size, "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        x = gap + column * (cell.width + gap) + (cell.width - image.width) // 2
        y = gap + row * (cell.height + gap) + (cell.height - image.height) // 2
        sheet.paste(image, (x, y))
    return sheet


def sheet_cell(sample: GallerySample) -> Image.Image:
    """One sample as a picture of :data:`CELL` pixels.

    Of several images the first is shown, with a word on how many there are, of none the prompt
    alone. What the font
    lacks is replaced, so a caption in any script can be drawn.
    """
    image = sample.images[0] if sample.images else None
    is_tall = image is not None and image.width < TALL_RATIO * image.height
    cell = Image.new("RGB", CELL, PAPER)
    draw = ImageDraw.Draw(cell)
    stage = _TALL_STAGE if is_tall else _WIDE_STAGE
    draw.rectangle((stage[0], stage[1], stage[2] - 1, stage[3] - 1), fill=STAGE)
    if image is not None:
        _paste_fitted(cell, image, sample, stage)
    zooms = [_framed(z) for _, z in zooms_of(sample, _TALL_ZOOM if is_tall else _WIDE_ZOOM)][:1]
    if is_tall:
        left, top = stage[2] + _GAP, _GAP
        if zooms:
            cell.paste(zooms[0], (left, top))
            top += zooms[0].height + _GAP
        max_lines = (CELL.height - top - 60) // 22
    else:
        left, top, max_lines = _GAP, stage[3] + _GAP, 3
        if zooms:
            cell.paste(zooms[0], (left, top))
            left += zooms[0].width + _GAP + 2
    _caption(draw, sample, (left, top), max_lines)
    draw.rectangle((0, 0, CELL.width - 1, CELL.height - 1), outline=RULE)
    return cell


def _framed(zoom: Image.Image) -> Image.Image:
    edge = (0, 0, zoom.width - 1, zoom.height - 1)
    ImageDraw.Draw(zoom).rectangle(edge, outline=COLOURS["zoom"], width=2)
    return zoom


def _paste_fitted(
    cell: Image.Image, image: Image.Image, sample: GallerySample, stage: tuple[int, int, int, int]
) -> None:
    width, height = stage[2] - stage[0], stage[3] - stage[1]
    scale = min(width / image.width, height / image.height)
    size = Size(max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    drawn = draw_marks(image, marks_on(sample, 0), size)
    at = (stage[0] + (width - size.width) // 2, stage[1] + (height - size.height) // 2)
    cell.paste(drawn, at)


def _caption(
    draw: ImageDraw.ImageDraw, sample: GallerySample, at: tuple[int, int], max_lines: int
) -> None:
    left, top = at
    width = CELL.width - left - _GAP
    for line in wrap(sample.prompt, _PROMPT_PIXELS, width, max_lines):
        draw.text((left, top), line, fill=INK, font=font(_PROMPT_PIXELS))
        top += 22
    size = "x".join(map(str, sample.images[0].size)) if sample.images else "no image"
    counts = [
        f"{count} {what}s"
        for what, count in (("image", len(sample.images)), ("place", len(sample.shapes)))
        if count > 1
    ]
    top += 4
    for text in (drawable(sample.title), " \N{MIDDLE DOT} ".join([size, *counts])):
        (line,) = wrap(text, _SMALL_PIXELS, width, 1)
        draw.text((left, top), line, fill=PALE, font=font(_SMALL_PIXELS))
        top += 18
