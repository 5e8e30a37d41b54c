"""The table of readers: what it says of itself, and the records that the documents show."""

import json
import re
from pathlib import Path

import pytest

from grpo_stream.records.formats.readers import FORMATS, READERS, format_help, recognise
from tests.records.formats.support import read_all, write

DOCS = Path(__file__).parents[3] / "docs" / "data_formats.md"
SECTION = re.compile(r"^## (.*)$", re.MULTILINE)


def documented():
    """Each record of the documents with the readers that its section names."""
    found = []
    pieces = SECTION.split(DOCS.read_text())
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        names = re.findall(r"`(\w+)`", title)
        found += [(names, line.strip()) for line in body.splitlines() if line.startswith("    {")]
    return found


def test_every_format_is_documented_and_has_a_line():
    named = {name for names, _ in documented() for name in names}
    text = DOCS.read_text()
    assert named <= set(FORMATS)
    for reader in READERS:
        assert f"`{reader.name}`" in text
        assert f"  {reader.name} " in format_help()


@pytest.mark.parametrize(("names", "line"), documented())
def test_documented_records_are_recognised(names, line, tmp_path):
    row = json.loads(line)
    reader = recognise(row)
    assert reader is not None
    assert reader.name in names
    if "ann_id" in row:
        return  # its box is in a second file
    _, records = read_all(write(tmp_path / "a.jsonl", line))
    assert records
    for _, record in records:
        images = record["image"] if isinstance(record["image"], list) else [record["image"]]
        assert {*images} <= {"a.jpg", "b.jpg", "a.png", "pc_1.png", "dir/x.jpg"}
        assert record["prompt"]
        assert record["prompt"].count("<") == (len(images) if len(images) > 1 else 0)
        assert isinstance(record["solution"], list)


def test_a_list_in_an_object(tmp_path):
    row = {"image": "a.png", "prompt": "Click", "solution": [1, 2, 3, 4]}
    source, records = read_all(write(tmp_path / "a.json", {"info": {"n": 2}, "data": [row, row]}))
    assert (source.container, source.member) == ("member", "data")
    assert records == [(0, row), (1, row)]


def test_each_record_of_a_mixed_file_is_read_by_its_own_form(tmp_path):
    lines = [line for names, line in documented() if "refcoco" not in names]
    _, records = read_all(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert {index for index, _ in records} == set(range(len(lines)))


def test_a_missing_field_is_told_in_the_words_of_the_row(tmp_path):
    row = {"img_filename": "a.png", "bbox": [1, 2, 3, 4], "words": "close"}
    _, records = read_all(write(tmp_path / "a.json", [row]))
    assert records[0][1].cause == "prompt_missing"
    assert "'instruction' in ['img_filename', 'bbox', 'words']" in records[0][1].detail
