import json

import numpy as np
import pytest
import torch

from grpo_stream.train.batches.refill import choose, merge_scored, select_prompts, teaches
from tests.train.runs import SAVING, logged, place_of, weights_of
from tests.train.support import make_collator, make_stream_sample

NAN = float("nan")


@pytest.mark.parametrize(
    ("flags", "num_kept", "kept"),
    [
        ([True, True, True], 2, [0, 1]),
        ([False, True, False, True], 2, [1, 3]),
        ([False, True, False, False], 2, [0, 1]),
        ([False] * 4, 2, [0, 1]),
        ([False, False, True], 1, [2]),
    ],
)
def test_groups_that_teach_come_first(flags, num_kept, kept):
    assert choose(flags, num_kept) == kept


def test_a_group_teaches_if_its_rewards_differ():
    rewards = [[0.3] * 4, [0.3, 0.3, 0.3, 0.4], [NAN] * 4, [NAN, NAN, 1, 1], [NAN, 0, 1, 1]]
    assert teaches(np.array(rewards, np.float32)) == [False, True, False, False, True]


def test_prompts_of_a_batch_are_selected(processor):
    samples = [make_stream_sample(number, (28 * (number + 1), 56)) for number in range(4)]
    batch = make_collator(processor)(samples)
    expected = make_collator(processor)([samples[2], samples[0]])
    patches = torch.arange(int(batch["image_grid_thw"].prod(-1).sum()))[:, None]
    for images in (batch["pixel_values"], patches):
        part = select_prompts(batch | {"pixel_values": images}, [2, 0])
        assert part["key"] == ["000002", "000000"]
        assert part["image_grid_thw"].equal(expected["image_grid_thw"])
        assert part["patch_rule"] == batch["patch_rule"]
        assert [ids.tolist() for ids in part["prompt_ids"]] == [
            ids.tolist() for ids in expected["prompt_ids"]
        ]
    assert part["pixel_values"].flatten().tolist() == [*range(24, 48), *range(8)]
    assert select_prompts(batch, [1])["pixel_values"][0].equal(batch["pixel_values"][1])


def test_rows_of_several_rollouts_are_padded_to_one_width():
    def part(start, prompt_width, width):
        rows = torch.arange(start, start + 4)[:, None]
        return {
            "prompt_ids": rows.expand(4, prompt_width),
            "completion_ids": rows.expand(4, width),
            "completion_mask": torch.ones(4, width),
            "advantages": rows[:, 0].float(),
            "num_items_in_batch": torch.tensor(4 * width),
        }

    merged = merge_scored([part(10, 1, 3), part(20, 2, 1)], [1, 2], 2, pad_token_id=9)
    assert merged["prompt_ids"].tolist() == [[9, 12], [9, 13], [20, 20], [21, 21]]
    assert merged["completion_ids"].tolist() == [[12] * 3, [13] * 3, [20, 9, 9], [21, 9, 9]]
    assert merged["completion_mask"].tolist() == [[1, 1, 1]] * 2 + [[1, 0, 0]] * 2
    assert merged["advantages"].tolist() == [12, 13, 20, 21]
    assert "num_items_in_batch" not in merged


class EqualFor:
    """A reward that gives groups of some keys equal values; notes which keys it is given."""

    __name__ = "equal_for"

    def __init__(self, is_equal):
        self.is_equal = is_equal
        self.rollouts: list[list[str]] = []

    def __call__(self, completions, key, **_):
        self.rollouts.append(key[::2])
        return [
            0.5 if self.is_equal(name) else float(number % 2) for number, name in enumerate(key)
        ]


def is_even(key):
    return int(key) % 2 == 0


@pytest.fixture
def train(make_trainer, make_args):
    """Trains with 2 prompts per generation batch of 6 lanes."""

    def run(is_equal, resume_from=None, **changes):
        args = make_args(steps_per_generation=1, gradient_accumulation_steps=1, **changes)
        reward = EqualFor(is_equal)
        trainer = make_trainer(args, reward_funcs=reward, num_lanes=6, refill_zero_variance=2)
        trained: list[list[str]] = []
        prepare = trainer._prepare_inputs

        def noted(batch):
            inputs = prepare(batch)
            trained.append([batch["key"][number] for number in inputs["kept"]])
            assert inputs["groups"].num_rows == len(inputs["advantages"]) == 4
            assert inputs["num_items_in_batch"] == inputs["completion_mask"].sum()
            return inputs

        trainer._prepare_inputs = noted
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer, reward.rollouts, trained

    return run


class TestTraining:
    def test_only_as_much_is_sampled_as_is_needed(self, train):
        trainer, rollouts, trained = train(lambda _: False, max_steps=2)
        keys = [[s.key for s in trainer.train_stream.read_batch(0, batch)] for batch in range(2)]
        assert rollouts == trained == [batch[:2] for batch in keys]
        assert logged(trainer, "refill/num_rollouts") == [1, 1]
        assert logged(trainer, "refill/num_samples_unused") == [4, 4]

    def test_groups_that_teach_are_looked_for(self, train):
        trainer, rollouts, trained = train(is_even, max_steps=2, beta=0.1)
        for batch, kept in enumerate(trained):
            keys = [s.key for s in trainer.train_stream.read_batch(0, batch)]
            teaching = [key for key in keys if not is_even(key)]
            assert kept[: len(teaching)] == teaching[:2] or set(teaching) <= set(kept)
        equal = [sum(map(is_even, kept)) / 2 for kept in trained]
        assert logged(trainer, "refill/frac_zero_std_trained") == equal
        assert sum(logged(trainer, "refill/num_rollouts")) == len(rollouts)

    def test_it_ends_where_there_are_no_more(self, train):
        trainer, rollouts, trained = train(lambda _: True, max_steps=1)
        keys = [s.key for s in trainer.train_stream.read_batch(0, 0)]
        assert rollouts == [keys[:2], keys[2:4], keys[4:]]
        assert trained == [keys[:2]]
        assert logged(trainer, "refill/frac_zero_std_trained") == [1]

    def test_an_epoch_is_as_long_as_its_batches(self, train):
        trainer, _, trained = train(is_even, max_steps=-1, num_train_epochs=1)
        assert trainer.state.global_step == len(trained) == 2  # 13 shapes, 6 lanes

    def test_a_resumed_run_is_the_same_run(self, train, tmp_path):
        changes = SAVING | {"num_iterations": 2, "optim": "sgd", "max_steps": 3}
        whole, _, trained = train(is_even, **changes)
        assert place_of(tmp_path / "out/checkpoint-1") == (0, 0)  # in use
        resumed, _, rest = train(is_even, str(tmp_path / "out/checkpoint-1"), **changes)
        assert rest == trained[1:]
        expected = weights_of(whole)
        assert all(torch.equal(p, expected[name]) for name, p in weights_of(resumed).items())
        assert logged(resumed, "loss") == logged(whole, "loss")
        assert json.dumps(logged(resumed, "reward")) == json.dumps(logged(whole, "reward"))
