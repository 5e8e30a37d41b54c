from types import SimpleNamespace

import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.train.cluster import same_settings
from grpo_stream.train.cluster.same_settings import (
    check_agreement,
    differences,
    disagreement,
    run_settings,
)

FIRST = {"digest": "a", "seed": 1, "reward_funcs": ["one"]}


@pytest.mark.parametrize(
    ("own", "found"),
    [
        (FIRST, {}),
        ({**FIRST, "seed": 2}, {"seed": 2}),
        ({**FIRST, "reward_funcs": ["one", "two"]}, {"reward_funcs": ["one", "two"]}),
        ({**FIRST, "more": 3}, {"more": 3}),
        ({"digest": "a", "reward_funcs": ["one"]}, {"seed": None}),
        ({**FIRST, "seed": 1.0}, {"seed": 1.0}),
    ],
)
def test_differences(own, found):
    assert differences(FIRST, own) == found


def test_what_is_the_same_in_json_is_the_same():
    assert differences({"size": (1, 2)}, {"size": [1, 2]}) == {}


def test_a_disagreement_names_setting_and_ranks():
    error = disagreement(FIRST, [(3, {"seed": 9}), (2, {"digest": "b", "seed": 7})])
    assert isinstance(error, ConfigError)
    assert (error.field, error.value) == ("digest", "a")
    assert "{2: 'b'}" in error.expected


def test_of_a_thousand_ranks_a_few_are_named():
    error = disagreement(FIRST, [(rank, {"seed": 5}) for rank in range(1, 1001)])
    assert "{1: 5, 2: 5, 3: 5, 4: 5} and 996 more" in str(error)


def test_no_disagreement():
    assert disagreement(FIRST, []) is None


def test_two_ranks(monkeypatch):
    monkeypatch.setattr(same_settings, "broadcast_object_list", lambda _: [FIRST])
    monkeypatch.setattr(same_settings, "gather_object", lambda own: [{}, *own])
    check_agreement(FIRST)
    with pytest.raises(ConfigError, match=r"seed=1: .*\{1: 2\}"):
        check_agreement({**FIRST, "seed": 2})


def test_one_process_agrees_with_itself():
    check_agreement({"digest": "a"})


def settings(**changes):
    fields = {"deepspeed": None, "learning_rate": 1e-6, "output_dir": "out", "local_rank": 0}
    args = SimpleNamespace(to_dict=lambda: fields | changes)
    model = SimpleNamespace(dtype="bfloat16")
    data = SimpleNamespace(shards=["s3://b/train"], cache_dir="/nvme", block_shards=4)
    return SimpleNamespace(args=args, model=model, data=data, task=SimpleNamespace(prompt="point"))


def test_every_setting_counts_but_a_nodes_folders():
    compared = run_settings(settings())
    assert {"learning_rate", "dtype", "block_shards", "prompt", "deepspeed"} <= set(compared)
    assert not {"output_dir", "local_rank", "shards", "cache_dir"} & set(compared)
    assert {"version of torch", "version of grpo_stream", "version of python"} <= set(compared)
    assert run_settings(settings(output_dir="elsewhere", local_rank=3)) == compared


def test_a_deepspeed_file_counts_by_its_content(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text('{"zero_optimization": {"stage": 3}}')
    first, second = (run_settings(settings(deepspeed=str(tmp_path / name))) for name in "ab")
    assert first == second
    (tmp_path / "b").write_text('{"zero_optimization": {"stage": 2}}')
    third = run_settings(settings(deepspeed=str(tmp_path / "b")))
    assert list(differences(first, third)) == ["deepspeed"]
