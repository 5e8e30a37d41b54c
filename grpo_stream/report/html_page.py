"""One self-contained page: styles and pictures inside, nothing fetched, everything escaped."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import median

from PIL import Image

from grpo_stream.report.charts import Svg
from grpo_stream.report.page_style import STYLE
from grpo_stream.storage.atomic_files import write_atomic

PAGE_NAME = "index.html"
_MARK = "<meta name='generator' content='grpo_stream'>"
_HEAD_BYTES = 1000


@dataclass(frozen=True)
class PictureCard:
    """A picture with words: encoded image (PNG, JPEG or WebP), caption, whether it was a hit."""

    image_bytes: bytes
    caption: str
    is_correct: bool


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its heading, ``header`` is the row above all."""

    title: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """All that a page says, in the order of the page. Texts are plain text, not HTML."""

    title: str
    lead: str
    """What was done and what came of it, in a sentence or two."""
    facts: Sequence[tuple[str, str]] = ()
    """Label and value of the numbers that are to be seen at a glance."""
    charts: Sequence[Svg] = ()
    pictures: Sequence[PictureCard] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    picture_title: str = field(default="What the policy answers")


def write_report(report: Report, folder: str | Path) -> Path:
    """Writes ``index.html`` into ``folder`` (made if missing) and returns its path."""
    return write_page(render(report), folder)


def is_foreign_page(folder: Path) -> bool:
    """Whether ``folder`` has an ``index.html`` that none of our commands has written."""
    try:
        with (folder / PAGE_NAME).open("rb") as file:
            return _MARK.encode() not in file.read(_HEAD_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return False


def write_page(page: str, folder: str | Path) -> Path:
    """Writes ``page`` as ``index.html`` into ``folder`` (made if missing) and returns its path.

    The page appears whole or not at all.
    """
    path = Path(folder) / PAGE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page_bytes(page))
    return path


def page_bytes(page: str) -> bytes:
    """The file's content: half surrogate pairs, which UTF-8 has not, are question marks."""
    return page.encode(errors="replace")


def render(report: Report) -> str:
    """The page's HTML."""
    parts = [
        header_html(report.title, report.lead, report.facts),
        charts_html(report.charts),
        _pictures(report.pictures, report.picture_title),
        tables_html(report.tables),
        notes_html("Notes", report.notes),
    ]
    return page_html(report.title, "".join(parts))


def page_html(title: str, body: str, style: str = "") -> str:
    """A whole page.

    Args:
        title: Plain text.
        body: HTML, its texts escaped.
        style: Rules behind those of every page.
    """
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>{_MARK}"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        # An empty icon keeps the browser from asking a server for one.
        "<link rel='icon' href='data:,'>"
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def header_html(title: str, lead: str, facts: Sequence[tuple[str, str]]) -> str:
    """Heading, what it is about, and the numbers to be seen at a glance; all plain text."""
    return (
        f"<header><h1>{escape(title)}</h1>"
        f"<p class='lead'>{escape(lead)}</p></header>\n{_facts(facts)}"
    )


def data_uri(image_bytes: bytes) -> str:
    """An encoded image as an address that holds it."""
    data = base64.b64encode(image_bytes).decode("ascii")
    return f"data:{_mime(image_bytes)};base64,{data}"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    if not facts:
        return ""
    tiles = (
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>\n" for label, value in facts
    )
    return f"<dl class='facts'>{''.join(tiles)}</dl>\n"


def charts_html(charts: Sequence[Svg]) -> str:
    """Charts side by side where there is room."""
    if not charts:
        return ""
    figures = (f"<figure>{chart}</figure>\n" for chart in charts)
    return f"<section class='charts'>{''.join(figures)}</section>\n"


def _pictures(cards: Sequence[PictureCard], title: str) -> str:
    if not cards:
        return ""
    ratio = median(_aspect_ratio(card.image_bytes) for card in cards)
    ratio = min(max(ratio, 0.75), 1.78)  # frames of one shape make a calm grid
    least_width = 320 if ratio > 1.2 else 230  # screenshots hold small things
    shown = "".join(map(_picture, cards))
    return (
        f"<section><h2>{escape(title)}</h2><p class='legend'>"
        "<span class='truth'>true place</span><span class='right'>predicted, a hit</span>"
        "<span class='wrong'>predicted, a miss</span></p>"
        f"<div class='pictures' style='--ratio:{ratio:.3f};--least:{least_width}px'>"
        f"{shown}</div></section>\n"
    )


def _picture(card: PictureCard) -> str:
    caption = escape(card.caption)
    word = "hit" if card.is_correct else "miss"
    return (
        f"<figure class='{word}'><img src='{data_uri(card.image_bytes)}' "
        f"alt='{caption}'><figcaption><b>{word}</b> {caption}</figcaption></figure>\n"
    )


def tables_html(tables: Sequence[Table]) -> str:
    """Tables side by side where there is room."""
    if not tables:
        return ""
    return f"<section class='tables'>{''.join(map(_table, tables))}</section>\n"


def _table(table: Table) -> str:
    header = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in table.header)
    head = f"<thead><tr>{header}</tr></thead>" if header else ""
    rows = []
    for first, *others in table.rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        rows.append(f"<tr><th scope='row'>{escape(first)}</th>{cells}</tr>")
    return (
        f"<div><h2>{escape(table.title)}</h2><div class='scroll'><table>{head}"
        f"<tbody>{''.join(rows)}</tbody></table></div></div>\n"
    )


def notes_html(title: str, notes: Sequence[str]) -> str:
    """Plain text as a list under a heading."""
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<section class='notes'><h2>{escape(title)}</h2><ul>{items}</ul></section>\n"


def _aspect_ratio(image_bytes: bytes) -> float:
    with Image.open(io.BytesIO(image_bytes)) as image:
        return float(image.width / image.height)


def _mime(image_bytes: bytes) -> str:
    with Image.open(io.BytesIO(image_bytes)) as image:
        return str(image.get_format_mimetype())
