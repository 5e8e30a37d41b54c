import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from grpo_stream.errors import CheckpointError, ConfigError
from grpo_stream.train.checkpoints import whole_checkpoint as checkpoint_module
from grpo_stream.train.checkpoints.whole_checkpoint import (
    MARKER_NAME,
    Marker,
    begin,
    check_files,
    choose_checkpoint,
    find_checkpoints,
    last_checkpoint,
    read_marker,
    seal,
    sync,
)


def write(folder, *, is_resumable=True):
    begin(folder)
    (folder / "global_step1").mkdir()
    (folder / "global_step1/optimizer.pt").write_bytes(b"12345")
    (folder / "cursor.json").write_text("{}")
    sync(folder)
    seal(folder, num_ranks=2, zero_stage=3, is_resumable=is_resumable)
    return folder


def rewrite(folder, **changes):
    path = folder / MARKER_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace(path, make):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def test_a_marker_says_what_was_written(tmp_path):
    folder = write(tmp_path / "checkpoint-1")
    files = {"cursor.json": 2, "global_step1/optimizer.pt": 5}
    marker = read_marker(folder)
    assert marker == Marker(num_ranks=2, zero_stage=3, is_resumable=True, files=files)
    check_files(folder, marker)
    seal(folder, num_ranks=2, zero_stage=3)  # it does not list itself
    assert read_marker(folder).files == files


def test_beginning_leaves_nothing(tmp_path):
    folder = write(tmp_path / "checkpoint-1")
    begin(folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / MARKER_NAME).unlink(), "has no complete.json"),
        (lambda folder: (folder / MARKER_NAME).write_text('{"version": 1'), "is damaged"),
        (lambda folder: (folder / MARKER_NAME).write_text("[]"), "is damaged"),
        (lambda folder: (folder / MARKER_NAME).write_text('{"version": 1, "a": 2}'), "is damaged"),
        (lambda folder: (folder / MARKER_NAME).write_text('{"version": 2}'), "has version 2"),
        (lambda folder: (folder / MARKER_NAME).write_bytes(b""), "is damaged"),
        (lambda folder: (folder / MARKER_NAME).write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda folder: (folder / MARKER_NAME).write_text("[" * 100_000), "is damaged"),
        (lambda folder: rewrite(folder, files=["cursor.json"]), "is damaged"),
        (lambda folder: rewrite(folder, files={"cursor.json": "2"}), "is damaged"),
        (lambda folder: rewrite(folder, files={"../checkpoint-9/cursor.json": 2}), "is damaged"),
        (lambda folder: rewrite(folder, files={"\0": 2}), "is damaged"),
        (lambda folder: rewrite(folder, files={"x" * 5000: 2}), "is missing"),
        (lambda folder: rewrite(folder, num_ranks="two"), "is damaged"),
        (lambda folder: rewrite(folder, sequence=None), "is damaged"),
        (lambda folder: replace(folder / MARKER_NAME, Path.mkdir), "is damaged"),
        (lambda folder: replace(folder / MARKER_NAME, os.mkfifo), "is damaged"),
        (lambda folder: replace(folder, Path.touch), "has no complete.json"),
        (lambda folder: (folder / "cursor.json").unlink(), "cursor.json is missing"),
        (
            lambda folder: (folder / "global_step1/optimizer.pt").write_bytes(b"1"),
            "optimizer.pt has 1 bytes in place of 5",
        ),
    ],
)
def test_what_is_not_whole_is_passed_over_and_named(tmp_path, caplog, damage, words):
    older = write(tmp_path / "checkpoint-9")
    damage(write(tmp_path / "checkpoint-10"))
    (tmp_path / "checkpoint-best").mkdir()
    found, faults = find_checkpoints(tmp_path)
    assert found == [older]
    assert [words in fault for fault in faults] == [True]
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path, looks=True) == older
    assert words in caplog.text


def test_one_without_an_optimizer_is_not_resumed_from(tmp_path):
    write(tmp_path / "checkpoint-1", is_resumable=False)
    assert find_checkpoints(tmp_path)[0] == []


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([["checkpoint-6", "checkpoint-4"], None, None, None], "checkpoint-6"),
        ([["checkpoint-6", "checkpoint-4"], None, ["checkpoint-4"], None], "checkpoint-4"),
        ([["checkpoint-6"], None, [], None], None),
        ([["checkpoint-6"], None, ["checkpoint-4"], None], None),
    ],
    ids=["one folder", "a node was slower", "a node has none", "none is whole on both"],
)
def test_all_nodes_take_the_same(tmp_path, monkeypatch, seen, expected):
    monkeypatch.setattr(checkpoint_module, "gather_object", lambda _: seen)
    for looks in (True, False):
        found = last_checkpoint(tmp_path, looks=looks)
        assert found == (None if expected is None else tmp_path / expected)


@pytest.mark.parametrize("value", ["auto", "Auto", "true", "True"])
def test_the_last_one_is_chosen_by_its_number(tmp_path, value):
    for step in (5, 50, 20):
        write(tmp_path / f"checkpoint-{step}")
    assert choose_checkpoint(value, tmp_path, looks=True) == tmp_path / "checkpoint-50"


def test_auto_begins_where_there_is_none_and_true_does_not(tmp_path):
    for folder in (tmp_path, tmp_path / "not_made_yet"):
        assert choose_checkpoint("auto", folder, looks=True) is None
        with pytest.raises(ConfigError, match=r"finds no whole checkpoint.*auto would begin anew"):
            choose_checkpoint("true", folder, looks=True)


@pytest.mark.parametrize("value", [None, "false"])
def test_without_it_a_run_begins(tmp_path, value):
    write(tmp_path / "checkpoint-5")
    assert choose_checkpoint(value, tmp_path, looks=True) is None


def test_a_path_is_taken_as_it_is(tmp_path):
    assert choose_checkpoint(str(tmp_path), tmp_path / "out", looks=True) == tmp_path
    with pytest.raises(ConfigError, match="resume_from_checkpoint='nowhere': is no folder"):
        choose_checkpoint("nowhere", tmp_path, looks=True)


def test_the_marker_is_readable(tmp_path):
    content = json.loads((write(tmp_path / "checkpoint-1") / MARKER_NAME).read_text())
    names = {"num_ranks", "zero_stage", "is_resumable", "files", "run_id", "sequence"}
    assert set(content) == {"version"} | names


def test_errors_are_the_projects_own(tmp_path):
    with pytest.raises(CheckpointError, match="interrupted; resume from an older one"):
        read_marker(tmp_path)
