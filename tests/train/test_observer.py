import importlib
import json
import time
from typing import Any

import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.train import observer
from grpo_stream.train.observe.difficulty_log import FILE_NAME, read_difficulty
from grpo_stream.train.observe.phases import PHASES
from grpo_stream.train.observe.stragglers import HealthLog
from grpo_stream.train.observe.watchdog import EXIT_STALLED, Watchdog
from grpo_stream.train.setup.arguments import LogArguments
from tests.train.runs import spread_reward


def test_a_run_says_where_its_time_went_and_what_was_answered(
    make_trainer, make_args, shapes, tmp_path
):
    def rewards(completions, **_):
        trainer._observer.wait()  # else a slow machine leaves the second one out
        time.sleep(0.05)
        return spread_reward(completions)

    args = make_args(
        beta=0.1, report_to="tensorboard", save_strategy="steps", save_steps=2, max_steps=2
    )
    log = LogArguments(rollout_sheet_steps=1, difficulty_log=True)
    trainer = make_trainer(args, reward_funcs=rewards, log=log)
    HealthLog.of_trainer(trainer).add_to(trainer)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in history:
        spent = {name: entry[f"time/{name}"] for name in PHASES}
        assert all(seconds > 0 for seconds in spent.values()), spent
        assert sum(spent.values()) == pytest.approx(entry["time/step"])
        assert spent["rewards"] >= 0.05
        waited = entry["time/data_wait_share"] * entry["time/step"]
        assert 0 < waited <= spent["data_wait"] + 1e-6
        assert entry["speed/samples_per_second"] == pytest.approx(4 / entry["time/step"])
        num_tokens = 8 * entry["completions/mean_length"]
        assert entry["speed/completion_tokens_per_second"] == pytest.approx(
            num_tokens / entry["time/step"]
        )
        assert entry["speed/rollout_tokens_per_second"] == pytest.approx(
            num_tokens / spent["rollout"]
        )
    assert trainer.phases.totals()["checkpoint"] > 0
    told = [entry for entry in trainer.state.log_history if "health/slowdown" in entry]
    assert told == history  # not the summary

    out = tmp_path / "out"
    keys = [f"{number:06d}" for number in range(len(shapes.records))]
    found = json.loads((out / "rollouts/step-000001.json").read_text())
    assert [len(group["answers"]) for group in found["groups"]] == [2] * 4
    assert {group["key"] for group in found["groups"]} <= set(keys)
    assert [a["reward"] for a in found["groups"][1]["answers"]] == [2, 3]
    lines = list(read_difficulty(out / FILE_NAME))
    assert [line.global_step for line in lines] == [0] * 4 + [1] * 4
    assert [line.key for line in lines[4:]] == [group["key"] for group in found["groups"]]
    assert [(line.mean, line.std) for line in lines[:2]] == [(0.5, 0.5), (2.5, 0.5)]

    (events,) = (out / "runs").rglob("events.out.*")
    reader: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    board = reader.EventAccumulator(str(events)).Reload()
    scalars = {"train/time/rollout", "train/reward", "train/health/slowdown"}
    assert scalars <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Images("rollouts")] == [0, 1]


def test_the_first_step_behind_a_resume_is_one_step(make_trainer, make_args, tmp_path):
    args = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    make_trainer(make_args(**args)).train()
    trainer = make_trainer(make_args(**args, max_steps=3))
    before = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    last = trainer.state.log_history[-2]
    assert last["step"] == 3
    assert 0.02 < last["time/step"] < time.perf_counter() - before
    assert last["speed/samples_per_second"] == pytest.approx(4 / last["time/step"])


def test_a_reward_that_never_returns_ends_the_run(
    make_trainer, make_args, tmp_path, monkeypatch, capsys
):
    codes: list[int] = []

    def ended(*args, **kwargs):
        return Watchdog(*args, **kwargs, end=codes.append)

    monkeypatch.setattr(observer, "Watchdog", ended)
    calls: list[float] = []

    def rewards(completions, **_):
        calls.append(time.monotonic())
        while len(calls) == 2 and not codes and time.monotonic() - calls[-1] < 30:
            time.sleep(0.05)
        return spread_reward(completions)

    trainer = make_trainer(reward_funcs=rewards, log=LogArguments(step_timeout_seconds=2))
    trainer.train()
    assert codes == [EXIT_STALLED]
    report = json.loads((tmp_path / "out/stalls/rank-00000.json").read_text())
    batch = trainer.train_stream.read_batch(0, 1)
    assert (report["stage"], report["global_step"]) == ("rewards", 1)
    assert report["in_use"] == [sample.key for sample in batch]
    assert "behind: rank 0 " in capsys.readouterr().err


def test_what_is_waited_for_is_named_by_its_place(make_trainer):
    trainer = make_trainer()
    trainer._step = 2  # micro-steps of a generation batch
    named = trainer._observer.in_use("data_wait")
    places = [one.place for one in trainer.train_stream.slot_places(0, 1)]
    assert [name.rpartition(": ")[2] for name in named] == [
        f"shard-{4 * place.shard:06d}.tar sample {place.sample}" for place in places
    ]


@pytest.mark.parametrize(
    ("name", "value", "works"),
    [
        ("rollout_sheet_steps", -1, "50"),
        ("rollout_sheet_groups", 0, "4"),
        ("logp_difference_steps", -1, "50"),
        ("step_timeout_seconds", -5.0, "1200"),
        ("step_timeout_seconds", float("nan"), "1200"),
    ],
)
def test_settings_are_checked(name, value, works):
    with pytest.raises(ConfigError, match=works) as caught:
        LogArguments(**{name: value}).check()
    assert caught.value.field == name
