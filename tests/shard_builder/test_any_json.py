"""Whatever the records are: each becomes a sample or a reject, and the data set is sound."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from grpo_stream.errors import RecordError
from grpo_stream.images import ResizeRule
from grpo_stream.records.formats.open_inputs import RuleFlags
from grpo_stream.records.formats.rules import Rules
from grpo_stream.records.stored_image import PictureRules
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import LocalStore
from shard_builder.build import build as build_module
from shard_builder.build.build import BuildSettings, build
from shard_builder.build.chunk_plan import ShardLimits, Splits
from shard_builder.build.workers.worker_pool import run_chunks
from shard_builder.datasets.verify import verify
from tests.shard_builder.support import (
    files_of,
    lines_of,
    make_settings,
    samples_of,
    write_raw,
)
from tests.shards.support import image_bytes

IMAGES = {
    "a.png": image_bytes((40, 30)),
    "sub/b.png": image_bytes((31, 57), "red"),
    "empty.png": b"",
    "cut.png": image_bytes((40, 30))[:60],
    "page.png": b"<html>",
}
FIELDS = ("image", "prompt", "solution", "width", "height", "images", "solution_images", "x")

GOOD = {"image": "a.png", "prompt": "Click", "solution": [1, 2, 20, 25]}
HALVES = Splits((("val", 0.5),))
NESTED = json.loads("[" * 100 + "]" * 100)

numbers = st.integers() | st.floats() | st.integers(0, 60) | st.just(10**400)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=9) | st.just("\ud800")
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=9,
)
paths = st.sampled_from([*IMAGES, "absent.png", "../a.png", "sub", "sub/../a.png", "/etc/hosts"])
boxes = st.lists(st.integers(-5, 60) | st.floats(0, 1), min_size=2, max_size=5)
good = st.fixed_dictionaries(
    {
        "image": st.sampled_from(["a.png", "sub/b.png"]),
        "prompt": st.text(min_size=1, max_size=9),
        "solution": st.just([1, 2, 20, 25]) | st.just([3.5, 4]),
    }
)
near = st.fixed_dictionaries(
    {},
    optional={
        "image": paths | st.lists(paths, max_size=3),
        "prompt": st.text(max_size=9),
        "solution": boxes | st.lists(boxes, max_size=3),
        "width": st.just(40) | numbers,
        "solution_images": st.lists(st.integers(-1, 2), max_size=3),
        "extra": values,
    },
)
wild = st.dictionaries(st.sampled_from(FIELDS), values, max_size=5)
records = st.lists(good | near | wild | values, max_size=9)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    for name, data in IMAGES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Fresh names of folders that are not there yet."""
    return (tmp_path_factory.mktemp("sets") / str(number) for number in range(10**6))


def outcome(wanted):
    """What a build did, or the cause that it ended with."""
    try:
        return build(wanted)
    except RecordError as error:
        return error.cause


def check_set(folder, name):
    """Verifies a data set; gives what became of each record, by its index."""
    manifest = Manifest.load(LocalStore(folder))
    assert verify(LocalStore(folder), manifest).num_samples == manifest.totals["num_samples"]
    fates = [int(sample.key[:9]) for sample in samples_of(folder)]
    assert fates == sorted(fates)
    rejects = lines_of(folder / "rejects.jsonl")
    for line in rejects:
        assert line.keys() == {"input", "index", "image", "cause", "detail"}
        assert line["input"] == name
        assert line["cause"].replace("_", "").isalpha()
    assert Counter(line["cause"] for line in rejects) == manifest.rejects
    for line in lines_of(folder / "warnings.jsonl"):
        assert line.keys() == {"input", "index", "image", "cause", "detail", "key"}
        assert line["index"] in fates
    return [*fates, *(line["index"] for line in rejects)]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    records,
    st.booleans(),
    st.sampled_from(["reject", "keep"]),
    st.sampled_from(["xyxy", "xywh", "cxcywh", "point", "polygon"]),
    st.sampled_from(["pixels", "unit", "per_mille"]),
    st.sampled_from([None, HALVES]),
    st.sampled_from([None, ResizeRule()]),
    st.sampled_from([(1, 10**9), (3, 2_000), (100, 1)]),
)
@example([{"x": NESTED}, float("nan")], True, "keep", "xyxy", "pixels", None, None, (1, 1))
@example([GOOD, {"image": "\ud800"}], True, "keep", "xyxy", "pixels", HALVES, None, (1, 1))
@example([GOOD | {"image": ["a.png"]}], False, "keep", "xyxy", "pixels", HALVES, None, (1, 1))
def test_every_record_has_its_fate(
    raw, places, rows, is_array, several, box_format, coords, split, resize, limits
):
    path = raw / "records.json"
    lines = [json.dumps(row) for row in rows]
    path.write_text(f"[{','.join(lines)}]" if is_array else "\n".join(lines))
    wanted = BuildSettings(
        inputs=(str(path),),
        images_root=str(raw),
        out=str(next(places)),
        input_format="json" if is_array else "jsonl",
        rules=Rules(several=several),
        flags=RuleFlags(box_format=box_format, coords=coords),
        max_reject_share=1.0,
        split=split,
        pictures=PictureRules(resize=resize),
        limits=ShardLimits(*limits),
    )
    dry = outcome(replace(wanted, dry_run=True))
    done = outcome(wanted)
    folder = LocalStore(wanted.out).folder
    if isinstance(done, str):
        assert done == dry
        assert done == "no_samples" or (done == "input_empty" and not rows)
        left = {name.rpartition("/")[2] for name in files_of(folder)}
        assert left <= {"rejects.jsonl", "warnings.jsonl"}
        return
    assert (done.num_records, done.num_samples, done.rejects) == (
        dry.num_records, dry.num_samples, dry.rejects
    )  # fmt: skip
    assert done.warnings == dry.warnings
    assert done.num_records == len(rows) == done.num_samples + sum(done.rejects.values())
    folders = [folder / name for name in split.names] if split else [folder]
    fates = [index for one in folders for index in check_set(one, str(path))]
    assert sorted(fates) == list(range(len(rows)))


@pytest.mark.parametrize("split", [None, Splits((("val", 0.3),))])
def test_the_result_does_not_depend_on_when_a_chunk_is_done(tmp_path, monkeypatch, split):
    raw = write_raw(tmp_path / "raw", num_records=60)
    build(make_settings(raw, tmp_path / "reference", split=split, shuffle_seed=3))
    expected = files_of(tmp_path / "reference")

    for seed in range(4):

        def in_any_order(chunks, *rest, seed=seed):
            chunks = list(chunks)
            random.Random(seed).shuffle(chunks)
            return run_chunks(iter(chunks), *rest)

        monkeypatch.setattr(build_module, "run_chunks", in_any_order)
        out = tmp_path / f"out{seed}"
        build(make_settings(raw, out, split=split, shuffle_seed=3))
        assert files_of(out) == expected


@pytest.mark.parametrize("num_workers", [2, 3])
def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path, num_workers):
    raw = write_raw(tmp_path / "raw", num_records=60)
    split = Splits((("val", 0.3),))
    build(make_settings(raw, tmp_path / "one", split=split))
    done = build(make_settings(raw, tmp_path / "more", split=split, num_workers=num_workers))
    assert done.num_records == 60
    assert files_of(tmp_path / "more") == files_of(tmp_path / "one")
