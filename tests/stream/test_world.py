import os

import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.stream.world import World, find_world, first_host, torch_variables


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


@pytest.fixture
def set_environment(monkeypatch):
    def set_all(environment):
        monkeypatch.setattr(os, "environ", dict(environment))

    return set_all


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "4"}, "RANK=None: is missing in the environment, beside WORLD_SIZE=4: st"),
        ({"RANK": "0"}, "WORLD_SIZE=None: is missing in the environment, beside RANK=0: start"),
        ({"RANK": "1", "WORLD_SIZE": "two"}, "WORLD_SIZE='two': must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "4", "MASTER_PORT": "1"}, "MASTER_ADDR=None: is missing"),
        ({"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "a"}, "MASTER_PORT=None: is missing"),
    ],
)
def test_half_an_environment_is_refused(environment, message, set_environment):
    set_environment(environment)
    with pytest.raises(ConfigError, match=message):
        find_world()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, World()),
        ({"WORLD_SIZE": "1"}, World()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, World()),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, World(1, 2)),
    ],
)
def test_who_this_process_is(environment, expected, set_environment):
    set_environment(environment)
    assert find_world() == expected


def test_what_srun_says_is_made_torchs(set_environment):
    set_environment(SRUN)
    assert find_world() == World(9, 16, 1)
    assert {name: os.environ[name] for name in OF_SRUN} == OF_SRUN


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


SRUN = {
    "SLURM_JOB_ID": "123456",
    "SLURM_PROCID": "9",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
OF_SRUN = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "gpu07",
    "MASTER_PORT": "23456",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        ({"RANK": "0", **SRUN}, {}),  # torchrun in a step of srun
        (SRUN, OF_SRUN),
        ({**SRUN, "MASTER_ADDR": "gpu07-ib"}, {k: OF_SRUN[k] for k in OF_SRUN if "ADDR" not in k}),
        # The script that sbatch runs: a process alone, whatever the job's tasks.
        ({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, {}),
        (
            MPIRUN,
            {
                "RANK": "1",
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "20000",
            },
        ),
    ],
)
def test_torch_variables(environment, expected):
    assert torch_variables(environment) == expected


def test_mpirun_on_several_nodes_does_not_tell_where_rank_0_is():
    with pytest.raises(ConfigError, match=r"MASTER_ADDR.*mpirun -x"):
        torch_variables({**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("node-1", "node-1"),
        ("gpu[07-12,20],login1", "gpu07"),
        ("a,b[1-2]", "a"),
        ("r[1-2]n[01-16]", "r1n01"),
        ("gpu[3,5-9].site", "gpu3.site"),
    ],
)
def test_first_host(node_list, host):
    assert first_host(node_list) == host
