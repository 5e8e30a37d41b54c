import base64
import io
import os
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from grpo_stream.report.charts import Bar, bar_chart
from grpo_stream.report.html_page import PictureCard, Report, Table, render, write_report

NASTY = "<script>alert('1')</script> & \"quotes\""
VOID = {"meta", "link", "img", "input"}


class Page(HTMLParser):
    """Checks that tags nest and keeps what a browser would show or fetch."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[Any] = []
        self.alts: list[Any] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.references += [values[name] for name in ("src", "href", "srcset") if name in values]
        self.alts += [values["alt"]] if "alt" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def picture(kind="PNG", size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def report():
    return Report(
        title=f"Title {NASTY}",
        lead=f"Lead {NASTY}",
        facts=[(f"fact {NASTY}", f"value {NASTY}")],
        charts=[bar_chart(f"chart {NASTY}", [Bar(NASTY, 0.5, 0.4, 0.6)])],
        pictures=[
            PictureCard(picture("PNG"), f"caption {NASTY}", is_correct=True),
            PictureCard(picture("JPEG"), "second", is_correct=False),
        ],
        tables=[Table(f"table {NASTY}", [(f"row {NASTY}", NASTY, "x")], header=("a", "b", NASTY))],
        notes=[f"note {NASTY}"],
    )


def test_everything_is_said_and_escaped(report):
    text = render(report)
    page = Page(text)
    assert "script" not in page.tags
    words = "".join(page.words)
    for part in ("Title", "Lead", "fact", "value", "chart", "caption", "table", "row", "note"):
        assert f"{part} {NASTY}" in words
    assert f"caption {NASTY}" in page.alts


def test_nothing_is_fetched(report):
    text = render(report)
    page = Page(text)
    assert len(page.references) == 3
    assert all(reference.startswith("data:") for reference in page.references)
    namespace = "http://www.w3.org/2000/svg"
    assert "://" not in text.replace(namespace, "")
    assert "@import" not in text
    assert "url(" not in text


def test_pictures_are_inside_with_their_type_and_verdict(report):
    page = Page(render(report))
    types = []
    for reference in page.references[1:]:
        head, data = reference.split(",", 1)
        types.append(head)
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            assert image.size == (40, 30)
    assert types == ["data:image/png;base64", "data:image/jpeg;base64"]
    words = "".join(page.words)
    assert words.index("hit caption") < words.index("miss second")


def test_an_empty_report_is_a_page():
    page = Page(render(Report("Title", "Lead")))
    assert not {"img", "svg", "table", "ul", "dl"} & set(page.tags)


def test_write_report_makes_one_readable_file(report, tmp_path):
    folder = tmp_path / "new" / "report"
    path = write_report(report, folder)
    assert path == folder / "index.html"
    assert os.listdir(folder) == ["index.html"]  # noqa: PTH208
    assert path.read_text(encoding="utf-8") == render(report)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_page_and_no_rest(report, tmp_path, monkeypatch):
    path = write_report(report, tmp_path)
    before = path.read_bytes()

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(replace(report, title="New"), tmp_path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.html"]
