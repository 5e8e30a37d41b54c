"""Machines on one machine: Linux namespaces joined by a switch, for tests that need several nodes.

A machine has its own network, processes, mounts and host name; folders are shared, as on a
cluster's file system. All of it lives inside the namespaces, which end with the test's process,
however that ends: no name, link or process is left behind.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

PROGRAMS = ("unshare", "nsenter", "setpriv", "ip", "mount", "hostname")
START_SECONDS = 30


def obstacle(*programs):
    """Why machines cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    missing = [name for name in (*PROGRAMS, *programs) if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: iproute2 util-linux pdsh openssh-server)"
    try:
        with Machine("probe", Path("/"), ["sleep", "60"]):
            pass
    except (AssertionError, subprocess.CalledProcessError) as error:
        return f"namespaces cannot be made: {error}"
    return None


class Machine:
    """A machine that lives as long as ``command``, its first process, or this context.

    Args:
        name: Its host name.
        folder: Where its log goes, as ``NAME.log``.
        command: What it runs; the namespaces' process 1.
        setup: Shell lines that run in the machine before that.
    """

    def __init__(self, name, folder, command, setup=()):
        self.name = name
        lines = [
            f"hostname {name}",
            "mount -t tmpfs run /run",
            "mount -t tmpfs shm /dev/shm",
            "ip link set lo up",
            *setup,
            'exec "$@"',
        ]
        self._log = ExitStack()
        log = subprocess.DEVNULL
        if folder != Path("/"):
            log = self._log.enter_context((folder / f"{name}.log").open("a"))
        # Whoever dies, its child is killed: this process, unshare, the namespaces' process 1.
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork"),
                *("--kill-child=KILL", "--mount-proc", "--propagation", "private"),
                *("sh", "-euc", "\n".join(lines), "sh", *command),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def __enter__(self):
        self.pid = wait_for(self._first_process, START_SECONDS, self._process)
        return self

    def __exit__(self, *_):
        self.kill()

    @property
    def is_up(self):
        """Whether it has not been killed."""
        return self._process.poll() is None

    def kill(self):
        """Ends every process of the machine at once, and with it the machine."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def enter(self, *flags):
        """The words before a command that is to run inside."""
        return ["nsenter", "--target", str(self.pid), *flags]

    def start(self, command, **kwargs):
        """Starts a command inside, as ``subprocess.Popen`` does; it ends with the machine."""
        where = f"--wdns={kwargs.pop('cwd', '/')}"
        inside = self.enter("--net", "--pid", "--mount", "--uts", "--ipc", where)
        words = ["setpriv", "--pdeathsig", "KILL", *inside, "--", *map(str, command)]
        return subprocess.Popen(words, **kwargs)

    def call(self, command, **kwargs):
        """Runs a command inside to its end, which must be a success."""
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = self.start(command, **pipe, **kwargs)
        output, _ = process.communicate()
        assert process.returncode == 0, f"{command} on {self.name}: {output}"
        return output

    def ip(self, *words):
        """Runs ``ip`` with the machine's network."""
        subprocess.run([*self.enter("--net"), "ip", *map(str, words)], check=True)

    def processes(self, *words):
        """The machine's processes whose command line has all of ``words``."""
        own = Path(f"/proc/{self.pid}/ns/pid").readlink()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == own:
                    line = " ".join(process.cmdline())
                    if all(word in line for word in words):
                        found.append(process)
        return found

    def _first_process(self):
        """Its pid, once the set-up is done: then it is no longer the shell of the set-up."""
        for child in psutil.Process(self._process.pid).children():
            with contextlib.suppress(psutil.Error):
                if child.cmdline()[:2] != ["sh", "-euc"]:
                    return child.pid
        return None


class Switch(ExitStack):
    """A machine with a bridge, and the machines that are joined to it by cables.

    Addresses are 10.77.0.1 for the switch itself and 10.77.0.11, 12, ... for the others.
    """

    address = "10.77.0.1"

    def __init__(self, folder, command):
        super().__init__()
        setup = [
            # A bridge without an address of its own takes that of a port, and changes it with them.
            "ip link add br0 address 02:00:00:00:00:01 type bridge",
            f"ip addr add {self.address}/24 dev br0",
            "ip link set br0 up",
        ]
        self.machine = Machine("switch", folder, command, setup)

    def __enter__(self):
        super().__enter__()
        self.enter_context(self.machine)
        return self

    def join(self, machine, number):
        """Lays a cable from the machine's eth0; returns its address."""
        address, port = f"10.77.0.{10 + number}", f"port{number}"
        switch = self.machine
        switch.ip("link", "add", port, "type", "veth", "peer", "eth0", "netns", machine.pid)
        switch.ip("link", "set", port, "master", "br0", "up")
        # Always the same hardware: the others remember it for a while.
        machine.ip("link", "set", "eth0", "address", f"02:00:00:00:00:{10 + number}", "up")
        machine.ip("addr", "add", f"{address}/24", "dev", "eth0")
        return address

    def cut(self, number):
        """Pulls the cable: nothing arrives any more, and nobody is told."""
        self.machine.ip("link", "set", f"port{number}", "nomaster")

    def mend(self, number):
        """Plugs it in again."""
        self.machine.ip("link", "set", f"port{number}", "master", "br0")


def wait_for(condition, seconds, *processes):
    """The condition's first true value; an error when time is up or a process has ended."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        for process in processes:
            assert process.poll() is None, f"ended with {process.returncode}: {process.args}"
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)
    return value


@contextlib.contextmanager
def paused(process, seconds):
    """Stops a process for a time; it goes on at the block's end."""
    process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(seconds)
        yield
    finally:
        process.send_signal(signal.SIGCONT)
