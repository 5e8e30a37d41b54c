"""The real launcher over ssh: trains, stops, resumes, and survives what happens to clusters.

Every loss is compared with that of two ranks on one host that nobody disturbed.
"""

import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.cluster.machines import paused, wait_for
from tests.cluster.nodes import DEEPSPEED, PYTHON

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TORCHRUN = Path(PYTHON).parent / "torchrun"
TIMEOUT_SECONDS = 20
"""Of the runs' collectives (``ddp_timeout``)."""
END_SECONDS = 60
"""Within which a run must have ended after a fault: the time-out, and what a busy machine adds."""
LOST = "another rank has gone, or did not answer"


def test_it_trains_stops_when_asked_and_goes_on_as_if_nothing_had_been(cluster, uninterrupted):
    run = cluster.run("stopped").reaches(3)
    assert [len(cluster.ranks(number)) for number in (1, 2)] == [1, 1]
    (run.folder / "stop").touch()
    run.wait()
    # DeepSpeed and pdsh hand the code on. Whoever restarts the run can tell this from a failure.
    assert "exit code 75" in run.log()
    assert run.last_checkpoint() >= 3
    assert not (run.folder / "model.safetensors").exists()
    assert goes_on(cluster, run) == uninterrupted


@pytest.mark.parametrize(
    "words",
    [
        [DEEPSPEED, "--hostfile", "{hosts}", "--no_ssh", "--node_rank", "{rank}"],
        [TORCHRUN, "--nnodes", "2", "--nproc_per_node", "1", "--node_rank", "{rank}"],
    ],
    ids=["deepspeed --no_ssh", "torchrun"],
)
def test_a_command_on_each_node(cluster, uninterrupted, words):
    name = Path(words[0]).name
    settings = {"output_dir": cluster.folder / name, "max_steps": cluster.num_steps}
    rest = ["--master_addr", "node-1", "--master_port", "29500", "launch/train.py"]
    rest += cluster.flags(settings)
    runs = []
    for rank in range(2):
        own = [str(w).format(hosts=cluster.folder / "hostfile", rank=rank) for w in words]
        runs.append(cluster.start_run(name, [*own, *rest], {}, node=rank + 1))
    assert [run.wait() for run in runs] == [0, 0], "".join(run.log() for run in runs)
    assert runs[0].losses() == uninterrupted


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs openmpi-bin")
def test_open_mpi(cluster, uninterrupted):
    words = "--allow-run-as-root -x MASTER_ADDR=node-1 -x MASTER_PORT=29500"
    hosts = ["--hostfile", cluster.folder / "hostfile"]
    hosts += ["--launcher", "openmpi", "--launcher_args", words]
    run = cluster.run("mpirun", hosts=hosts, max_steps=cluster.num_steps)
    assert run.wait() == 0, run.log()
    assert run.losses() == uninterrupted


def test_a_cut_link_ends_the_run_within_the_time_out(cluster, uninterrupted):
    run = cluster.run("cut", ddp_timeout=TIMEOUT_SECONDS).reaches(3)
    cluster.switch.cut(2)
    cut = time.monotonic()
    code = run.wait(END_SECONDS)
    assert code != 0
    assert time.monotonic() - cut > TIMEOUT_SECONDS / 2
    # Which of the two gloo says depends on what was under way.
    assert any(word in run.log() for word in ("Timed out waiting", "Application timeout"))
    assert LOST in run.log()
    # The far side is on its own now, and must not hold its GPUs.
    wait_for(lambda: not cluster.ranks(1) and not cluster.ranks(2), END_SECONDS)
    cluster.repair()
    assert goes_on(cluster, run) == uninterrupted


def test_a_node_that_dies_ends_the_run_at_once(cluster, uninterrupted):
    run = cluster.run("node").reaches(3)
    cluster.nodes[2].kill()
    assert run.wait(END_SECONDS) != 0
    assert LOST in run.log()
    wait_for(lambda: not cluster.ranks(1), END_SECONDS)
    cluster.repair()
    assert goes_on(cluster, run) == uninterrupted


def test_an_object_store_that_is_silent_for_20_seconds_is_waited_for(cluster, uninterrupted):
    # Next to nothing is read ahead, or the run would not notice.
    run = cluster.run("store", max_steps=cluster.num_steps, fetch_ahead_bytes=4096).reaches(3)
    with paused(cluster.store, 20):
        pass
    assert run.wait() == 0, run.log()
    assert max(run.logged("stream/num_retries")) > 0
    # Not stream/wait_seconds: the log is rank 0's, and either rank may be the one that waits.
    assert max(run.logged("time/data_wait")) > 10
    assert run.losses() == uninterrupted


@pytest.mark.parametrize(
    ("name", "hosts", "launcher"),
    [
        ("of_nodes", None, "deepspeed.launcher.launch"),
        ("pdsh", None, "pdsh -S"),
        ("one_host_alone", ["--num_gpus", 2], "bin/deepspeed"),
    ],
)
def test_ranks_do_not_outlive_their_launchers(cluster, name, hosts, launcher):
    run = cluster.run(name, hosts=hosts).reaches(1)
    for process in cluster.launchers(launcher):
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: not cluster.ranks(1) and not cluster.ranks(2), END_SECONDS)
    run.wait(END_SECONDS)


def goes_on(cluster, run):
    """Losses of the run's whole length, of which the same command does the rest."""
    assert run.last_checkpoint() < cluster.num_steps
    rest = cluster.run(run.name, max_steps=cluster.num_steps)
    assert rest.wait() == 0, rest.log()
    assert f"begins from {run.folder}/checkpoint-" in rest.log()
    return rest.losses()
