"""Training on samples of one, no, two and three images."""

import pytest

from tests.train import work_probe
from tests.train.runs import spread_reward, weights_of
from tests.train.support import MIXED_SIZES, write_mixed_set
from tests.train.test_work_per_prompt import ONCE, PER_RANK

NUM_IMAGES = sum(map(len, MIXED_SIZES)) * PER_RANK // len(MIXED_SIZES)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return write_mixed_set(tmp_path_factory.mktemp("mixed"), 8)


class ColumnSpy:
    """A reward that notes what it is told of images, by key."""

    __name__ = "column_spy"

    def __init__(self):
        self.seen = {}

    def __call__(self, completions, key, scales, model_size, solution_images, solution, **_):
        rows = zip(
            key, zip(scales, model_size, solution_images, solution, strict=True), strict=True
        )
        self.seen.update(rows)
        return spread_reward(completions)


@pytest.mark.parametrize("way", ["packed", "forked", "off"])
def test_every_sample_is_trained_on(make_trainer, make_args, mixed, way, tmp_path):
    spy = ColumnSpy()
    rewards = [spy, "accuracy_reward_coord", "refusal_reward", "format_reward"]
    args = make_args(max_steps=2, num_iterations=1)
    trainer = make_trainer(args, folder=mixed, reward_funcs=rewards, shared_prefix=way)
    before = weights_of(trainer)
    trainer.train()
    assert trainer.prefix_way == ("plain" if way == "off" else way)
    assert any((weight != before[name]).any() for name, weight in weights_of(trainer).items())
    for number in range(8):
        sizes = list(MIXED_SIZES[number % 4])
        scales, model_size, lies_in, solution = spy.seen[f"{number:06d}"]
        expected = sizes[0] if len(sizes) == 1 else sizes
        assert scales == model_size == expected
        assert type(scales) is (tuple if len(sizes) == 1 else list)
        assert lies_in == (None if len(sizes) < 2 else [len(sizes) - 1])
        assert len(solution) == (4 if sizes else 0)


def test_the_work_on_an_image_is_1(tiny_folder, tmp_path):
    shards = write_mixed_set(tmp_path / "mixed", PER_RANK)
    counts, _ = work_probe.run(tiny_folder, shards, tmp_path / "out")
    of_samples = {"fetched": [1] * PER_RANK}
    assert counts == {name: [times] * NUM_IMAGES for name, times in ONCE.items()} | of_samples
