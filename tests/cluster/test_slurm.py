"""launch/slurm/*.sbatch as they are, under a real Slurm of two nodes: jobs are queued again."""

import itertools
import sys
from pathlib import Path

import pytest

from grpo_stream.storage.store import LocalStore
from shard_builder.build.build import build
from shard_builder.build.output.kept_results import PLAN_NAME, result_names
from tests.cluster.machines import wait_for
from tests.cluster.nodes import Run
from tests.cluster.slurm import JOB_SECONDS, START_SECONDS, Slurm, slurm_obstacle
from tests.shard_builder.support import files_of, make_settings, write_raw

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

VENV = str(Path(sys.executable).parents[1])
SMALL = ("--cpus-per-task=1", "--time=00:20:00")
NUM_PARTS = 5
NUM_RECORDS = 1200
_numbers = itertools.count()


@pytest.fixture
def slurm(request):
    """A controller and two daemons, which the fixture ``whole`` ends."""
    if reason := slurm_obstacle():
        pytest.skip(reason)
    cluster = request.getfixturevalue("cluster")
    return Slurm(cluster, cluster.folder / f"slurm-{next(_numbers)}")


def test_an_array_builds_what_one_process_builds_though_a_task_is_queued_again(slurm, tmp_path):
    raw = write_raw(tmp_path / "raw", NUM_RECORDS)
    build(make_settings(raw, tmp_path / "here"))
    out = tmp_path / "out"
    job = slurm.submit(
        *SMALL,
        *("--mem=100M", f"--array=1-{NUM_PARTS}", f"--output={slurm.folder}/%x-%A-%a.log"),
        *("launch/slurm/build.sbatch", raw / "records.json", "--images-root", raw, "--out", out),
        *("--samples-per-shard", 4),
        NUM_PARTS=str(NUM_PARTS),
        VENV=VENV,
    )
    store = LocalStore(out)
    wait_for(lambda: store.exists(PLAN_NAME) and own_results(store, 1), START_SECONDS)
    slurm.call("scontrol", "requeue", f"{job}_1")
    num_done = len(own_results(store, 1))
    assert 0 < num_done < NUM_RECORDS // 4 // NUM_PARTS, "it was to be killed in the middle"
    slurm.do_not_hold_back(f"{job}_1")
    tasks = {int(task["ArrayTaskId"]): task for task in slurm.wait(job)}
    logs = {path.name: path.read_text() for path in slurm.folder.glob("build-*.log")}
    assert {task["JobState"] for task in tasks.values()} == {"COMPLETED"}, logs
    assert {number: task["Restarts"] for number, task in tasks.items()} == {
        number: "1" if number == 1 else "0" for number in range(1, NUM_PARTS + 1)
    }
    assert {task["BatchHost"] for task in tasks.values()} == {"node-1", "node-2"}
    assert files_of(out) == files_of(tmp_path / "here")
    finish = [sys.executable, "-m", "tools.shard_builder", "finish", "--out", str(out), "--quiet"]
    slurm.call(*finish)
    assert files_of(out) == files_of(tmp_path / "here")


def own_results(store, part):
    """Results of the chunks of a part."""
    numbers = (int(name.removesuffix(".json").rpartition("-")[2]) for name in result_names(store))
    return [number for number in numbers if number % NUM_PARTS == part - 1]


def test_before_the_time_limit_a_run_saves_and_is_queued_again_and_goes_on(
    cluster, uninterrupted, slurm
):
    folder, config = cluster.folder / "grpo", slurm.folder / "run.yaml"
    config.write_text("max_steps: 1000\n")
    flags = cluster.flags({})
    place = flags.index("--max_steps")
    job = slurm.submit(
        *SMALL,
        *("--gpus-per-node=0", f"--output={slurm.folder}/%x-%j.log"),
        *("launch/slurm/train.sbatch", *flags[:place], *flags[place + 2 :]),
        CONFIG=str(config),
        OUTPUT_DIR=str(folder),
        VENV=VENV,
    )
    run = Run("grpo", folder, slurm.folder / f"grpo-{job}.log")
    wait_for(lambda: run.log_path.exists() and "global step 3:" in run.log(), JOB_SECONDS)
    ranks = [node.processes(" -u launch/train.py") for node in cluster.nodes.values()]
    assert [len(found) for found in ranks] == [1, 1]
    # What --signal=B:USR1@600 sends: to the script alone.
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_until_pending(job)
    assert "stop: after global step" in run.log()
    assert run.last_checkpoint() < cluster.num_steps
    config.write_text(f"max_steps: {cluster.num_steps}\n")
    slurm.do_not_hold_back(job)
    (ended,) = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), run.log()
    assert run.losses() == uninterrupted
