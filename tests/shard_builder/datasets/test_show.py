import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, ImageError
from grpo_stream.report.contact_sheet import CELL
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.storage.store import LocalStore
from shard_builder.datasets import show as show_module
from shard_builder.datasets.select_samples import Places, find_keys, spread, warned
from shard_builder.datasets.show import as_gallery_sample, show
from tests.report.test_html_page import NASTY, Page
from tests.shards.support import image_bytes, make_sample, write_set


@pytest.fixture
def data_set(tmp_path):
    samples = [
        make_sample(f"{number:06d}_{'abc'[number % 3]}", f"Find number {number}", source=NASTY)
        for number in range(13)
    ]
    write_set(tmp_path / "set", samples, per_shard=4)
    store = LocalStore(tmp_path / "set")
    return store, Manifest.load(store)


def shown(data_set, out, **options):
    store, manifest = data_set
    return show(store, manifest, out, **options)


@given(st.integers(0, 10**10), st.integers(0, 60), st.integers(0, 5))
def test_samples_are_spread_over_the_whole_set(total, count, seed):
    positions = spread(total, count, seed)
    assert len(set(positions)) == len(positions) == min(total, count)
    assert positions == sorted(positions) == spread(total, count, seed)
    for number, position in enumerate(positions):
        start, end = number * total // len(positions), (number + 1) * total // len(positions)
        assert start <= position < end


def test_the_seed_chooses():
    assert spread(1000, 5, 0) != spread(1000, 5, 1)


def test_a_page_and_a_sheet_say_what_is_in_the_samples(data_set, tmp_path):
    told = []
    result = shown(
        data_set, tmp_path / "new" / "out", num_samples=5, on_progress=lambda *n: told.append(n)
    )
    assert told == [(1, 0)] * 5
    assert result.keys == tuple(sorted(result.keys))
    words = "".join(Page(result.page.read_text()).words)
    for key in result.keys:
        assert key in words
        assert f"Find number {int(key[:6])}" in words
    assert "5 of 13 samples, spread evenly over the set (seed 0)" in words
    assert "1, 2, 8, 6" in words
    assert "shard-000000.tar" in words
    assert "8\u00d76 png" in words
    assert "script" not in Page(result.page.read_text()).tags
    with Image.open(result.sheet) as sheet:
        assert sheet.size == (4 * (CELL.width + 14) + 14, 2 * (CELL.height + 14) + 14)
    assert sorted(path.name for path in result.page.parent.iterdir()) == [
        "contact_sheet.png",
        "index.html",
    ]


def test_equal_arguments_give_equal_files(data_set, tmp_path):
    first = shown(data_set, tmp_path / "a", num_samples=6, seed=3)
    second = shown(data_set, tmp_path / "b", num_samples=6, seed=3)
    assert first.page.read_bytes() == second.page.read_bytes()
    assert first.sheet.read_bytes() == second.sheet.read_bytes()
    assert shown(data_set, tmp_path / "b", num_samples=6, seed=4).keys != first.keys


def test_all_of_a_small_set(data_set, tmp_path):
    result = shown(data_set, tmp_path / "out", num_samples=99)
    assert len(result.keys) == 13
    assert "13 of 13 samples, all there are" in result.lead


def test_keys_in_the_order_given(data_set, tmp_path):
    keys = ["000011_c", "000002_c", "000011_c"]
    assert shown(data_set, tmp_path / "out", keys=keys, num_samples=1).keys == tuple(keys[:2])
    with pytest.raises(ConfigError, match=r"--keys='000003_z'.*the first is '000000_a'"):
        shown(data_set, tmp_path / "out", keys=["000011_c", "000003_z"])


class Counting(LocalStore):
    num_reads = 0
    num_streams = 0

    def read_ranges(self, *words):
        Counting.num_reads += 1
        return super().read_ranges(*words)

    def open_stream(self, name):
        Counting.num_streams += 1
        return super().open_stream(name)


@pytest.mark.parametrize(("is_ordered", "num_streams"), [(True, 0), (False, 7)])
def test_keys_are_found_by_halving_where_they_increase(tmp_path, is_ordered, num_streams):
    numbers = list(range(50))
    if not is_ordered:
        np.random.default_rng(0).shuffle(numbers)
    write_set(tmp_path, [make_sample(f"{n:06d}") for n in numbers], per_shard=8)
    store = Counting(tmp_path)
    places = Places(store, Manifest.load(store))
    Counting.num_reads = Counting.num_streams = 0
    last = f"{numbers[-1]:06d}"
    assert find_keys(places, [last]) == [49]
    assert Counting.num_reads <= 6
    assert Counting.num_streams == num_streams


def test_words_of_the_prompt(data_set, tmp_path):
    result = shown(data_set, tmp_path / "out", grep="NUMBER 1", num_samples=2)
    assert len(result.keys) == 2
    assert {int(key[:6]) for key in result.keys} <= {1, 10, 11, 12}
    assert "2 of 4 samples whose prompt contains 'NUMBER 1'; 13 of 13 prompts" in result.lead
    with pytest.raises(ConfigError, match=r"--grep='zebra'.*none of 13"):
        shown(data_set, tmp_path / "out", grep="zebra")


def test_the_search_for_words_is_bounded(data_set, tmp_path, monkeypatch):
    monkeypatch.setattr(show_module, "MAX_PROMPTS", 5)
    lead = shown(data_set, tmp_path / "out", grep="find").lead
    assert "5 of 5 samples" in lead
    assert "5 of 13 prompts were looked at" in lead


def write_warnings(store, rows):
    lines = [json.dumps({"detail": f"detail {NASTY}", **row}) + "\n" for row in rows]
    (Path(store.folder) / "warnings.jsonl").write_text("".join(lines))


def test_samples_that_were_warned_of_say_so(data_set, tmp_path):
    rows = [{"key": f"{n:06d}_{'abc'[n % 3]}", "cause": "box_clipped"} for n in range(9)]
    rows += [{"key": "000012_a", "cause": "rare"}, {"key": "000000_a", "cause": "rare"}]
    write_warnings(data_set[0], rows)
    result = shown(data_set, tmp_path / "out", only_warned=True, num_samples=3)
    assert len(result.keys) == 3
    assert "000012_a" in result.keys  # the rare cause is not crowded out
    words = "".join(Page(result.page.read_text()).words)
    assert f"rare: detail {NASTY}" in words
    assert f"box_clipped: detail {NASTY}" in words


@pytest.mark.parametrize("count", [1, 4, 50])
def test_warned_keys_are_bounded(data_set, count):
    rows = [{"key": f"k{n}", "cause": "ab"[n % 2]} for n in range(40)] * 2
    write_warnings(data_set[0], rows)
    found = warned(data_set[0], count, 0)
    assert len(found) == min(count, 40)
    assert found == warned(data_set[0], count, 0)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"only_warned": True}, "--warnings"),
        ({"num_samples": 0}, "--num-samples"),
        ({"num_samples": 100_000}, "--num-samples"),
        ({"keys": ["a"], "grep": "b"}, "--keys, --grep, --warnings"),
    ],
)
def test_what_cannot_be_shown(data_set, tmp_path, options, field):
    with pytest.raises(ConfigError) as caught:
        shown(data_set, tmp_path / "out", **options)
    assert caught.value.field == field
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder_to_write_to(data_set, tmp_path):
    (tmp_path / "file").write_text("mine")
    told = []
    with pytest.raises(ConfigError, match=r"--out=.* must be a folder that can be made"):
        shown(data_set, tmp_path / "file", on_progress=lambda *n: told.append(n))
    assert (tmp_path / "file").read_text() == "mine"
    assert not told


def test_an_image_that_cannot_be_decoded_is_named():
    sample = make_sample("000007_x")
    broken = Sample(sample.key, sample.image[:40], "png", sample.meta)
    with pytest.raises(ImageError, match=r"shard-000003.tar: key='000007_x': image 0"):
        as_gallery_sample(broken, "shard-000003.tar")


def test_several_images_and_boxes(tmp_path):
    sizes = [(Size(30, 20), Size(60, 40))]
    solutions = [(1, 2, 8, 6), (3, 4), *[(0, 0, 9, 9)] * 9]
    lies_in = [0, 1, *[1] * 9]
    meta = make_meta("p", solutions, Size(8, 6), Size(8, 6), {}, sizes, lies_in)
    more = (("jpg", image_bytes((30, 20), kind="JPEG")),)
    write_set(tmp_path / "set", [Sample("000000", image_bytes(), "png", meta, more)])
    store = LocalStore(tmp_path / "set")
    words = "".join(Page(show(store, Manifest.load(store), tmp_path).page.read_text()).words)
    assert "8\u00d76 png" in words
    assert "30\u00d720 jpg" in words
    assert "(original 60\u00d740)" in words
    assert "1, 2, 8, 6 in image 0" in words
    assert "3, 4 in image 1" in words
    assert "and 5 more" in words


def test_a_page_of_somebody_else_is_left_alone(tmp_path):
    store, manifest = LocalStore(tmp_path / "set"), write_set(tmp_path / "set", [make_sample()])
    (tmp_path / "site").mkdir()
    page = tmp_path / "site" / "index.html"
    page.write_text("<!doctype html><title>Mine</title>")
    with pytest.raises(ConfigError, match=r"has an index\.html of something else"):
        show(store, manifest, tmp_path / "site")
    assert page.read_text().endswith("<title>Mine</title>")
    page.unlink()
    show(store, manifest, tmp_path / "site")
    show(store, manifest, tmp_path / "site")  # its own is replaced
