"""What the trainer reads, and where it resumes: short runs of the whole trainer."""

import json
import threading

import pytest

from grpo_stream.errors import ConfigError, CursorError
from grpo_stream.train.feed import QUARANTINE_NAME
from tests.train.runs import SAVING, KeySpy, logged, place_of, run


class TestReading:
    def test_a_bad_sample_does_not_stop_it(self, make_trainer, make_args, shapes):
        records = [*shapes.records[:4]]
        records[1] = records[1] | {"image": "missing.png"}
        spy = KeySpy()
        # No reserve and one batch: the stand-in is a prompt that the batch already holds.
        trainer = make_trainer(
            make_args(max_steps=1),
            reward_funcs=spy,
            train_dataset=records,
            images_root=shapes.images,
        )
        trainer.train()
        assert logged(trainer, "stream/num_bad_samples") == [1]
        assert logged(trainer, "stream/bad/image_not_found") == [1]
        assert len(spy.batches[0]) == 3

    def test_bad_samples_are_listed_in_the_checkpoint(
        self, make_trainer, make_args, shapes, tmp_path
    ):
        records = [*shapes.records[:4]]
        records[1] = records[1] | {"image": "missing.png"}
        args = make_args(max_steps=1, save_strategy="steps", save_steps=1)
        make_trainer(args, train_dataset=records, images_root=shapes.images).train()
        found = json.loads((tmp_path / "out" / "checkpoint-1" / QUARANTINE_NAME).read_text())
        samples = {"record 1": "image_not_found"}
        assert found == {"num_bad_by_cause": {"image_not_found": 1}, "samples": samples}

    def test_reads_ahead_across_epochs_but_not_past_the_end(self, make_trainer, make_args):
        trainer = make_trainer(make_args(max_steps=4))
        read: list[tuple[int, int]] = []
        slot_places = trainer.train_stream.slot_places

        def noted(*place):
            read.append(place)
            return slot_places(*place)

        trainer.train_stream.slot_places = noted
        trainer.train()
        assert read == [(0, 0), (0, 1), (0, 2), (1, 0)]
        delivered = sum(logged(trainer, "stream/num_samples"))
        assert delivered == trainer.train_stream.counters.num_samples == 16

    def test_an_epoch_needs_no_max_steps_and_the_next_has_another_order(
        self, make_trainer, make_args
    ):
        spy = KeySpy()
        trainer = make_trainer(make_args(max_steps=-1, num_train_epochs=2), reward_funcs=spy)
        trainer.train()
        assert trainer.state.global_step == 6  # 13 shapes are 3 generation batches of 4
        stream = trainer.train_stream
        assert spy.batches == [
            [sample.key for sample in stream.read_batch(epoch, batch)]
            for epoch in range(2)
            for batch in range(3)
        ]
        assert trainer.num_examples(trainer.get_train_dataloader()) == 12

    def test_threads_end(self, make_trainer, make_args):
        before = set(threading.enumerate())
        trainer = make_trainer(make_args(max_steps=1))
        trainer.train()
        trainer.close()
        left = set(threading.enumerate()) - before
        assert not [t.name for t in left if t.name.startswith(("decoder", "assembler"))]


class TestOtherLanes:
    """13 shapes: epochs of 3 generation batches of 4 prompts, or of 6 of 2 prompts."""

    @pytest.fixture
    def begun(self, make_trainer, make_args, tmp_path):
        _, batches = run(make_trainer, make_args(**SAVING), stop_after=1)
        return str(tmp_path / "out" / "checkpoint-1"), batches

    @pytest.fixture
    def go_on(self, make_trainer, make_args):
        def go_on(resume_from, stop_after=None, **changes):
            length = {"max_steps": -1, "num_train_epochs": 2}
            args = make_args(**SAVING | length | changes, num_generations=4)
            return run(
                make_trainer,
                args,
                num_lanes=2,
                allow_new_lanes=True,
                resume_from=resume_from,
                stop_after=stop_after,
            )

        return go_on

    def test_are_refused_unless_allowed(self, make_trainer, make_args, begun):
        args = make_args(**SAVING, num_generations=4)
        with pytest.raises(CursorError, match=r"4 prompts per generation batch.*allow_new_lanes"):
            run(make_trainer, args, num_lanes=2, resume_from=begun[0])

    def test_read_exactly_what_is_left(self, begun, go_on, tmp_path):
        checkpoint, first = begun
        trainer, rest = go_on(checkpoint)
        # 9 of 13 are left: 4 generation batches of 2; then an epoch of 6.
        assert trainer.state.global_step == 1 + 4 + 6
        assert [len(batch) for batch in rest] == [2] * 10
        keys = [key for batch in [*first, *rest[:4]] for key in batch]
        assert len(keys) == len(set(keys)) == 12
        assert len({key for batch in rest[4:] for key in batch}) == 12
        assert trainer.state.epoch == 2
        assert trainer.train_loader.until == (1, 6)
        assert place_of(tmp_path / "out" / "checkpoint-5") == (1, 0)

    @pytest.mark.parametrize("stop_after", [3, 7], ids=["in the segment", "in the next epoch"])
    def test_go_on_again_without_being_allowed_again(
        self, make_trainer, make_args, begun, go_on, tmp_path, stop_after
    ):
        _, expected = go_on(begun[0])
        go_on(begun[0], stop_after=stop_after)
        args = make_args(**SAVING | {"max_steps": -1, "num_train_epochs": 2}, num_generations=4)
        checkpoint = str(tmp_path / "out" / f"checkpoint-{stop_after}")
        trainer, rest = run(make_trainer, args, num_lanes=2, resume_from=checkpoint)
        assert rest == expected[stop_after - 1 :]
        assert trainer.state.global_step == 11

    def test_max_steps_counts_all_global_steps(self, begun, go_on):
        trainer, rest = go_on(begun[0], max_steps=7)
        assert trainer.state.global_step == 7
        assert len(rest) == 6
        assert trainer.train_loader.until == (1, 2)


class TestEvaluation:
    def test_while_training(self, make_trainer, make_args, shapes):
        spy = KeySpy()
        args = make_args(max_steps=2, eval_strategy="steps", eval_steps=1,
                         per_device_eval_batch_size=4)  # fmt: skip
        trainer = make_trainer(
            args, reward_funcs=spy, eval_dataset=shapes.records, images_root=shapes.images
        )
        trainer.train()
        # Of 13 records 12 come in batches of 2 prompts, which earn 0 to 3; the last earns 0 and 1.
        assert logged(trainer, "eval_reward") == pytest.approx([(12 * 1.5 + 0.5) / 13] * 2)
        per_evaluation = [batch for batch in spy.batches if len(batch) == 2]
        assert len(per_evaluation) == 12
        assert per_evaluation[:6] == per_evaluation[6:]

    def test_without_data(self, make_trainer):
        with pytest.raises(ConfigError, match="eval_dataset"):
            make_trainer().get_eval_dataloader()
