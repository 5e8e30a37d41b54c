"""A page of samples: each with its pictures, a closer look at small boxes, and all its words."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from PIL import Image

from grpo_stream.boxes import Size
from grpo_stream.polygons import Shape
from grpo_stream.report.html_page import data_uri, header_html, page_html
from grpo_stream.report.marked_image import Mark, draw_marks, draw_zoom, picture_size, zoom_region

MAX_SIDE = 1200
"""Longest side in pixels of a picture in the page; larger images are made smaller."""
MAX_ZOOMS = 4
"""Closer looks per sample; a sample may have hundreds of boxes."""
TALL_RATIO = 0.9
"""Width / height below which a picture is beside its words, not above them."""
_ZOOM = Size(416, 260)


@dataclass(frozen=True)
class GallerySample:
    """A sample to show."""

    title: str
    """Names it: the key."""
    prompt: str
    images: Sequence[Image.Image]
    """At least one, RGB."""
    shapes: Sequence[tuple[int, Shape]]
    """True places and the image each is in, counted from 0; pixels of that image. None where
    nothing is there."""
    facts: Sequence[tuple[str, str]] = ()
    """Label and value, plain text."""
    warnings: Sequence[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields, JSON values, folded away."""
    answers: Sequence[Mark] = ()
    """What a policy answered in the first image, in its pixels."""
    verdict: tuple[str, str] | None = None
    """Of the answer: its class (``right`` or ``wrong``) and the words."""


def gallery_page(
    title: str, lead: str, facts: Sequence[tuple[str, str]], cards: Sequence[str]
) -> str:
    """The page's HTML.

    Args:
        title: Plain text, as are ``lead`` and ``facts`` (label and value).
        lead: What is shown, in a sentence or two.
        facts: Numbers to be seen at a glance.
        cards: From :func:`card_html`, in the order of the page.
    """
    legend = (
        "<p class='legend'><span class='truth'>true place</span>"
        "<span class='zoom'>shown larger beside it</span>"
        "<span class='hand'>click a picture to enlarge it</span></p>"
    )
    body = f"<section>{legend}<div class='cards'>{''.join(cards)}</div></section>"
    return page_html(title, header_html(title, lead, facts) + body, CARD_STYLE)


def card_html(sample: GallerySample) -> str:
    """One sample as HTML; its pictures are made here, so that the images need not be kept."""
    shape = "wide"
    if sample.images and sample.images[0].width < TALL_RATIO * sample.images[0].height:
        shape = "tall"
    if len(sample.images) > 1 or len(sample.shapes) > 1:
        shape = "many"
    pictures = "".join(_picture(sample, number) for number in range(len(sample.images)))
    facts = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>"
        for label, value in sample.facts
    )
    notes = "".join(f"<p class='hint'>{escape(warning)}</p>" for warning in sample.warnings)
    extra = ""
    if sample.extra:
        text = json.dumps(sample.extra, ensure_ascii=False, indent=1)
        extra = f"<details><summary>further fields</summary><pre>{escape(text)}</pre></details>"
    # A ticked box makes the picture fill the window: no script is needed.
    box = "<input type='checkbox' aria-label='enlarge'>"
    stage = f"<label class='stage'>{box}{pictures}</label>" if pictures else ""
    return (
        f"<article class='card {shape}'>{stage}"
        f"<div class='zooms'>{_zooms(sample)}</div>"
        f"<div class='words'>{_verdict(sample)}"
        f"<p class='prompt' dir='auto'>{escape(sample.prompt)}</p>{notes}"
        f"<p class='key'>{escape(sample.title)}</p><dl>{facts}</dl>{extra}</div></article>\n"
    )


def marks_on(sample: GallerySample, number: int) -> list[Mark]:
    """What to draw on image ``number``: the places in it, and what is shown larger.

    Places have numbers when there are several.
    """
    image = sample.images[number]
    marks = [] if sample.shapes or number else [Mark(None, "truth")]
    for place, (lies_in, shape) in enumerate(sample.shapes):
        if lies_in != number:
            continue
        region = zoom_region(shape, Size(*image.size))
        if region is not None and place < MAX_ZOOMS:
            marks.append(Mark(region, "zoom"))
    for place, (lies_in, shape) in enumerate(sample.shapes):
        if lies_in == number:
            marks.append(Mark(shape, "truth", str(place + 1) if len(sample.shapes) > 1 else ""))
    return marks if number else [*marks, *sample.answers]


def zooms_of(sample: GallerySample, within: Size) -> list[tuple[int, Image.Image]]:
    """Closer looks at the first places that are small, each with the place's number from 0."""
    zooms = []
    for place, (lies_in, shape) in enumerate(sample.shapes[:MAX_ZOOMS]):
        image = sample.images[lies_in]
        region = zoom_region(shape, Size(*image.size))
        if region is not None:
            answers = () if lies_in else sample.answers
            zooms.append((place, draw_zoom(image, shape, "truth", region, within, answers)))
    return zooms


def _verdict(sample: GallerySample) -> str:
    if sample.verdict is None:
        return ""
    name, words = sample.verdict
    return f"<p class='verdict {escape(name, quote=True)}'>{escape(words)}</p>"


def _picture(sample: GallerySample, number: int) -> str:
    image = sample.images[number]
    drawn = draw_marks(image, marks_on(sample, number), picture_size(Size(*image.size), MAX_SIDE))
    alt = escape(f"{sample.title}, image {number + 1} of {len(sample.images)}", quote=True)
    return _img(drawn, alt, f" style='--ratio:{drawn.width / drawn.height:.3f}'")


def _zooms(sample: GallerySample) -> str:
    figures = []
    for place, drawn in zooms_of(sample, _ZOOM):
        badge = f"<b>{place + 1}</b>" if len(sample.shapes) > 1 else ""
        figures.append(
            f"<figure>{_img(drawn, f'closer look at place {place + 1}')}{badge}</figure>"
        )
    return "".join(figures)


def _img(drawn: Image.Image, alt: str, more: str = "") -> str:
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=84, subsampling=0)
    return (
        f"<img loading='lazy' decoding='async' width='{drawn.width}' height='{drawn.height}' "
        f"src='{data_uri(buffer.getvalue())}' alt='{alt}'{more}>"
    )


CARD_STYLE = """
main { max-width: 1720px; }
.legend .zoom::before { border: 2px solid var(--zoom); border-radius: 1px; }
.legend .hand::before { display: none; }
.cards { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); }
.card { display: grid; overflow: hidden; background: var(--paper); border: 1px solid var(--rule);
  border-radius: 10px; grid-template: auto 1fr / minmax(0, 40%) minmax(0, 1fr);
  break-inside: avoid; }
.wide { grid-template-areas: "stage stage" "zooms words"; }
.wide:not(:has(figure)) { grid-template-areas: "stage stage" "words words"; }
.tall { grid-template: "stage zooms" auto "stage words" 1fr / minmax(0, 44%) minmax(0, 1fr); }
.stage { grid-area: stage; position: relative; display: flex; gap: 6px; padding: 6px;
  align-items: center; justify-content: center; background: var(--stage); cursor: zoom-in;
  min-height: 0; }
.many { grid-template: "stage" auto "zooms" auto "words" 1fr / minmax(0, 1fr); }
.wide .stage, .many .stage { aspect-ratio: 16 / 9.4; }
.tall .stage { min-height: 430px; contain: size; }
.stage img { min-width: 0; flex: 0 1 auto; max-width: 100%; max-height: 100%; width: auto;
  height: auto; object-fit: contain; }
.stage input { position: absolute; opacity: 0; }
.stage:has(:focus-visible) { outline: 3px solid var(--right); outline-offset: -3px; }
.stage:has(:checked) { position: fixed; inset: 0; z-index: 1; contain: none; aspect-ratio: auto;
  padding: 16px; cursor: zoom-out; background: rgb(10 12 14 / .94); }
.stage:has(:checked) img { height: 100%; }
.many .stage img { flex: var(--ratio) 1 0; aspect-ratio: var(--ratio); }
.zooms { grid-area: zooms; display: grid; gap: 6px; align-content: start; padding: 12px 0 12px 12px;
  min-width: 0; }
.zooms:empty { display: none; }
.tall .zooms, .many .zooms { padding: 12px 12px 0; }
.many .zooms { grid-template-columns: repeat(4, minmax(0, 1fr)); }
.zooms figure { position: relative; }
.zooms img { display: block; width: 100%; height: auto; border: 2px solid var(--zoom);
  border-radius: 4px; }
.zooms b { position: absolute; left: 6px; top: 6px; min-width: 1.4em; padding: 0 .4em;
  text-align: center; font-size: .8rem; color: #fff; background: rgb(0 150 80);
  border-radius: 3px; }
.words { grid-area: words; padding: 11px 14px 12px; min-width: 0; font-size: .84rem;
  line-height: 1.45; overflow-wrap: anywhere; }
.words p { margin: 0 0 6px; }
.words .prompt { font-size: 1rem; line-height: 1.35; font-weight: 560; white-space: pre-wrap;
  max-height: 16em; overflow-y: auto; }
.words .hint { padding: 3px 8px; border-radius: 5px; color: var(--hint);
  background: var(--hint-ground); }
.words .verdict { font-weight: 600; }
.verdict.right { color: var(--right); }
.verdict.wrong { color: var(--wrong); }
.words .key, .words pre { font: .78rem/1.4 ui-monospace, Menlo, Consolas, monospace; }
.words .key { color: var(--pale); }
.words dl { margin: 0; }
.words dl div { display: flex; gap: 8px; }
.words dt { color: var(--pale); flex: 0 0 4.6em; }
.words dd { margin: 0; }
.words summary { margin-top: 4px; cursor: pointer; color: var(--pale); }
.words pre { margin: 4px 0 0; max-height: 16em; overflow: auto; white-space: pre-wrap; }
@media (max-width: 520px) { .tall .stage { min-height: 300px; } }
"""
