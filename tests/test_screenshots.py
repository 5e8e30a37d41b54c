"""The committed screenshots are what their README says."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from shard_builder.build.build import BuildSettings, build

FOLDER = Path(__file__).parents[1] / "data" / "screenshots"
LICENCES = {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "PSF-2.0", "PostgreSQL"}


@pytest.fixture(scope="module")
def records():
    return json.loads((FOLDER / "records.json").read_text(encoding="utf-8"))


def test_the_builder_takes_every_record_without_a_word(tmp_path):
    inputs = (str(FOLDER / "records.json"),)
    settings = BuildSettings(inputs, str(FOLDER), str(tmp_path / "out"), dry_run=True)
    result = build(settings)
    assert (result.num_samples, result.rejects, result.warnings) == (388, {}, {})


def test_every_picture_is_used_and_in_one_split(records):
    splits = {(record["image"], record["split"]) for record in records}
    pictures = {f"pages/{path.name}" for path in (FOLDER / "pages").iterdir()}
    assert {image for image, _ in splits} == pictures
    assert Counter(split for _, split in splits) == {"train": 39, "test": 15}
    assert len(splits) == len(pictures)


def test_sizes_and_formats(records):
    sizes = {(record["width"], record["height"]) for record in records}
    assert {(390, 844), (780, 1688), (640, 480), (768, 1024), (1920, 1080)} <= sizes
    assert {record["image"][-3:] for record in records} == {"png", "jpg"}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 3.2e6


def test_the_readme_lists_every_source_with_a_permissive_licence(records):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [row.split(" | ") for row in re.findall(r"^\| (.+) \|$", text, re.MULTILINE)[2:]]
    assert {row[3] for row in rows} <= LICENCES
    listed = {row[0]: (int(row[5]), int(row[6])) for row in rows}
    pages = Counter(source for _, source in {(r["image"], r["source"]) for r in records})
    counts = Counter(record["source"] for record in records)
    assert listed == {source: (pages[source], counts[source]) for source in counts}
