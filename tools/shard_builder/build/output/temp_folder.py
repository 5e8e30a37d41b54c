"""A folder for temporary files that does not outlive its build, not even one that was killed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "shard-builder-"
_LOCK_NAME = ".lock"


@contextmanager
def temp_folder() -> Iterator[Path]:
    """A new folder where temporary files go (TMPDIR), removed when the block ends.

    Folders of builds that were killed are removed first: nobody holds their lock any more.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        _remove_if_left(path)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    # Locked before it has its name, so that no other build finds it without a holder.
    unnamed = folder / "lock"
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):  # no locks here: then nobody may take it for one that was left
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            unnamed.rename(folder / _LOCK_NAME)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_if_left(path: Path) -> None:
    with suppress(OSError):  # another user's, without a lock, or somebody else removes it
        descriptor = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)
