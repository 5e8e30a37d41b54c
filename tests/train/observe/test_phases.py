from types import SimpleNamespace

import pytest

from grpo_stream.train.observe.metrics import Work, step_metrics
from grpo_stream.train.observe.phases import PHASES, Phases


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


class TestStepMetrics:
    def test_are_per_global_step_and_per_second(self):
        seconds = {"data_wait": 1.0, "rollout": 5.0, "update": 3.0, "other": 1.0, "evaluate": 90.0}
        metrics = step_metrics(seconds, Work(20, 500, 0.5), num_steps=2)
        assert metrics["time/rollout"] == 2.5
        assert metrics["time/step"] == 5
        assert metrics["time/evaluate"] == 90
        assert metrics["time/data_wait_share"] == 0.05
        assert metrics["speed/samples_per_second"] == 2
        assert metrics["speed/completion_tokens_per_second"] == 50
        assert metrics["speed/rollout_tokens_per_second"] == 100
        assert sum(metrics[f"time/{name}"] for name in PHASES) == metrics["time/step"]
        assert "time/checkpoint" not in metrics

    def test_nothing_done_in_no_time(self):
        assert set(step_metrics({}, Work(), num_steps=1).values()) == {0}
