import random

import pytest

from benchmarks.__main__ import main
from benchmarks.step.controls import shuffled_accuracy
from tests.shards.support import write_set
from tests.stream.support import make_samples

LANES = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("order") / "shards"
    write_set(folder, make_samples(22), 5)
    return str(folder)


def lines(capsys, shards, *flags):
    words = ["order", "--shards", shards, "--prompts-per-batch", str(LANES), *map(str, flags)]
    assert main(words) == 0
    return capsys.readouterr().out.splitlines()


def test_every_sample_once_but_for_the_reserve(capsys, shards):
    rows = [line.split("\t") for line in lines(capsys, shards)]
    assert [int(number) for number, _ in rows] == [0, 1, 2, 3, 4]
    keys = [key for _, text in rows for key in text.split(" ")]
    assert len(keys) == len(set(keys)) == 20


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("num_threads", [0, 3])
def test_ranks_side_by_side_give_the_whole(capsys, shards, world_size, num_threads):
    whole = lines(capsys, shards)
    flags = ["--world-size", world_size, "--num-reader-threads", num_threads]
    parts = [lines(capsys, shards, *flags, "--rank", rank) for rank in range(world_size)]
    for step, expected in enumerate(whole):
        keys = " ".join(part[step].split("\t")[1] for part in parts)
        assert f"{step}\t{keys}" == expected


def test_starting_later_gives_the_same_lines(capsys, shards):
    flags = ["--start-step", 2, "--num-steps", 2]
    assert lines(capsys, shards, *flags) == lines(capsys, shards)[2:4]


def test_seed_and_epoch_change_the_order(capsys, shards):
    usual = lines(capsys, shards)
    assert lines(capsys, shards, "--stream-seed", 1) != usual
    assert lines(capsys, shards, "--epoch", 1) != usual
    assert lines(capsys, shards) == usual


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--start-step", "5"], "must be from 0 to 4"),
        (["--num-steps", "6"], "must be from 1 to 5"),
        (["--world-size", "3"], "world_size=3"),
        (["--rank", "1"], "rank=1"),
        (["--epoch", "-1"], "--epoch=-1"),
        (["--shards", "nowhere"], "no manifest"),
        (["--prompts-per-batch", "23"], "only 22 samples"),
    ],
)
def test_mistakes(capsys, shards, flags, message):
    assert main(["order", "--shards", shards, "--prompts-per-batch", "4", *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_control_deals_the_same_rewards_out_anew(monkeypatch):
    monkeypatch.setattr("benchmarks.step.controls._shuffle", random.Random(1).shuffle)
    columns = {
        "completions": ["(1, 1)", "(9, 9)"] * 10,
        "solution": [[0, 0, 2, 2]] * 20,
        "scales": [(10, 10)] * 20,
        "model_size": [(10, 10)] * 20,
        "answer_frame": ["model"] * 20,
    }
    dealt = shuffled_accuracy(**columns)
    assert (dealt.count(0.0), dealt.count(1.0)) == (10, 10)
    assert dealt != [1.0, 0.0] * 10
