"""The scripts of examples/ do what their first lines say."""

import pytest
from transformers import AutoModelForImageTextToText

from examples import custom_reward, read_shards, train_from_json
from shard_builder.cli import main as shard_builder


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights(folder):
    return dict(AutoModelForImageTextToText.from_pretrained(folder).named_parameters())


def test_train_from_json(policy, tmp_path):
    argv = ["--model", str(policy), "--out", str(tmp_path / "out"), "--num-steps", "2"]
    trainer = train_from_json.main(argv)
    assert trainer.state.global_step == 2
    assert len(logged(trainer, "rewards/distance_reward/mean")) == 2
    assert weights(tmp_path / "out").keys() == weights(policy).keys()


def test_custom_reward_trains(policy, tmp_path):
    trainer = custom_reward.main(["--model", str(policy), "--out", str(tmp_path / "out")])
    assert len(logged(trainer, "rewards/near_button/mean")) == 2  # nan: a batch without a button
    assert all(0 < mean < 1 for mean in logged(trainer, "rewards/digits/mean"))
    before = weights(policy)
    trained = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    assert any((before[name] != tensor).any() for name, tensor in trained)


@pytest.mark.parametrize(
    ("role", "text", "reward"),
    [
        ("button", "(110, 110)", 1.0),
        ("button", "(160, 110)", 0.0),
        ("button", "no idea", 0.0),
        ("link", "(110, 110)", None),
    ],
)
def test_custom_reward(role, text, reward):
    given = custom_reward.near_button(
        completions=[text],
        element=[{"role": role, "name": "OK"}],
        solution=[[100, 100, 120, 120]],
        scales=[(200, 200)],
        model_size=[(200, 200)],
        answer_frame=["original"],
        key=["0"],
    )
    assert given == [reward]


def test_read_shards(tmp_path):
    folder, images = str(tmp_path / "shards"), str(train_from_json.SCREENSHOTS)
    words = ["build", f"{images}/records.json", "--images-root", images, "--out", folder]
    assert shard_builder([*words, "--samples-per-shard", "100", "--check", "header"]) == 0
    keys = read_shards.with_webdataset(folder, 1000)
    assert len(set(keys)) == len(keys) == 388
    batches = read_shards.with_prompt_loader(folder)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert set().union(*batches) <= set(keys)
