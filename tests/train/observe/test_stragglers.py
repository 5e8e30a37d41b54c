import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerState

from grpo_stream.train.observe import stragglers
from grpo_stream.train.observe.heartbeat import read_beats
from grpo_stream.train.observe.metrics import RunMetrics
from grpo_stream.train.observe.stragglers import DEVICE, HealthLog, device_seconds, find_straggler

COLUMNS = ["data_wait", DEVICE]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Rank 2 waits 4 of the step's 10 seconds for data, the others none.
        ([[0.0, 1.0], [0.0, 1.0], [4.0, 1.0]], (2, "data_wait", 4.0, 0.0, 10 / 6)),
        # The device of rank 1 takes three times as long as the median.
        ([[0.1, 1.0], [0.1, 3.0], [0.1, 1.0]], (1, DEVICE, 3.0, 1.0, 3.0)),
        # All wait: nobody is slower than the others.
        ([[5.0, 1.0], [5.0, 1.0]], (0, "data_wait", 5.0, 5.0, 1.0)),
    ],
)
def test_the_straggler(rows, expected):
    assert tuple(find_straggler(COLUMNS, rows, 10.0)) == pytest.approx(expected)


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Rank 0 of three; rank 1 has waited for data."""
    seconds = {"data_wait": 0.0}
    monkeypatch.setattr(
        stragglers, "gather", lambda own: torch.cat([own, own + torch.tensor([50.0, 0.0]), own])
    )
    monkeypatch.setattr(stragglers, "device_seconds", lambda _: 0.5)
    made = HealthLog(str(tmp_path), lambda: dict(seconds), keys=lambda: ["a"])
    return SimpleNamespace(made=made, seconds=seconds)


def test_the_log_names_the_slowest_rank(log, caplog):
    log.seconds["data_wait"] = 1.0
    with caplog.at_level(logging.WARNING):
        found = log.made.measure()
    assert found["health/slowest_rank"] == 1
    assert found["health/slowdown"] > 1.2
    assert found["health/device_slowdown"] == 1.0
    assert "rank 1 is slow: data_wait 51 s, the median is 1 s" in caplog.text


def test_seconds_are_counted_since_the_last_log(log, caplog):
    log.seconds["data_wait"] = 1.0
    log.made.measure()
    with caplog.at_level(logging.WARNING):
        log.made.measure()
    assert "data_wait 50 s, the median is 0 s" in caplog.text


def test_every_event_beats(log, tmp_path):
    log.made._heartbeat._seconds = 0.0
    state = TrainerState(global_step=5)
    for event, stage in {
        "on_step_begin": "step",
        "on_save": "save",
        "on_train_end": "ended",
    }.items():
        getattr(log.made, event)(None, state, None, model=None)
        (found,) = read_beats(tmp_path)
        assert (found.global_step, found.stage, found.keys) == (5, stage, ["a"])


def test_a_trainer_asks_at_each_log(log):
    values: dict[str, dict[str, list[float]]] = {"train": {}}
    callbacks: list[HealthLog] = []
    metrics = RunMetrics(values)
    log.made.add_to(SimpleNamespace(run_metrics=metrics, add_callback=callbacks.append))
    metrics.ask()
    assert values["train"]["health/slowest_rank"] == [1]
    assert callbacks == [log.made]


def test_a_device_takes_its_time():
    assert 0 < device_seconds(torch.device("cpu")) < 1
