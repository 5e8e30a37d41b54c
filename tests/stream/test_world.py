import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.stream.world import World


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, World(0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, World(5, 8, 1)),
    ],
)
def test_from_env(monkeypatch, env, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert World.from_env() == expected


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 1), (1, 1), (4, 4), (0, 0)])
def test_refuses_a_rank_outside_the_world(rank, world_size):
    with pytest.raises(ConfigError, match="rank"):
        World(rank, world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_slots_are_contiguous_and_cover_every_lane(world_size):
    parts = [World(rank, world_size).slots(12) for rank in range(world_size)]
    assert [slot for part in parts for slot in part] == list(range(12))


def test_world_size_must_divide_the_lanes():
    with pytest.raises(ConfigError, match=r"world_size=5.*\[1, 2, 3, 4, 6, 12\]"):
        World(0, 5).slots(12)
