"""launch/slurm/train.sbatch on two nodes: real ranks, a stand-in for srun that goes over ssh."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.cluster.nodes import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SRUN = """\
#!/bin/bash
# A task on each node with this environment; the worst exit code.
while [[ $1 == -* ]]; do shift; done
pids=() worst=0
for node in 0 1; do
	export SLURM_NODEID=$node
	ssh "node-$((node + 1))" "$(export -p); cd $PWD; $(printf '%q ' "$@")" & pids+=($!)
done
for pid in "${pids[@]}"; do
	code=0
	wait "$pid" || code=$?
	if ((code > worst)); then worst=$code; fi
done
exit "$worst"
"""
SCONTROL = """\
#!/bin/bash
if [[ $1 == show ]]; then printf '%s\\n' node-1 node-2; else echo "scontrol: $*"; fi
"""


def test_before_the_time_limit_it_saves_and_is_queued_again_and_goes_on(cluster, uninterrupted):
    bin_folder = cluster.folder / "bin"
    bin_folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    job = submit(cluster).reaches(3)
    (script,) = cluster.launchers("launch/slurm/train.sbatch")
    script.send_signal(signal.SIGUSR1)
    assert job.wait() != 0
    assert "stop: after global step" in job.log()
    assert "scontrol: requeue 123456" in job.log()
    assert job.last_checkpoint() < cluster.num_steps
    job = submit(cluster, max_steps=cluster.num_steps)
    assert job.wait() == 0, job.log()
    assert "scontrol: requeue" not in job.log()
    assert job.losses() == uninterrupted


def submit(cluster, **settings):
    variables = {
        "PATH": f"{cluster.folder / 'bin'}:{os.environ['PATH']}",
        "VENV": str(Path(sys.executable).parents[1]),
        "OUTPUT_DIR": str(cluster.folder / "slurm"),
        "CONFIG": str(cluster.folder / "empty.yaml"),
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_CPUS_PER_TASK": "1",
    }
    (cluster.folder / "empty.yaml").write_text("{}\n")
    command = ["bash", ROOT / "launch/slurm/train.sbatch", *cluster.flags(settings)]
    return cluster.start_run("slurm", command, variables)
