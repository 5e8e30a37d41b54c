"""Nodes as a team has them: sshd, a host file, a shared folder, an S3 server on the network."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.cluster.machines import Machine, Switch, wait_for

ROOT = Path(__file__).resolve().parents[2]
PORT = 9000
BUCKET = "bucket"
START_SECONDS = 60
RUN_SECONDS = 240
COMPARED = ("loss", "grad_norm", "reward", "reward_std", "entropy")
SETTINGS = {
    "deepspeed": "ds_configs/zero3_cpu.json",
    "reward_funcs": "tests.cluster.rewards:some_reward",
    "prompt_template": "plain",
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 4,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": "false",
    "max_steps": 1000,
    "save_steps": 2,
    "save_total_limit": 2,
    "logging_steps": 1,
    "report_to": "none",
    "seed": 42,
    "ddp_timeout": 60,
    "prefetch_batches": 1,
}
PYTHON = sys.executable
DEEPSPEED = Path(PYTHON).parent / "deepspeed"

SSHD = """\
Port 22
HostKey {folder}/{name}.key
AuthorizedKeysFile {folder}/user.key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
"""
SSH = """\
Host *
  IdentityFile {folder}/user.key
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
"""


class Cluster(ExitStack):
    """Nodes ``node-1``, ``node-2``, ... on a switch that has an S3 server.

    Args:
        folder: Shared by all, as everything outside of ``/run`` and ``/dev/shm`` is.
        num_nodes: How many.
    """

    shards = f"s3://{BUCKET}/train"
    num_steps = 14

    def __init__(self, folder, num_nodes):
        super().__init__()
        self.folder = folder
        self.numbers = range(1, num_nodes + 1)
        self.nodes = {}

    def __enter__(self):
        super().__enter__()
        folder = self.folder
        serve = [PYTHON, "-m", "moto.server", "-H", Switch.address, "-p", PORT]
        self.switch = self.enter_context(Switch(folder, list(map(str, serve))))
        keys = ["user", *map(name_of, self.numbers)]
        for name in keys:
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / f"{name}.key"]
            subprocess.run(command, check=True)
        known = [
            f"{name},10.77.0.{10 + number} {(folder / f'{name}.key.pub').read_text()}"
            for number, name in zip(self.numbers, keys[1:], strict=True)
        ]
        (folder / "known_hosts").write_text("".join(known))
        (folder / "ssh_config").write_text(SSH.format(folder=folder))
        lines = [f"{name_of(number)} slots=1\n" for number in self.numbers]
        (folder / "hostfile").write_text("".join(lines))
        lines = [f"{name}={value}\n" for name, value in environment().items()]
        (folder / "deepspeed_env").write_text("".join(lines))
        for number in self.numbers:
            self.start(number)
        self._make_bucket()
        return self

    def start(self, number):
        """Switches a node on."""
        folder, name = self.folder, name_of(number)
        others = "".join(f"10.77.0.{10 + n} {name_of(n)}\n" for n in self.numbers)
        # As Debian does it, which leads gloo astray unless it is told the interface.
        hosts = f"127.0.0.1 localhost\n127.0.1.1 {name}\n{others}"
        (folder / f"{name}.hosts").write_text(hosts)
        (folder / f"{name}.sshd").write_text(SSHD.format(folder=folder, name=name))
        setup = [
            f"mount --bind {folder}/{name}.hosts /etc/hosts",
            f"mount --bind {folder}/ssh_config /etc/ssh/ssh_config",
            "mkdir /run/sshd",
        ]
        sshd = [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", f"{folder}/{name}.sshd"]
        node = self.enter_context(Machine(name, folder, sshd, setup))
        self.switch.join(node, number)
        self.nodes[number] = node

    def run(self, name, *, hosts=None, **settings):
        """Starts the DeepSpeed launcher on node 1, over ssh to all nodes unless told otherwise."""
        hosts = hosts or ["--hostfile", self.folder / "hostfile"]
        settings |= {"output_dir": self.folder / name, "resume_from_checkpoint": "auto"}
        own = {
            "DS_ENV_FILE": str(self.folder / "deepspeed_env"),
            # ssh alone never notices that a node has gone.
            "PDSH_SSH_ARGS_APPEND": "-o ServerAliveInterval=5 -o ServerAliveCountMax=3",
        }
        return self.start_run(
            name, [DEEPSPEED, *hosts, "launch/train.py", *self.flags(settings)], own
        )

    def flags(self, settings):
        """Flags of ``launch/train.py``: a tiny policy on the S3 server's shards, and these."""
        own = {"shards": self.shards, "model_name_or_path": self.folder / "tiny"}
        pairs = (SETTINGS | own | settings).items()
        return [word for name, value in pairs for word in (f"--{name}", value)]

    def start_run(self, name, command, variables, node=1):
        """Starts a command on a node that trains into the folder ``name``."""
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        with log.open("w") as output:
            process = self.nodes[node].start(
                command,
                cwd=ROOT,
                env=environment() | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return Run(name, self.folder / name, log, process)

    def ranks(self, number):
        """The training processes of a node."""
        node = self.nodes[number]
        return node.processes("launch/train.py", "--local_rank=") if node.is_up else []

    def launchers(self, name):
        """Processes of all nodes whose command lines hold ``name``."""
        return [process for node in self.nodes.values() for process in node.processes(name)]

    def repair(self):
        """Ends whatever runs on the nodes, and switches on and joins those that are not."""
        for number, node in self.nodes.items():
            if not node.is_up:
                self.start(number)
            self.switch.mend(number)
            for process in self.nodes[number].processes():
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended with another
                    if "listener" not in " ".join(process.cmdline()):
                        process.kill()

    @property
    def store(self):
        """The S3 server's process."""
        return psutil.Process(self.switch.machine.pid)

    def _make_bucket(self):
        url = f"http://{Switch.address}:{PORT}/{BUCKET}"
        ask = f"import urllib.request as r; r.urlopen(r.Request({url!r}, method='PUT'))"

        def is_made():
            with contextlib.suppress(AssertionError):
                self.nodes[1].call([PYTHON, "-c", ask])
                return True
            return False

        wait_for(is_made, START_SECONDS)


def name_of(number):
    return f"node-{number}"


def environment():
    """What ranks need to know; it reaches them through ``.deepspeed_env``."""
    names = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "TORCH_EXTENSIONS_DIR")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "eth0",
        "AWS_ENDPOINT_URL": f"http://{Switch.address}:{PORT}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


@dataclass
class Run:
    """A run that was started."""

    name: str
    folder: Path
    log_path: Path
    process: Any = None
    """The launcher's; none where a queue has it."""

    def log(self):
        """What launcher and ranks have said."""
        return self.log_path.read_text(errors="replace")

    def reaches(self, global_step):
        """Waits for a global step to be logged; returns this run."""
        line = f"global step {global_step}:"
        try:
            wait_for(lambda: line in self.log(), RUN_SECONDS, self.process)
        except AssertionError as error:
            raise AssertionError(self.log()) from error
        return self

    def wait(self, seconds=RUN_SECONDS):
        """Waits for the launcher's end; its exit code."""
        return self.process.wait(timeout=seconds)

    def last_checkpoint(self):
        """Global step of the newest checkpoint."""
        return max(int(path.name.split("-")[1]) for path in self.folder.glob("checkpoint-*"))

    def entries(self):
        """The log of the newest checkpoint, an entry for each global step from the first on."""
        state = self.folder / f"checkpoint-{self.last_checkpoint()}/trainer_state.json"
        return [e for e in json.loads(state.read_text())["log_history"] if "loss" in e]

    def logged(self, name):
        """One value for each global step that logged it."""
        return [entry[name] for entry in self.entries() if name in entry]

    def losses(self):
        """What must be equal when the same work was done, by global step."""
        return {entry["step"]: {name: entry[name] for name in COMPARED} for entry in self.entries()}
