"""A real Slurm on the nodes of a test's cluster: Debian's munge and slurm-wlm, as root."""

import contextlib
import os
import re
import shutil

from tests.cluster.machines import wait_for
from tests.cluster.nodes import ROOT, environment, name_of

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
START_SECONDS = 60
JOB_SECONDS = 400
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

CONF = """\
ClusterName=toy
SlurmctldHost=node-1(10.77.0.11)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeAddr=10.77.0.{address} CPUs=1 RealMemory=4000 State=UNKNOWN\n"


def slurm_obstacle():
    """Why there can be no Slurm here; None where there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"needs {', '.join(missing)} (Debian: slurm-wlm munge)" if missing else None


class Slurm:
    """A controller on node 1 and a daemon on each node; they end as all on the nodes does.

    Args:
        cluster: The nodes.
        folder: An empty one, for everything that Slurm writes.
    """

    def __init__(self, cluster, folder):
        self.folder = folder
        self._cluster = cluster
        (folder / "state").mkdir(parents=True)
        nodes = "".join(
            NODE.format(name=name_of(number), address=10 + number) for number in cluster.numbers
        )
        (folder / "slurm.conf").write_text(CONF.format(folder=folder) + nodes)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(64))
        key.chmod(0o600)
        self._environment = {
            **environment(),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}",
        }
        for number in cluster.numbers:
            cluster.nodes[number].call(["mkdir", "-p", "/run/munge"])
            # As root, whatever the folder's rights are: the key is this test's own.
            self._start(number, "munged", "--foreground", "--force", "--key-file", key)
        self._start(1, "slurmctld", "-D", "-c")
        for number in cluster.numbers:
            self._start(number, "slurmd", "-D", "-N", name_of(number))
        wait_for(self._is_up, START_SECONDS, *self._daemons())

    def _start(self, number, program, *flags):
        """Starts a daemon in the foreground, so that it ends with its node."""
        with (self.folder / f"{program}-{number}.out").open("w") as log:
            process = self._cluster.nodes[number].start(
                [program, *flags], env=self._environment, stdout=log, stderr=log
            )
        self._processes = [*self._daemons(), process]

    def _daemons(self):
        return getattr(self, "_processes", [])

    def _is_up(self):
        with contextlib.suppress(AssertionError):
            states = self.call("sinfo", "-h", "-N", "-o", "%T").split()
            return states == ["idle"] * len(self._cluster.nodes)
        return False

    def call(self, *words, **variables):
        """Runs one of Slurm's commands on node 1, in the clone; what it prints."""
        environment = self._environment | variables
        return self._cluster.nodes[1].call(words, cwd=ROOT, env=environment)

    def submit(self, *words, **variables):
        """``sbatch`` with these words; the job's number."""
        found = self.call("sbatch", "--parsable", *words, **variables)
        return int(found.split(";")[0])

    def jobs(self, job):
        """What Slurm says of a job, or of each task of an array: dicts of its fields."""
        lines = self.call("scontrol", "show", "job", job, "--oneliner").splitlines()
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if line.strip()]

    def wait(self, job):
        """Waits until a job, or all tasks of an array, have ended; their fields."""

        def ended():
            found = self.jobs(job)
            # A job is listed as ended a moment before its last process is.
            is_so = all(one["JobState"] in _ENDED for one in found)
            return found if is_so else None

        return wait_for(ended, JOB_SECONDS, *self._daemons())

    def do_not_hold_back(self, job):
        """Starts a requeued job in seconds, which Slurm would leave waiting for two minutes."""
        self.wait_until_pending(job)
        # In the second of its end a node takes it for the job that it has just put an end to.
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now+5")

    def wait_until_pending(self, job):
        """Waits until a job has been queued again."""
        wait_for(lambda: self._is_pending(job), JOB_SECONDS, *self._daemons())

    def _is_pending(self, job):
        return any(one["JobState"] == "PENDING" for one in self.jobs(job))
