"""A build in parts, on machines that share a folder, gives the bytes of a build on one."""

import json
import os
import random
from dataclasses import replace
from functools import partial

import pytest

import grpo_stream
from grpo_stream.errors import ConfigError, RecordError, StoreError
from grpo_stream.storage.store import LocalStore
from shard_builder.build.build import TooManyRejectsError, build
from shard_builder.build.chunk_plan import Splits
from shard_builder.build.output.kept_results import PLAN_NAME, REQUEST_NAME, ROWS_FOLDER
from shard_builder.build.output.output_lock import FolderLock
from shard_builder.build.surveyed_inputs import survey_inputs
from shard_builder.parts import make_plan, run_part
from shard_builder.parts.finish_parts import PartsMissingError, finish
from shard_builder.parts.plan_files import load_plan, stored_chunks
from shard_builder.parts.plan_request import Part
from shard_builder.parts.run_part import build_part
from tests.shard_builder.support import files_of, make_settings, write_raw


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw") / "raw", 40)


def built_here(settings, tmp_path):
    build(replace(settings, out=str(tmp_path / "here")))
    return files_of(tmp_path / "here")


@pytest.mark.parametrize(
    "change",
    [
        {"shuffle_seed": 3},
        {"by_image": True, "shuffle_seed": 1},
        {"split": Splits((("val", 0.3), ("test", 0.2)))},
        {"where": (("prompt", "Click 3"),), "max_reject_share": 1.0},
    ],
    ids="-".join,
)
def test_any_order_gives_the_bytes_of_one_process(raw, tmp_path, change):
    settings = make_settings(raw, tmp_path / "out", **change)
    expected = built_here(settings, tmp_path)
    numbers = random.Random(5).sample(range(1, 6), 5)
    results = [build_part(settings, Part(number, 5)) for number in numbers]
    assert [len(result.missing_parts) for result in results[:-1]] == sorted(
        (len(result.missing_parts) for result in results[:-1]), reverse=True
    )
    assert results[-1].finished is not None
    assert files_of(tmp_path / "out") == expected
    again = build_part(settings, Part(numbers[0], 5))
    assert again.finished is not None
    assert not again.finished.is_new
    assert not finish(settings.out).is_new
    assert files_of(tmp_path / "out") == expected


def test_finish_names_the_parts_that_are_missing(raw, tmp_path):
    settings = make_settings(raw, tmp_path / "out")
    assert build_part(settings, Part.parse("plan/4")).num_chunks == 10
    build_part(settings, Part(3, 4))
    with pytest.raises(PartsMissingError, match=r"of 4 parts 3 are not whole yet: 1, 2, 4 \(8 of"):
        finish(settings.out)
    for number in (1, 4):
        assert build_part(settings, Part(number, 4)).missing_parts
    lost = tmp_path / "out" / "_build/all-000002.json"  # of part 3
    lost.unlink()
    assert build_part(settings, Part(2, 4)).missing_parts == (3,)
    assert build_part(settings, Part(3, 4)).finished is not None
    assert files_of(tmp_path / "out") == built_here(settings, tmp_path)


@pytest.mark.parametrize("spelling", ["{}/", "{}/.", "{}/../out", "file://{}", "relative"])
def test_other_spellings_of_the_place_are_the_same_place(raw, tmp_path, monkeypatch, spelling):
    out = str(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    other = "out" if spelling == "relative" else spelling.format(out)
    build_part(make_settings(raw, out), Part(1, 2))
    with pytest.raises(PartsMissingError, match="1 are not whole yet: 2 "):
        finish(other)
    settings = make_settings(raw, "x")
    assert build_part(replace(settings, out=other), Part(2, 2)).finished is not None
    assert not finish(other).is_new
    assert files_of(tmp_path / "out") == built_here(settings, tmp_path)
    assert not (tmp_path / "x").exists()


def test_finish_without_parts_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no plan of a build in parts"):
        finish(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shuffle_seed": 1}, r"shuffle_seed is 1 here and None in the plan"),
        ({"max_reject_share": 0.9}, r"max_reject_share is 0\.9 here and 0\.5"),
        ({"images_root": "."}, "images_root_sha256 is"),
    ],
)
def test_a_part_with_other_settings_writes_nothing(raw, tmp_path, change, words):
    settings = make_settings(raw, tmp_path / "out")
    build_part(settings, Part(1, 3))
    before = files_of(tmp_path / "out")
    with pytest.raises(ConfigError, match=rf"--part='2/3': is not of the build.*{words}"):
        build_part(replace(settings, **change), Part(2, 3))
    with pytest.raises(ConfigError, match=r"num_parts is 4 here and 3 in the plan"):
        build_part(settings, Part(2, 4))
    assert files_of(tmp_path / "out") == before


def test_another_input_and_another_builder_are_noticed(raw, tmp_path, monkeypatch):
    settings = make_settings(raw, tmp_path / "out")
    build_part(settings, Part(1, 3))
    before = files_of(tmp_path / "out")
    text = (raw / "records.json").read_text()
    changed = tmp_path / "other" / "records.json"
    changed.parent.mkdir()
    changed.write_text(text.replace("Click 9", "Click 8"))
    with pytest.raises(ConfigError, match=r"inputs\.0\.pieces_blake2b is"):
        build_part(replace(settings, inputs=(str(changed),)), Part(2, 3))
    monkeypatch.setattr(grpo_stream, "__version__", "9.9")
    with pytest.raises(ConfigError, match=r"builder_version is '9\.9' here and"):
        build_part(settings, Part(2, 3))
    assert files_of(tmp_path / "out") == before


def test_parts_do_not_need_the_records_again(raw, tmp_path, monkeypatch):
    """What they build comes from the plan, also where an input is changed in between."""
    copy = tmp_path / "raw"
    copy.mkdir()
    text = (raw / "records.json").read_text()
    (copy / "records.json").write_text(text)
    (copy / "img").symlink_to(raw / "img")
    settings = make_settings(copy, tmp_path / "out")
    expected = built_here(settings, tmp_path)
    build_part(settings, Part(1, 2))
    (copy / "records.json").write_text(text.replace("Click 9", "Click 8"))
    planned = load_plan(LocalStore(tmp_path / "out"))
    assert planned is not None
    monkeypatch.setattr(run_part, "request_of", lambda *_: planned.request)
    assert build_part(settings, Part(2, 2)).finished is not None
    assert files_of(tmp_path / "out") == expected


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "a/3", "3", "1/3/4", "-1/3", "", "1/٣"])
def test_parts_that_cannot_be(text):
    with pytest.raises(ConfigError, match="--part"):
        Part.parse(text)


@pytest.mark.parametrize("change", [{"dry_run": True}, {"overwrite": True}])
def test_flags_that_do_not_go_with_a_part(raw, tmp_path, change):
    settings = make_settings(raw, tmp_path / "out", **change)
    with pytest.raises(ConfigError, match="--part='1/2': goes without --"):
        build_part(settings, Part(1, 2))
    assert not (tmp_path / "out").exists()


def test_overwrite_goes_with_the_plan(raw, tmp_path):
    settings = make_settings(raw, tmp_path / "out")
    build(replace(settings, shuffle_seed=9))
    with pytest.raises(ConfigError, match="holds another data set"):
        build_part(settings, Part(1, 2))
    assert not (tmp_path / "out" / REQUEST_NAME).exists()
    build_part(replace(settings, overwrite=True), Part.parse("plan/2"))
    for number in (2, 1):
        result = build_part(settings, Part(number, 2))
    assert result.finished is not None
    assert files_of(tmp_path / "out") == built_here(settings, tmp_path)


def test_one_process_takes_over_what_parts_have_begun_and_the_other_way_round(raw, tmp_path):
    settings = make_settings(raw, tmp_path / "out")
    expected = built_here(settings, tmp_path)
    build_part(settings, Part(1, 2))
    with pytest.raises(ConfigError, match="holds an unfinished build that differs in shuffle_seed"):
        build(replace(settings, shuffle_seed=1))
    build(settings)
    assert files_of(tmp_path / "out") == expected
    os.truncate(tmp_path / "out" / "manifest.json", 0)
    with pytest.raises(ConfigError, match="holds another data set"):
        build_part(settings, Part(1, 2))


def test_rejects_are_counted_over_all_parts(raw, tmp_path):
    num_rejects = sum(build(make_settings(raw, tmp_path / "here")).rejects.values())
    settings = make_settings(raw, tmp_path / "out", max_rejects=num_rejects - 1)
    for number in (1, 2):
        build_part(settings, Part(number, 3))
    with pytest.raises(TooManyRejectsError, match=r"rejects in all parts, at most \d+ are allowed"):
        build_part(settings, Part(3, 3))
    assert not (tmp_path / "out" / "manifest.json").exists()
    settings = make_settings(raw, tmp_path / "share", max_reject_share=0.1)
    for number in (1, 2):
        build_part(settings, Part(number, 3))
    with pytest.raises(RecordError, match=r"more than --max-reject-share 0\.1 allows"):
        build_part(settings, Part(3, 3))
    assert set(files_of(tmp_path / "share")) == {"rejects.jsonl", "warnings.jsonl"}


def test_more_parts_than_chunks(tmp_path):
    raw = write_raw(tmp_path / "raw", 5)
    settings = make_settings(raw, tmp_path / "out")
    results = [build_part(settings, Part(number, 4)) for number in (4, 1, 2)]
    assert [result.num_chunks for result in results] == [0, 1, 1]
    assert results[-1].finished is not None
    assert files_of(tmp_path / "out") == built_here(settings, tmp_path)


def test_a_part_that_is_at_work_while_another_finishes_leaves_nothing(raw, tmp_path, monkeypatch):
    settings = make_settings(raw, tmp_path / "out")
    expected = built_here(settings, tmp_path)
    build_part(settings, Part(1, 2))
    read = stored_chunks
    num_calls = []

    def read_then_finish(*args):
        num_calls.append(1)
        if len(num_calls) > 1:  # the same part once more, on another machine
            yield from read(*args)
            return
        for number, chunk in enumerate(read(*args)):
            records = chunk.read()  # ahead of its time, else they are gone
            if number == 3:
                assert build_part(settings, Part(2, 2)).finished is not None
            yield chunk._replace(read=partial(lambda found: found, records))

    monkeypatch.setattr(run_part, "stored_chunks", read_then_finish)
    monkeypatch.setattr(run_part, "_SECONDS_BETWEEN_LOOKS", 1e9)
    assert build_part(settings, Part(2, 2)).is_finished_elsewhere
    assert files_of(tmp_path / "out") == expected


def test_a_part_stops_where_the_plan_is_another_now(raw, tmp_path, monkeypatch):
    settings = make_settings(raw, tmp_path / "out")
    build_part(settings, Part(1, 2))
    read = stored_chunks

    def replaced(*args):
        yield from list(read(*args))[:2]
        (tmp_path / "out" / PLAN_NAME).unlink()

    monkeypatch.setattr(run_part, "stored_chunks", replaced)
    with pytest.raises(StoreError, match=r"taken_over: .*another plan, or none, is there now"):
        build_part(settings, Part(2, 2))


def test_who_comes_while_the_plan_is_made_waits_or_is_told(raw, tmp_path, monkeypatch):
    settings = make_settings(raw, tmp_path / "out")
    other = replace(settings, shuffle_seed=4)
    monkeypatch.setattr(make_plan, "_POLL_SECONDS", 0.01)
    survey = survey_inputs

    def meanwhile(*args):
        with pytest.raises(ConfigError, match="shuffle_seed is 4 here and None in the plan"):
            build_part(other, Part(2, 2))
        return survey(*args)

    monkeypatch.setattr(make_plan, "survey_inputs", meanwhile)
    build_part(settings, Part.parse("plan/2"))
    assert load_plan(LocalStore(tmp_path / "out")) is not None
    monkeypatch.setattr(make_plan, "_GRACE_SECONDS", 0.05)
    lock = FolderLock(tmp_path / "busy")  # a build without parts
    with pytest.raises(ConfigError, match="another build is writing there"):
        build_part(replace(settings, out=str(tmp_path / "busy")), Part(1, 2))
    lock.close()


def test_a_planner_that_failed_leaves_nothing(tmp_path):
    raw = write_raw(tmp_path / "raw")
    (raw / "records.json").write_text('[{"image": "a", "prompt": "b", "solution": [1, 2, 3')
    with pytest.raises(RecordError):
        build_part(make_settings(raw, tmp_path / "out"), Part(1, 2))
    assert not (tmp_path / "out").exists()


def test_damaged_plans_are_named(raw, tmp_path):
    settings = make_settings(raw, tmp_path / "out")
    build_part(settings, Part.parse("plan/2"))
    rows = tmp_path / "out" / ROWS_FOLDER / "all-000000"
    os.truncate(rows, 50)
    with pytest.raises(StoreError, match="all-000000 is damaged"):
        build_part(settings, Part(1, 2))
    plan = tmp_path / "out" / PLAN_NAME
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "version": 2}))
    with pytest.raises(StoreError, match="version 2, this builder reads 1"):
        finish(settings.out)
