"""One folder and one value a step in TensorBoard's log of a run that was resumed; full disks."""

import errno
import os

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from transformers.utils import logging

from grpo_stream.train.observe.difficulty_log import FILE_NAME, read_difficulty
from grpo_stream.train.setup.arguments import LogArguments
from tests.train.runs import SAVING, run


def scalars(folder):
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in log.Scalars("train/learning_rate")]


def test_a_resumed_run_continues_in_its_folder_without_what_came_after(
    make_trainer, make_args, tmp_path
):
    args = {"report_to": ["tensorboard"], **SAVING}
    run(make_trainer, make_args(**args), stop_after=3)
    (folder,) = (tmp_path / "out/runs").iterdir()
    before = scalars(folder)
    assert [step for step, _ in before] == [1, 2, 3]
    checkpoint = str(tmp_path / "out/checkpoint-2")
    args |= {"learning_rate": 5e-4, "lr_scheduler_type": "constant"}
    run(make_trainer, make_args(**args), resume_from=checkpoint)
    assert [*(tmp_path / "out/runs").iterdir()] == [folder]
    after = scalars(folder)
    assert [step for step, _ in after] == [1, 2, 3, 4]
    assert after[:2] == before[:2]
    assert len([*folder.glob("events.*")]) == 2


def test_a_run_that_begins_anew_has_a_folder_of_its_own(make_trainer, make_args, tmp_path):
    args = {"report_to": ["tensorboard"], "max_steps": 1}
    old = tmp_path / "out/runs/old/events.out.tfevents.1.host"
    old.parent.mkdir(parents=True)
    old.touch()
    run(make_trainer, make_args(**args))
    assert len([*(tmp_path / "out/runs").iterdir()]) == 2
    assert [*old.parent.iterdir()] == [old]


def test_a_full_disk_ends_the_logs_and_not_the_run(
    make_trainer, make_args, tmp_path, monkeypatch, caplog
):
    def add_scalar(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", add_scalar)
    monkeypatch.setattr(logging.get_logger("grpo_stream.train"), "propagate", True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / FILE_NAME).symlink_to("/dev/full")
    args = make_args(report_to=["tensorboard"])
    trainer, _ = run(make_trainer, args, log=LogArguments(difficulty_log=True))
    assert trainer.state.global_step == 2
    said = [one.message for one in caplog.records if "no more is written" in one.message]
    assert said == [
        f"no more is written to {tmp_path / 'out' / FILE_NAME}: No space left on device",
        "no more is written to TensorBoard's log: [Errno 28] No space left on device",
    ]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    line = '{"key": "%s", "global_step": 1, "mean": 0.5, "std": 0.0}\n'
    log = tmp_path / FILE_NAME
    log.write_text(line % "a" + (line % "b")[:20] + line % "c" + line % "d" + (line % "e")[:-3])
    assert [one.key for one in read_difficulty(log)] == ["a", "d"]
