import errno
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from transformers import TrainerCallback

from grpo_stream.errors import CheckpointError, ConfigError, CursorError
from grpo_stream.train.checkpoints import output_lease
from grpo_stream.train.checkpoints.run_id import read_run_id
from grpo_stream.train.checkpoints.whole_checkpoint import (
    MARKER_NAME,
    find_checkpoints,
    last_checkpoint,
    read_marker,
    seal,
)
from tests.train.runs import SAVING, logged, place_of, run, weights_of
from tests.train.support import write_shapes

TIMED = ("time/", "speed/", "health/", "stream/wait", "stream/num_samples", "step_time", "train_")
"""Logged values that depend on the clock."""


def log_of(trainer):
    entries = [
        {name: value for name, value in entry.items() if not name.startswith(TIMED)}
        for entry in trainer.state.log_history
    ]
    return [entry for entry in entries if len(entry) > 2]  # not the summary: epoch and step


def assert_same_run(resumed, whole):
    assert log_of(resumed) == log_of(whole)
    weights, wanted = weights_of(resumed), weights_of(whole)
    assert [name for name in wanted if not torch.equal(weights[name], wanted[name])] == []


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """What was trained before for another test, by its settings; and a folder."""
    return {}, tmp_path_factory.mktemp("known")


@pytest.fixture
def begin(known, make_trainer, make_args, tmp_path):
    """Trains in ``out`` until a checkpoint, or copies such a beginning; the keys of its batches."""
    begun, folder = known
    out = tmp_path / "out"

    def begin(stop_after, **settings):
        name = json.dumps([stop_after, settings], sort_keys=True)
        if name in begun:
            copy, batches = begun[name]
            shutil.copytree(copy, out, dirs_exist_ok=True)
            return batches
        _, batches = run(make_trainer, make_args(**settings), stop_after=stop_after)
        copy = folder / str(len(begun))
        shutil.copytree(out, copy, ignore=shutil.ignore_patterns(output_lease.LEASE_NAME))
        begun[name] = copy, batches
        return batches

    return begin


@pytest.fixture
def undisturbed(known, make_trainer, make_args):
    """A run that nobody stops and that saves nothing: the trainer, and the keys of its batches."""
    ended, _ = known

    def train(**settings):
        name = json.dumps(settings, sort_keys=True)
        if name not in ended:
            ended[name] = run(make_trainer, make_args(**settings | {"save_strategy": "no"}))
        return ended[name]

    return train


class TestResume:
    @pytest.mark.parametrize(
        ("num_done", "changes"),
        [
            (1, {}),
            (3, {"beta": 0.1}),
            # 4 micro-steps per generation batch, a global step after every second.
            (3, {"num_iterations": 2, "max_steps": 6, "logging_steps": 2}),
            (1, {"num_iterations": 2, "beta": 0.1, "logging_steps": 3, "log_completions": True}),
        ],
        ids=["first", "at an epoch's end", "within a batch and a log", "with a reference model"],
    )
    def test_is_the_same_run(
        self, make_trainer, make_args, begin, undisturbed, tmp_path, num_done, changes
    ):
        args = SAVING | changes
        whole, expected = undisturbed(**args)
        first = begin(num_done, **args)
        checkpoint = tmp_path / "out" / f"checkpoint-{num_done}"
        resumed, rest = run(make_trainer, make_args(**args), resume_from=str(checkpoint))
        assert first + rest == expected
        assert_same_run(resumed, whole)

    def test_is_where_the_cursor_says(self, make_trainer, make_args, tmp_path):
        run(make_trainer, make_args(**SAVING))
        # An epoch has 3 generation batches.
        places = [place_of(tmp_path / "out" / f"checkpoint-{step}") for step in range(1, 5)]
        assert places == [(0, 1), (0, 2), (1, 0), (1, 1)]

    def test_of_a_resume(self, make_trainer, make_args, undisturbed, tmp_path):
        whole, expected = undisturbed(**SAVING)
        read, resume_from = [], None
        for stop_after in (1, 2, 4):
            trainer, batches = run(
                make_trainer, make_args(**SAVING), stop_after=stop_after, resume_from=resume_from
            )
            read += batches
            resume_from = str(tmp_path / "out" / f"checkpoint-{stop_after}")
        assert read == expected
        assert_same_run(trainer, whole)

    def test_of_forked_groups(self, make_trainer, make_args, tmp_path):
        """Which prove themselves again after the resume, and change nothing by it."""
        way = {"shared_prefix": "forked"}
        whole, expected = run(make_trainer, make_args(**SAVING | {"save_strategy": "no"}), **way)
        _, batches = run(make_trainer, make_args(**SAVING), stop_after=1, **way)
        checkpoint = str(tmp_path / "out" / "checkpoint-1")
        trainer, rest = run(make_trainer, make_args(**SAVING), resume_from=checkpoint, **way)
        assert batches + rest == expected
        assert_same_run(trainer, whole)
        assert trainer.prefix_way == "forked"

    def test_a_batch_whose_prompts_have_changed_is_sampled_again(
        self, make_trainer, make_args, begin, undisturbed, tmp_path
    ):
        args = SAVING | {"num_iterations": 2, "max_steps": 6, "logging_steps": 2}
        _, expected = undisturbed(**args)
        begin(3, **args)
        checkpoint = tmp_path / "out" / "checkpoint-3"
        path = checkpoint / "run_state_0.pt"
        state = torch.load(path)
        state["generation"]["keys"][0] = "another"
        torch.save(state, path)
        seal(checkpoint, num_ranks=1, zero_stage=None)
        _, rest = run(make_trainer, make_args(**args), resume_from=str(checkpoint))
        assert rest == expected[1:]

    def test_bad_samples_go_on_counting(self, make_trainer, make_args, shapes):
        records = [*shapes.records]
        records[1] = records[1] | {"image": "missing.png"}
        data = {"train_dataset": records, "images_root": shapes.images}
        run(make_trainer, make_args(**SAVING), stop_after=3, **data)
        trainer, _ = run(make_trainer, make_args(**SAVING), resume_from=True, **data)
        # The second epoch meets it again.
        assert trainer._feed.bad_samples == {"record 1": "image_not_found"}
        assert logged(trainer, "stream/num_bad_samples")[-1] == 1

    @pytest.mark.parametrize(("max_steps", "num_global_steps"), [(4, 4), (-1, 5)])
    def test_with_more_updates_for_the_same_prompts(
        self, make_trainer, make_args, begin, undisturbed, max_steps, num_global_steps
    ):
        _, expected = undisturbed(**SAVING)
        begin(1, **SAVING)
        # Each of the 2 generation batches that are left now takes 2 global steps.
        length = {"max_steps": max_steps, "num_train_epochs": 1}
        args = make_args(**SAVING | length | {"gradient_accumulation_steps": 1})
        trainer, rest = run(make_trainer, args, resume_from=True)
        assert rest == expected[1:3]
        assert trainer.state.global_step == num_global_steps

    def test_a_finished_run_ends_at_once(self, make_trainer, make_args):
        whole, _ = run(make_trainer, make_args(**SAVING))
        again, batches = run(make_trainer, make_args(**SAVING), resume_from=True)
        assert batches == []
        assert_same_run(again, whole)


class TestWholeness:
    def test_the_last_whole_one_is_found(self, make_trainer, make_args, begin, tmp_path, caplog):
        begin(3, **SAVING)
        (tmp_path / "out/checkpoint-3" / MARKER_NAME).unlink()
        with (tmp_path / "out/checkpoint-2/optimizer.pt").open("r+b") as file:
            file.truncate(100)
        trainer, rest = run(make_trainer, make_args(**SAVING), resume_from=True)
        assert len(rest) == 3
        assert trainer.state.global_step == 4
        assert "checkpoint-3 is no whole checkpoint: it has no complete.json" in caplog.text
        assert "optimizer.pt has 100 bytes in place of" in caplog.text
        whole, _ = find_checkpoints(tmp_path / "out")
        assert [path.name for path in whole] == [f"checkpoint-{n}" for n in (4, 3, 2, 1)]

    def test_a_full_disk_leaves_the_last_one_whole(
        self, make_trainer, make_args, undisturbed, tmp_path, monkeypatch
    ):
        args = SAVING | {"save_total_limit": 1}
        whole, _ = undisturbed(**SAVING)
        saved = torch.save

        def save(content, path, **kwargs):
            saved(content, path, **kwargs)
            if str(path).endswith("checkpoint-2/optimizer.pt"):
                raise OSError(errno.ENOSPC, "No space left on device")

        out = tmp_path / "full"
        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", save)
            with pytest.raises(
                CheckpointError, match=r"checkpoint-2 could not be written.*No spac"
            ):
                run(make_trainer, make_args(**args, output_dir=str(out)))
        assert [path.name for path in find_checkpoints(out)[0]] == ["checkpoint-1"]
        resumed, _ = run(make_trainer, make_args(**args, output_dir=str(out)), resume_from=True)
        assert_same_run(resumed, whole)
        assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-4"}

    def test_what_an_interrupted_writing_left_goes(self, make_trainer, make_args, tmp_path):
        rest = tmp_path / "out/checkpoint-1/global_step1"
        rest.mkdir(parents=True)
        (rest / "zero_pp_rank_7_mp_rank_00_optim_states.pt").write_bytes(b"half")
        run(make_trainer, make_args(**SAVING), stop_after=1)
        marker = read_marker(tmp_path / "out/checkpoint-1")
        assert not rest.exists()
        assert {"model.safetensors", "optimizer.pt", "cursor.json", "trainer_state.json"} <= set(
            marker.files
        )

    def test_the_best_model_is_kept_and_loaded_whole(
        self, make_trainer, make_args, shapes, tmp_path
    ):
        rewards = iter([0.0, 1.0, 0.5])

        class Improving(TrainerCallback):
            def on_evaluate(self, args, state, control, metrics, **_):
                metrics["eval_reward"] = next(rewards)

        args = make_args(
            **SAVING | {"max_steps": 3},
            eval_strategy="steps",
            eval_steps=1,
            per_device_eval_batch_size=4,
            load_best_model_at_end=True,
            metric_for_best_model="reward",
            save_total_limit=1,
        )
        another = tmp_path / "out/checkpoint-9"
        another.mkdir(parents=True)
        seal(another, num_ranks=1, zero_stage=None, run_id="another")
        trainer = make_trainer(
            args,
            eval_dataset=shapes.records[:2],
            images_root=shapes.images,
            old_checkpoints="keep",
        )
        trainer.add_callback(Improving())
        trainer.train()
        best = tmp_path / "out" / "checkpoint-2"
        assert trainer.state.best_model_checkpoint == str(best)
        assert find_checkpoints(tmp_path / "out")[0] == [best, another]
        saved = type(trainer.model).from_pretrained(best).state_dict()
        weights = trainer.model.state_dict()
        assert [name for name in saved if not torch.equal(weights[name], saved[name])] == []


class TestChangedSettings:
    """Of optimizer and schedule: what is asked for at the resume holds."""

    COSINE = SAVING | {"lr_scheduler_type": "cosine", "learning_rate": 1e-3}

    def rates(self, make_trainer, make_args, begin, now):
        begin(2, **self.COSINE)
        trainer, _ = run(make_trainer, make_args(**self.COSINE | now), resume_from=True)
        return trainer, logged(trainer, "learning_rate")

    @pytest.mark.parametrize(
        "now",
        [
            {"learning_rate": 1e-6},
            {"max_steps": 8},
            {"lr_scheduler_type": "linear"},
            {"warmup_steps": 3},
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 9e-4}},
        ],
        ids=lambda now: next(iter(now)),
    )
    def test_of_a_schedule(self, make_trainer, make_args, begin, undisturbed, caplog, now):
        whole, _ = undisturbed(**self.COSINE | now)
        _, rates = self.rates(make_trainer, make_args, begin, now)
        assert rates[2:] == logged(whole, "learning_rate")[2:]
        for name in now:
            assert f"resumed with another {name}: " in caplog.text

    def test_a_longer_run_has_no_update_at_rate_0(self, make_trainer, make_args):
        run(make_trainer, make_args(**self.COSINE))
        args = make_args(**self.COSINE | {"max_steps": 6})
        trainer, _ = run(make_trainer, args, resume_from=True)
        rates = logged(trainer, "learning_rate")
        assert rates[4:] == pytest.approx([2.5e-4, 6.7e-5], rel=0.01)

    def test_of_an_optimizer(self, make_trainer, make_args, begin, caplog):
        now = {"weight_decay": 0.5, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-5}
        trainer, _ = self.rates(make_trainer, make_args, begin, now)
        groups = trainer.optimizer.param_groups
        assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
        assert {(group["betas"], group["eps"]) for group in groups} == {((0.8, 0.9), 1e-5)}
        assert "resumed with another weight_decay: 0.0 -> 0.5" in caplog.text

    def test_of_a_checkpoint_that_does_not_say(self, make_trainer, make_args, begin, tmp_path):
        begin(2, **self.COSINE)
        checkpoint = tmp_path / "out/checkpoint-2"
        (checkpoint / "optimizer_settings.json").unlink()
        seal(checkpoint, num_ranks=1, zero_stage=None)
        args = make_args(**self.COSINE | {"learning_rate": 1e-6, "weight_decay": 0.5})
        trainer, _ = run(make_trainer, args, resume_from=str(checkpoint))
        assert logged(trainer, "learning_rate")[2:] == pytest.approx([5e-7, 1.46e-7], rel=0.01)
        assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.5

    def test_of_another_optimizer_is_refused(self, make_trainer, make_args, begin):
        words = r"optim='sgd': .*checkpoint-2 was written with 'adamw_torch"
        with pytest.raises(ConfigError, match=words):
            self.rates(make_trainer, make_args, begin, {"optim": "sgd"})


class TestMovingReference:
    ARGS = SAVING | {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1}

    def test_is_resumed(self, make_trainer, make_args):
        whole, _ = run(make_trainer, make_args(**self.ARGS | {"save_strategy": "no"}))
        run(make_trainer, make_args(**self.ARGS), stop_after=2)
        resumed, _ = run(make_trainer, make_args(**self.ARGS), resume_from=True)
        assert_same_run(resumed, whole)
        its, wanted = (dict(one.ref_model.named_parameters()) for one in (resumed, whole))
        assert [name for name in wanted if not torch.equal(its[name], wanted[name])] == []
        start = make_trainer(make_args(**self.ARGS)).ref_model
        assert any(not torch.equal(wanted[name], p) for name, p in start.named_parameters())

    def test_of_an_older_checkpoint_is_refused(self, make_trainer, make_args, tmp_path):
        run(make_trainer, make_args(**self.ARGS), stop_after=1)
        checkpoint = tmp_path / "out/checkpoint-1"
        for name in ("reference.safetensors", "optimizer_settings.json"):
            (checkpoint / name).unlink()
        seal(checkpoint, num_ranks=1, zero_stage=None)
        with pytest.raises(ConfigError, match=r"sync_ref_model=True: .*does not hold it"):
            run(make_trainer, make_args(**self.ARGS), resume_from=str(checkpoint))

    def test_that_moves_from_now_on(self, make_trainer, make_args, caplog):
        run(make_trainer, make_args(**self.ARGS | {"sync_ref_model": False}), stop_after=1)
        run(make_trainer, make_args(**self.ARGS), resume_from=True)
        assert "resumed with another sync_ref_model: False -> True" in caplog.text


class TestRuns:
    """Which run a folder, and a checkpoint, is of."""

    def test_beginning_anew_beside_checkpoints(
        self, make_trainer, make_args, begin, tmp_path, caplog
    ):
        out = tmp_path / "out"
        begin(3, **SAVING)
        with pytest.raises(ConfigError, match=r"holds checkpoints of another run \(checkpoint-1, "):
            run(make_trainer, make_args(**SAVING))
        run(make_trainer, make_args(**SAVING), stop_after=1, old_checkpoints="keep")
        trainer, _ = run(
            make_trainer, make_args(**SAVING), resume_from=True, old_checkpoints="keep"
        )
        # The older run's checkpoint-3 has the higher number. Then the newer one's took its place.
        assert "checkpoint-3 is of another run" in caplog.text
        assert trainer.state.global_step == 4
        assert (out / "earlier_runs/003/checkpoint-3").is_dir()
        run(make_trainer, make_args(**SAVING), stop_after=1, old_checkpoints="move")
        assert len(list((out / "earlier_runs/004").iterdir())) == 4
        assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-1"]

    def test_auto_before_the_first_checkpoint_is_the_same_run(
        self, make_trainer, make_args, begin, tmp_path
    ):
        begin(3, **SAVING)
        nothing = {"save_strategy": "no"}
        run(make_trainer, make_args(**SAVING | nothing), stop_after=1, old_checkpoints="keep")
        run_id = read_run_id(tmp_path / "out")
        args = make_args(**SAVING, resume_from_checkpoint="auto")
        assert last_checkpoint(tmp_path / "out", looks=True) is None
        run(make_trainer, args, stop_after=1)
        assert read_marker(tmp_path / "out/checkpoint-1").run_id == run_id

    def test_older_checkpoints_have_no_id(self, make_trainer, make_args, tmp_path):
        run(make_trainer, make_args(**SAVING), stop_after=2)
        for step in (1, 2):
            seal(tmp_path / f"out/checkpoint-{step}", num_ranks=1, zero_stage=None)
        (tmp_path / "out/run.json").unlink()
        _, batches = run(make_trainer, make_args(**SAVING), resume_from=True)
        assert len(batches) == 2
        assert find_checkpoints(tmp_path / "out", "")[0][0].name == "checkpoint-4"

    def test_a_folder_in_use(self, make_trainer, make_args, tmp_path):
        folder = tmp_path / "out"
        trainer = make_trainer(make_args(**SAVING))
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            started = output_lease._started(other.pid)
            holder = replace(output_lease.Holder.here(), pid=other.pid, started=started)
            folder.mkdir(exist_ok=True)
            (folder / "run.lease").write_text(json.dumps(asdict(holder)))
            with pytest.raises(ConfigError, match=f"another run \\(process {other.pid} on"):
                trainer.train()
            other.kill()


class TestRefusals:
    def test_other_data(self, make_trainer, make_args, begin, tmp_path):
        begin(1, **SAVING)
        write_shapes(tmp_path, 14)
        with pytest.raises(CursorError, match="manifest digest"):
            run(make_trainer, make_args(**SAVING), resume_from=True, folder=tmp_path / "shards")

    def test_no_whole_checkpoint(self, make_trainer, make_args, tmp_path):
        with pytest.raises(ConfigError, match="finds no whole checkpoint"):
            run(make_trainer, make_args(**SAVING), resume_from=True)
        run(make_trainer, make_args(**SAVING), stop_after=1)
        checkpoint = tmp_path / "out/checkpoint-1"
        (checkpoint / "cursor.json").unlink()
        with pytest.raises(CheckpointError, match=r"cursor\.json is missing"):
            run(make_trainer, make_args(**SAVING), resume_from=str(checkpoint))

    def test_a_model_without_its_optimizer(self, make_trainer, make_args, tmp_path):
        run(make_trainer, make_args(**SAVING, save_only_model=True), stop_after=1)
        found, faults = find_checkpoints(tmp_path / "out")
        assert found == []
        assert "save_only_model" in faults[0]
        with pytest.raises(ConfigError, match="save_only_model"):
            run(make_trainer, make_args(**SAVING), resume_from=str(tmp_path / "out/checkpoint-1"))

    def test_deepspeed_of_another_kind(self, make_trainer, make_args, begin, tmp_path):
        begin(1, **SAVING)
        checkpoint = tmp_path / "out/checkpoint-1"
        seal(checkpoint, num_ranks=2, zero_stage=3)
        words = "was written with ZeRO stage 3, and the run is without DeepSpeed"
        with pytest.raises(ConfigError, match=words):
            run(make_trainer, make_args(**SAVING), resume_from=str(checkpoint))
