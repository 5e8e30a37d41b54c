"""One writer for one data set: a lock of the kernel's in a folder, a lease in a bucket.

A **lease** is an object, ``_build/lock``, made by a put that fails where there is one already, and
rewritten every few seconds by its holder. Whoever finds one watches it: one that changes has a
living holder, one that stays as it is for half a minute was left by a process that was killed. No
clock of another machine is looked at. A holder on this very machine that lives no more is known at
once. A lease also guards folders of file systems without locks (Lustre without ``flock``, some of
FUSE).
"""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.storage.store import LocalStore, Store
from shard_builder.build.chunk_result import STATE_FOLDER

LEASE_NAME = f"{STATE_FOLDER}/lock"
"""The lease of a bucket, beside what an unfinished build has done."""

BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
_POLL_SECONDS = 0.5
_LOCK_NAME = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)

_logger = logging.getLogger(__name__)


class PlaceTakenError(ConfigError):
    """Another builder is at work in the place of a data set."""


class OutputLock(Protocol):
    """Keeps other builders out of a data set's place."""

    is_lost: bool
    """Whether it was noticed to be no longer ours."""

    def check(self) -> None:
        """Raises StoreError (cause ``taken_over``) where the lock is no longer ours."""

    def close(self) -> None:
        """Lets others in."""


def lock_output(store: Store, out: str) -> OutputLock:
    """Locks the place of a data set.

    Args:
        store: The place; a folder is made if missing.
        out: The place as the user named it, for messages.

    Raises:
        ConfigError: another builder is at work there, or it cannot be written.
    """
    if isinstance(store, LocalStore):
        lock = FolderLock(store.folder)
        if lock.is_held:
            return lock
        lock.close()
    return Lease(store, out)


class FolderLock:
    """A lock of the kernel's; it ends with the process, however that ends.

    Args:
        folder: The folder of the data set; made if missing.

    Raises:
        ConfigError: another builder is at work there, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._is_made = not folder.exists()
        self._folder = folder
        try:
            (folder / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
            path = folder / STATE_FOLDER / _LOCK_NAME
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            expected = f"must be a folder that can be written ({error.strerror})"
            raise ConfigError("--out", str(folder), expected) from error
        self.is_lost = False
        self.is_held = True
        """False where the file system knows no locks."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                self.is_held = False
                return
            os.close(self._descriptor)
            if error.errno in _TAKEN:
                expected = "another build is writing there: wait for it or choose another folder"
                raise PlaceTakenError("--out", str(folder), expected) from error
            expected = f"cannot be locked ({error.strerror}): is the disk sound?"
            raise ConfigError("--out", str(folder), expected) from error

    def check(self) -> None:
        """See :meth:`OutputLock.check`: a lock of the kernel's cannot be lost."""

    def close(self) -> None:
        """Lets others in; what was made for the lock and is still empty is removed."""
        try:
            folder = self._folder / STATE_FOLDER
            if [path.name for path in folder.iterdir()] == [_LOCK_NAME]:
                (folder / _LOCK_NAME).unlink()
                folder.rmdir()
                if self._is_made:
                    with suppress(OSError):  # something is there now
                        self._folder.rmdir()
        finally:
            os.close(self._descriptor)


class Lease:
    """See the module. A thread renews it until :meth:`close`.

    Args:
        store: The place of the data set.
        out: The place as the user named it.

    Raises:
        ConfigError: another builder is at work there.
        StoreError: the place cannot be written.
    """

    def __init__(self, store: Store, out: str) -> None:
        self._store = store
        self._out = out
        self._own: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._num_beats = 0
        self.is_lost = False
        self._is_closed = threading.Event()
        while not store.write_new(LEASE_NAME, self._content()):
            self._wait_for_the_end_of_another()
        self.check()  # a store without conditional puts gives it to both: the last one has it
        self._thread = threading.Thread(target=self._beat, name="build-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """See :meth:`OutputLock.check`; asks the store."""
        found = self._read()
        if self.is_lost or found is None or found.get("id") != self._own["id"]:
            self.is_lost = True
            by = "removed" if found is None else f"taken over by {_holder(found)}"
            detail = f"{self._out}: the lock of this build was {by}: it stops here"
            raise StoreError("taken_over", detail)

    def close(self) -> None:
        """Lets others in."""
        self._is_closed.set()
        self._thread.join()
        with suppress(StoreError):
            found = self._read()
            if found is not None and found.get("id") == self._own["id"]:
                self._store.delete(LEASE_NAME)

    def _content(self) -> bytes:
        return json.dumps({**self._own, "beat": self._num_beats}).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._store.read(LEASE_NAME))
        except StoreError as error:
            if error.cause != "not_found":
                raise
            return None
        except ValueError:  # being written
            return {}
        return found if isinstance(found, dict) else {}

    def _beat(self) -> None:
        while not self._is_closed.wait(BEAT_SECONDS) and not self.is_lost:
            # A store that fails for a while costs a few beats; who loses the lease hears of it
            # at the build's next check.
            with suppress(StoreError):
                self.check()
                self._num_beats += 1
                self._store.write(LEASE_NAME, self._content())

    def _wait_for_the_end_of_another(self) -> None:
        """Returns when the lease that is there is free to be taken."""
        first = self._read()
        if first is None:
            return
        if not self._is_dead_here(first):
            _logger.warning(
                "%s: %s holds the lock; %.0f s to see whether it is still alive",
                self._store.url,
                _holder(first),
                STALE_SECONDS,
            )
            deadline = time.monotonic() + STALE_SECONDS
            while time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                found = self._read()
                if found is None:
                    return
                if found != first:
                    expected = (
                        f"another build is writing there, {_holder(found)}: wait for it or choose "
                        "another place"
                    )
                    raise PlaceTakenError("--out", self._out, expected)
        if self._read() == first:
            self._store.delete(LEASE_NAME)

    def _is_dead_here(self, found: dict[str, Any]) -> bool:
        if found.get("host") != self._own["host"] or not isinstance(found.get("pid"), int):
            return False
        try:
            os.kill(found["pid"], 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        return False


def _holder(found: dict[str, Any]) -> str:
    return f"process {found.get('pid', '?')} on {found.get('host', '?')}"
