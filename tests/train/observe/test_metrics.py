from collections import defaultdict

import pytest

from grpo_stream.train.observe.metrics import RunMetrics, Work, step_metrics
from grpo_stream.train.observe.phases import PHASES


@pytest.fixture
def values():
    """As trl keeps them."""
    return {"train": defaultdict(list), "eval": defaultdict(list)}


class TestRunMetrics:
    def test_values_gather_until_trl_logs_them(self, values):
        metrics = RunMetrics(values)
        for value in (1.0, 2.0):
            metrics.log_metric("train", "group/one", value)
        metrics.log_metric("eval", "group/one", 3.0)
        assert values == {"train": {"group/one": [1, 2]}, "eval": {"group/one": [3]}}
        assert metrics.last("train", "group/one") == 2

    def test_functions_are_asked_at_a_log_in_their_order(self, values):
        metrics, numbers = RunMetrics(values), iter(range(4))
        metrics.at_each_log(lambda: {"a/b": next(numbers)})
        metrics.at_each_log(lambda: {"a/c": next(numbers)})
        assert values["train"] == {}
        metrics.ask()
        metrics.ask()
        assert values == {"train": {"a/b": [0, 2], "a/c": [1, 3]}, "eval": {}}

    def test_what_is_added_inside_counts_several_times(self, values):
        metrics = RunMetrics(values)
        values["eval"]["reward"].append(1.0)
        with metrics.repeated("eval", 3):
            values["eval"]["reward"].append(2.0)
            values["eval"]["new"].append(4.0)
        assert values["eval"] == {"reward": [1, 2, 2, 2], "new": [4, 4, 4]}

    def test_a_state_is_restored_in_place(self, values):
        metrics = RunMetrics(values)
        metrics.log_metric("train", "a/b", 1.0)
        state = metrics.state()
        values["train"].clear()
        metrics.log_metric("train", "a/other", 5.0)
        metrics.restore(state)
        assert values["train"] == {"a/b": [1]}


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
