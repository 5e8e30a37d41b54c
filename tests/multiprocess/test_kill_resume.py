"""Runs that are killed, and runs that go on with other ranks, beside undisturbed ones."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from benchmarks.kill.kill_resume import ZERO3, Run, measure, prepare, rank_server
from grpo_stream.train.checkpoints.universal import make_universal
from grpo_stream.train.models.policy import load_policy
from grpo_stream.train.models.processor import load_processor
from shard_builder.build.build import BuildSettings, build
from shard_builder.build.chunk_plan import ShardLimits
from shard_builder.datasets.linking.join_by_manifest import join_by_manifest
from tests.launch.support import load_script

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow(reason="some twenty trainings: killed, resumed, and their undisturbed twins"),
]


FORKED = {"family": "qwen3_5", "takes_screenshots": True}


@pytest.fixture(scope="module")
def server():
    with rank_server() as server:
        yield server


@pytest.mark.parametrize(
    ("num_ranks", "num_kills", "num_steps", "changes"),
    [
        (1, 4, 5, {}),
        (2, 2, 4, {}),
        (2, 1, 4, {"mixes_images": True}),
        (2, 1, 4, FORKED),
        (2, 1, 4, FORKED | {"mixes_images": True}),
    ],
    ids=["one rank", "two ranks", "mixed images", "forked", "forked, mixed images"],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    server, tmp_path, num_ranks, num_kills, num_steps, changes
):
    steps = {"num_steps": num_steps, "seed": 2, **changes}
    found = measure(server, tmp_path, num_kills, num_ranks, **steps)
    assert found["differences"] == []
    assert len(found["kills"]) == num_kills
    assert found["num_resumed"] > 0
    assert found["num_partial"] > 0  # the first was killed while it saved


def test_a_killed_run_on_a_joined_set_goes_on_though_all_of_it_has_moved(server, tmp_path):
    settings = prepare(tmp_path) | {"max_steps": 5}
    images_root, records = settings.pop("images_root"), settings.pop("json")
    rows = json.loads(records.read_text())
    for name, some in (("a", rows[:10]), ("b", rows[10:])):
        half = tmp_path / f"{name}.json"
        half.write_text(json.dumps(some))
        out = tmp_path / "sets" / name
        limits = ShardLimits(max_samples=4)
        build(BuildSettings((str(half),), str(images_root), str(out), limits=limits))
    joined = tmp_path / "sets/both"
    join_by_manifest([str(joined.parent / name) for name in "ab"], str(joined))
    whole = Run(server, tmp_path / "whole", 1, settings | {"shards": joined})
    assert whole.start()
    killed = Run(server, tmp_path / "killed", 1, settings | {"shards": joined})
    assert not killed.start({"rank": 0, "moment": len(whole.moments()[0]) * 2 // 3, "seconds": 0.0})
    moved = joined.parent.rename(tmp_path / "moved") / joined.name
    killed.settings["shards"] = moved
    assert killed.start()
    assert killed.num_in_log("begins from ") == 1
    assert whole.differences(killed) == []
    assert len({key for keys in whole.samples()[0].values() for key in keys}) > 10  # of both


def early_reward(completions, trainer_state, **_):
    """Tells answers apart for two global steps. Then no gradient is left, and the optimizer's state
    alone moves the weights, whatever the ranks sample.
    """
    scale = 1.0 if trainer_state.global_step < 2 else 0.0
    return [scale * (sum(map(ord, str(text))) % 5) for text in completions]


@pytest.fixture(scope="module")
def two(server, tmp_path_factory):
    """A run on 2 ranks."""
    folder = tmp_path_factory.mktemp("two")
    settings = prepare(folder) | {
        "deepspeed": ZERO3,
        "reward_funcs": f"{__name__}:early_reward",
        "num_iterations": 1,
        "beta": 0.0,
        "sync_ref_model": "false",
        "weight_decay": 0.5,
        "lr_scheduler_type": "constant",
        "save_steps": 2,
        "save_total_limit": 9,
        "logging_steps": 1,
        "max_steps": 6,
    }
    run = Run(server, folder / "run", 2, settings)
    run.start()
    return run


def test_the_number_of_ranks_may_change(server, two, tmp_path, capsys):
    """2 ranks -> 1 -> 2, with the same 8 prompts for each generation batch."""
    settings = two.settings
    checkpoint = two.out / "checkpoint-2"
    alone = settings | {"resume_from_checkpoint": checkpoint, "per_device_train_batch_size": 8}
    with pytest.raises(RuntimeError, match=r"was written by 2 ranks, and there are 1: first run"):
        Run(server, tmp_path / "refused", 1, alone).start()
    convert = load_script("convert_checkpoint")
    for _ in range(2):  # the second time there is nothing to do
        assert convert.main(["--checkpoint", str(checkpoint)]) == 0
        assert "global_step2_universal" in capsys.readouterr().out

    loaded = Run(server, tmp_path / "loaded", 1, alone | {"max_steps": 2})
    loaded.start()
    assert weights(loaded.out).items() == weights(checkpoint).items()

    one = Run(server, tmp_path / "one", 1, alone | {"max_steps": 4})
    one.start()
    last = one.out / "checkpoint-4"
    make_universal(last)
    again = Run(server, tmp_path / "again", 2, settings | {"resume_from_checkpoint": last})
    again.start()
    # A step counter that counts twice, or another group's weight decay, would be 1e-4 and more.
    for found, expected in ((last, two.out / "checkpoint-4"), (again.out, two.out)):
        np.testing.assert_allclose(vector(found), vector(expected), rtol=1e-6, atol=1e-9)
    assert np.abs(vector(again.out) - vector(checkpoint)).mean() > 1e-4


def test_shards_become_a_model(two, tmp_path, capsys):
    """As ZeRO-3 leaves them where ``stage3_gather_16bit_weights_on_model_save`` is false."""
    shards, plain = tmp_path / "shards", tmp_path / "models/plain"
    shutil.copytree(two.out / "checkpoint-4", shards)
    for name in ("model.safetensors", "complete.json"):
        (shards / name).unlink()
    assert load_script("export").main(["--checkpoint", str(shards), "--to", str(plain)]) == 0
    assert "the shards of ZeRO, in torch.float32" in capsys.readouterr().out
    exported = load_policy(plain, dtype="auto").state_dict()
    for name, weight in load_policy(two.out / "checkpoint-4", dtype="auto").state_dict().items():
        assert torch.equal(exported[name], weight), name
    load_processor(plain)


def weights(folder):
    return {name: w.tobytes() for name, w in load_file(folder / "model.safetensors").items()}


def vector(folder):
    found = load_file(folder / "model.safetensors")
    return np.concatenate([found[name].ravel() for name in sorted(found)])
