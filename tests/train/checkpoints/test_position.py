import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.errors import ConfigError, CursorError
from grpo_stream.order.stream_plan import SourceCounts, StreamPlan
from grpo_stream.train.checkpoints.position import (
    Position,
    SavedPosition,
    StepCount,
    check_updates,
    check_whole_epochs,
)
from tests.stream import support


@pytest.fixture(scope="module")
def make_stream(tmp_path_factory):
    folder = support.write_numbered_set(tmp_path_factory.mktemp("shards"))

    def make(**changes):
        return support.make_stream(folder, **changes)

    return make


def plan_of(num_samples, num_lanes, segments=(), epoch=0):
    counts = [SourceCounts("digest", np.array([num_samples]))]
    return StreamPlan(counts, num_lanes, 0, 4, segments, epoch)


def walk(steps, start, num_updates):
    """The same, one update after another, as transformers goes: what is asked of ``end``."""
    epoch, micro_step = start
    for _ in range(num_updates):
        if micro_step >= steps.micro_steps_in(epoch):
            epoch, micro_step = epoch + 1, 0
        micro_step = min(micro_step + steps.micro_steps_per_update, steps.micro_steps_in(epoch))
    return epoch, -(-micro_step // steps.num_repeats)


@given(
    num_samples=st.integers(4, 40),
    num_repeats=st.integers(1, 4),
    per_update=st.integers(1, 5),
    done=st.integers(0, 2),
    num_updates=st.integers(0, 30),
)
def test_the_end_is_where_counting_updates_leads(
    num_samples, num_repeats, per_update, done, num_updates
):
    segments = ((2, done),) if done else ()
    steps = StepCount(plan_of(num_samples, 4, segments, 1), num_repeats, per_update)
    start = Position(1, 0)
    assert steps.end(start, num_updates) == walk(steps, start, num_updates)


def test_updates_that_are_left():
    steps = StepCount(plan_of(26, 4, ((2, 5),), 1), num_repeats=2, micro_steps_per_update=3)
    assert steps.plan.num_batches_in(1) == 4  # 16 of 26 samples are left
    assert [steps.updates_in(epoch) for epoch in (1, 2)] == [3, 4]
    assert steps.updates_until(Position(1, 3), 3) == 2 + 4
    assert steps.updates_until(Position(1, 3), 2) == 2
    assert steps.updates_until(Position(3, 0), 3) == 0


class TestSavedPosition:
    def test_survives_being_written(self, make_stream):
        saved = SavedPosition(make_stream(num_lanes=4).cursor(1, 2), (3, 4))
        state = json.loads(json.dumps(saved.to_dict()))
        assert SavedPosition.from_dict(state) == saved

    def test_a_bare_cursor_of_an_older_checkpoint_is_read(self, make_stream):
        cursor = make_stream(num_lanes=4).cursor(1, 2)
        assert SavedPosition.from_dict(cursor.to_dict()) == SavedPosition(cursor, None)

    @pytest.mark.parametrize("state", [None, [], {"epoch": 1}])
    def test_no_position(self, state):
        with pytest.raises(CursorError):
            SavedPosition.from_dict(state)

    @pytest.mark.parametrize("in_use", [3, [4, 4], [-1, 4], [1], ["1", 4]])
    def test_damage(self, make_stream, in_use):
        state = make_stream(num_lanes=4).cursor().to_dict() | {"micro_steps_in_use": in_use}
        with pytest.raises(CursorError, match="micro_steps_in_use"):
            SavedPosition.from_dict(state)

    @pytest.mark.parametrize(("num_repeats", "expected"), [(4, 11), (2, 4), (8, 16)])
    def test_a_batch_in_use_is_begun_anew_where_it_is_cut_otherwise(
        self, make_stream, num_repeats, expected
    ):
        saved = SavedPosition(make_stream(num_lanes=4).cursor(1, 2), (3, 4))
        assert saved.micro_step(num_repeats) == expected

    def test_other_lanes_need_to_be_allowed(self, make_stream):
        saved = SavedPosition(make_stream(num_lanes=4).cursor(1, 2), (3, 4))
        stream = make_stream(num_lanes=3)
        with pytest.raises(CursorError, match="allow_new_lanes=True"):
            saved.enter(stream, allow_new_lanes=False)
        entered = saved.enter(stream, allow_new_lanes=True)
        assert (entered.cursor.epoch, entered.cursor.batch_index) == (1, 0)
        assert entered.cursor.segments == ((4, 2),)
        assert entered.micro_step(4) == 0

    def test_allowing_other_lanes_allows_nothing_else(self, make_stream):
        saved = SavedPosition(make_stream(num_lanes=4).cursor(1, 2), (0, 1))
        stream = make_stream(num_lanes=3, stream_seed=1)
        with pytest.raises(CursorError, match="seed: saved 0, now 1"):
            saved.enter(stream, allow_new_lanes=True)

    def test_less_than_a_batch_left_is_the_next_epoch(self, make_stream):
        stream = make_stream(num_lanes=4)
        saved = SavedPosition(stream.cursor(0, stream.num_batches), (0, 1))
        entered = saved.enter(make_stream(num_lanes=5), allow_new_lanes=True)
        assert (entered.cursor.epoch, entered.cursor.batch_index) == (1, 0)


def test_an_update_begins_where_one_has_ended():
    steps = StepCount(plan_of(26, 4), num_repeats=2, micro_steps_per_update=4)
    check_updates(Position(0, 8), steps)
    with pytest.raises(ConfigError, match=r"gradient_accumulation_steps=4.* 6 .*example 2"):
        check_updates(Position(0, 6), steps)


@pytest.mark.parametrize(("num_epochs", "is_whole"), [(3.0, True), (1, True), (0.5, False)])
def test_only_whole_epochs_have_an_end(num_epochs, is_whole):
    if is_whole:
        check_whole_epochs(num_epochs)
    else:
        with pytest.raises(ConfigError, match="use max_steps"):
            check_whole_epochs(num_epochs)
