"""One folder and one value a step in TensorBoard's log of a run that was resumed."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
