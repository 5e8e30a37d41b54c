"""One run at a time in an output folder: rank 0 holds a lease on it.

Two trainers in one folder would empty, seal and remove each other's checkpoints. Locks of a file
system do not reach from node to node everywhere, so the lease is a file: who holds it, and a count
that its holder raises again and again. On one machine the holder's process is looked up. From
another one the count is watched for some seconds: a holder that is gone no longer counts. No clock
is compared with another one.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from grpo_stream.errors import CheckpointError, ConfigError
from grpo_stream.storage.atomic_files import temp_beside
from grpo_stream.train.cluster.together import together

LEASE_NAME = "run.lease"
"""File of an output folder that says which process trains in it."""
BEAT_SECONDS = 5.0
"""Time between two counts."""
_WATCHED_BEATS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who holds a lease."""

    host: str
    machine: str
    """Of its boot and its process ids: equal on two processes that can look each other up."""
    pid: int
    started: float
    """When the process began, since the machine's own start; tells it from a later one of that id.
    """
    token: str
    """Of this one holding."""
    count: int = 0

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        own = os.getpid()
        return cls(socket.gethostname(), _machine(), own, _started(own), uuid.uuid4().hex)

    def is_process(self, other: "Holder") -> bool:
        """Whether both are the same process."""
        own = (self.machine, self.pid, self.started)
        return own == (other.machine, other.pid, other.started)

    def has_ended(self) -> bool:
        """Whether the process, of this machine, is there no longer."""
        try:
            is_zombie = psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
            return is_zombie or _started(self.pid) != self.started
        except (psutil.NoSuchProcess, FileNotFoundError):
            return True


class OutputLease:
    """A lease that is held; see :func:`holding`."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self._path = path
        self._holder = holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._count, name="output lease", daemon=True)

    def check(self) -> None:
        """Checks that nobody has taken the lease meanwhile.

        Raises:
            CheckpointError: somebody has.
        """
        found = _read(self._path)
        if found is not None and found.token != self._holder.token:
            raise CheckpointError(
                f"{self._path.parent} was taken over by another run ({_named(found)}): this one "
                "writes nothing more there; give each run an output_dir of its own"
            )

    def start(self) -> None:
        """Counts from now on."""
        self._thread.start()

    def release(self) -> None:
        """Gives the folder back, unless it was taken."""
        self._ended.set()
        self._thread.join()
        found = _read(self._path)
        if found is not None and found.token == self._holder.token:
            self._path.unlink(missing_ok=True)

    def _count(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            found = _read(self._path)
            if found is not None and found.token != self._holder.token:
                return  # the next check says so
            self._holder = replace(self._holder, count=self._holder.count + 1)
            with contextlib.suppress(OSError):  # a full disk ends no run
                _write(self._path, self._holder)


@contextmanager
def holding_on_rank_0(output_dir: Path, *, is_rank_0: bool) -> Iterator[OutputLease | None]:
    """:func:`holding` on rank 0; every rank must enter, and all fail where it fails.

    Raises:
        ConfigError: another run holds it.
    """
    with contextlib.ExitStack() as stack:
        held: list[OutputLease] = []

        def hold() -> None:
            held.append(stack.enter_context(holding(output_dir)))

        together(hold, does=is_rank_0)
        yield held[0] if held else None


@contextmanager
def holding(output_dir: Path) -> Iterator[OutputLease]:
    """Holds the lease of an output folder, or shares it where this very process does already.

    Raises:
        ConfigError: another run holds it.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    path, holder = output_dir / LEASE_NAME, Holder.here()
    while not _create(path, holder):
        found = _read(path)
        if found is not None and found.is_process(holder):
            yield OutputLease(path, found)
            return
        if found is not None and not _is_stale(path, found, holder):
            expected = (
                f"is in use by another run ({_named(found)}); give another output_dir, or end that "
                f"run first. If there is none, remove {path}"
            )
            raise ConfigError("output_dir", str(output_dir), expected)
        logger.warning("%s is left over from a run that has ended, and is taken over", path)
        _remove(path, found)
    lease = OutputLease(path, holder)
    lease.start()
    try:
        yield lease
    finally:
        lease.release()


def _is_stale(path: Path, found: Holder, own: Holder) -> bool:
    if found.machine == own.machine:
        return found.has_ended()
    seconds = _WATCHED_BEATS * BEAT_SECONDS
    logger.warning(
        "waiting %.0f s to see whether %s still trains in %s", seconds, _named(found), path.parent
    )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 10)
        now = _read(path)
        if now is None or (now.token, now.count) != (found.token, found.count):
            return now is None
    return True


def _create(path: Path, holder: Holder) -> bool:
    """Makes the lease whole in one step, unless there is one."""
    temp = temp_beside(path)
    temp.write_text(json.dumps(asdict(holder)))
    try:
        os.link(temp, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
    return True


def _write(path: Path, holder: Holder) -> None:
    temp = temp_beside(path)
    temp.write_text(json.dumps(asdict(holder)))
    temp.replace(path)


def _remove(path: Path, found: Holder | None) -> None:
    """Removes a stale lease, and not the one that another start has made in its place."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    now = _read(aside)
    if now is not None and (found is None or now.token != found.token):
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _read(path: Path) -> Holder | None:
    """None where there is none, or none that can be read: nobody's."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _started(pid: int) -> float:
    """In a unit of the system's own."""
    if Path("/proc/self/stat").exists():  # counted from boot: psutil would add the clock's time
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return float(fields[19])
    started: float = psutil.Process(pid).create_time()
    return started


def _named(holder: Holder) -> str:
    return f"process {holder.pid} on {holder.host}"


def _machine() -> str:
    """Of the boot and the namespace of process ids, as Linux tells them; else the host's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
