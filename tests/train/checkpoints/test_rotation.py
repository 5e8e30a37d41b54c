import logging
import os
import time

import pytest

from grpo_stream.train.checkpoints.rotation import rotate
from grpo_stream.train.checkpoints.whole_checkpoint import (
    begin,
    find_checkpoints,
    next_sequence,
    seal,
)


def save(out, step, *, run_id="a", **marker):
    folder = out / f"checkpoint-{step}"
    begin(folder)
    (folder / "cursor.json").write_text("{}")
    marker = {"sequence": next_sequence(out), "run_id": run_id} | marker
    seal(folder, num_ranks=1, zero_stage=None, **marker)
    return folder


def names(out):
    return sorted(path.name for path in out.glob("checkpoint-*"))


def set_clock(folder, days):
    then = time.time() + days * 86400
    for path in (folder / "complete.json", folder):
        os.utime(path, (then, then))


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_was_set_removes_nothing_new(tmp_path, days):
    for step in range(2, 18, 2):
        folder = save(tmp_path, step)
        rotate(tmp_path, 2, newest=folder, best=None)
        set_clock(folder, days * (20 - step))
    assert names(tmp_path) == ["checkpoint-14", "checkpoint-16"]


def test_a_run_that_went_back_keeps_what_it_saves_now(tmp_path):
    for step in (2, 4, 6):
        save(tmp_path, step)
    folder = save(tmp_path, 3)  # resumed from checkpoint-2
    rotate(tmp_path, 2, newest=folder, best=None)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-6"]
    assert find_checkpoints(tmp_path)[0][0] == folder


def test_older_checkpoints_go_by_step(tmp_path):
    for step in (10, 9, 8):
        save(tmp_path, step, sequence=0, run_id="")
    folder = save(tmp_path, 11, run_id="")
    rotate(tmp_path, 2, newest=folder, best=None)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-11"]


def test_the_best_one_stays_and_interrupted_ones_go_first(tmp_path, caplog):
    best, partial, whole = save(tmp_path, 2), tmp_path / "checkpoint-99", save(tmp_path, 4)
    partial.mkdir()
    newest = save(tmp_path, 6)
    with caplog.at_level(logging.WARNING):
        rotate(tmp_path, 3, newest=newest, best=best)
        assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
        rotate(tmp_path, 1, newest=newest, best=best)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
    assert [str(path) in caplog.text for path in (partial, whole, best)] == [True, True, False]


def test_another_runs_checkpoints_stay(tmp_path):
    save(tmp_path, 8, run_id="another")
    for step in (2, 4, 6):
        rotate(tmp_path, 2, newest=save(tmp_path, step), best=None)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]


@pytest.mark.parametrize("limit", [None, 0])
def test_without_a_limit_all_stay(tmp_path, limit):
    for step in (2, 4):
        rotate(tmp_path, limit, newest=save(tmp_path, step), best=None)
    assert len(names(tmp_path)) == 2
