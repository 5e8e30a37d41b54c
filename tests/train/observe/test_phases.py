from types import SimpleNamespace

import pytest

from grpo_stream.train.observe.phases import Phases


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def run(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def phases(clock):
    return Phases(clock)


def test_an_inner_phase_stops_the_outer_ones_clock(phases, clock):
    clock.run(1)
    with phases("update"):
        clock.run(2)
        with phases("rollout"):
            clock.run(4)
            with phases("rewards"):
                clock.run(8)
            clock.run(16)
        clock.run(32)
    clock.run(64)
    assert phases.totals() == {"other": 65, "update": 34, "rollout": 20, "rewards": 8}
    assert sum(phases.totals().values()) == clock.now - 100


def test_all_that_happens_in_a_pause_is_counted_as_the_pause(phases, clock):
    with phases("evaluate"):
        clock.run(1)
        with phases("rollout"):
            assert phases.stage.name == "evaluate: rollout"
            clock.run(2)
            with phases("rewards"):
                clock.run(4)
    assert phases.totals() == {"other": 0, "evaluate": 7}


def test_the_present_phase_counts_up_to_now(phases, clock):
    with phases("rollout"):
        clock.run(3)
        assert phases.totals()["rollout"] == 3
        assert phases.totals()["rollout"] == 3
        assert (phases.stage.name, phases.stage.since) == ("rollout", 100)
    assert phases.totals()["rollout"] == 3


def test_a_phase_ends_with_its_exception(phases, clock):
    with pytest.raises(ZeroDivisionError), phases("rewards"):
        clock.run(1 / 0)
    clock.run(2)
    assert phases.totals() == {"other": 2, "rewards": 0}
    assert phases.stage.name == "other"


def test_every_change_has_a_number(phases):
    numbers = [phases.stage.number]
    with phases("rollout"):
        numbers.append(phases.stage.number)
    numbers.append(phases.stage.number)
    phases.restart()
    numbers.append(phases.stage.number)
    assert numbers == [0, 1, 2, 3]


def test_restart_forgets_what_was_before(phases, clock):
    with phases("update"):
        clock.run(5)
    phases.restart()
    clock.run(1)
    assert phases.totals() == {"other": 1}


def test_calls_of_others_can_be_timed(phases, clock):
    engine = SimpleNamespace(step=lambda seconds: clock.run(seconds) or "done")
    for _ in range(2):  # the second time changes nothing
        phases.time_calls(engine, "step", "optimizer")
    with phases("update"):
        assert engine.step(3) == "done"
    assert phases.totals() == {"other": 0, "update": 0, "optimizer": 3}
