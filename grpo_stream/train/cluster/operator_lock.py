"""DeepSpeed's compiled operators: where they are kept, and locks that dead processes leave there.

torch (2.13, ``torch.utils.cpp_extension``) compiles an operator under a file ``lock`` beside it. A
process that is killed meanwhile leaves the file, and whoever needs the operator afterwards waits
for it for ever.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

import psutil

from grpo_stream.errors import ConfigError
from grpo_stream.train.cluster.waiting import waiting_for

STALE_SECONDS = 60.0
_FOLDER = "TORCH_EXTENSIONS_DIR"
_TICK_SECONDS = 0.2


def use_operators_of_venv() -> None:
    """Finds the operators that ``make setup`` has built, outside of make too.

    They are in the virtual environment; a ``TORCH_EXTENSIONS_DIR`` that is set wins.
    """
    built = Path(sys.prefix, "torch_extensions")
    if _FOLDER not in os.environ and built.is_dir():
        os.environ[_FOLDER] = str(built)


def wait_for_compilers(*, removes_stale: bool = True, stale_seconds: float = STALE_SECONDS) -> None:
    """Returns when no process compiles an operator here; says after 10 s which it waits for.

    Args:
        removes_stale: Removes locks that nobody holds any longer, and says so. For one process of
            a node: the others wait until it has.
        stale_seconds: How long nothing beside a lock may change before it can count as that: its
            process may be on another node, which shares the folder.

    Raises:
        ConfigError: such a lock cannot be removed.
    """
    with waiting_for(lambda: f"another process that compiles ({_words(_locks())})"):
        while locks := _locks():
            for lock in locks if removes_stale else ():
                if _is_stale(lock, stale_seconds):
                    _remove(lock)
            time.sleep(_TICK_SECONDS)


def _locks() -> list[Path]:
    if _FOLDER in os.environ:
        return sorted(Path(os.environ[_FOLDER]).glob("*/lock"))
    from torch.utils.cpp_extension import get_default_build_root  # noqa: PLC0415 - slow

    return sorted(Path(get_default_build_root()).glob("*/*/lock"))


def _words(locks: list[Path]) -> str:
    return ", ".join(map(str, locks)) or "done now"


def _is_stale(lock: Path, stale_seconds: float) -> bool:
    try:
        newest = max(path.stat().st_mtime for path in (lock, *lock.parent.iterdir()))
    except FileNotFoundError:  # its process has just finished
        return False
    return time.time() - newest > stale_seconds and not _is_held(lock)


def _is_held(lock: Path) -> bool:
    """Whether a process of this machine has the file open, as torch's does while it compiles."""
    name = str(lock.resolve())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or another user's
            if any(one.path == name for one in process.open_files()):
                return True
    return False


def _remove(lock: Path) -> None:
    try:
        lock.unlink(missing_ok=True)
    except OSError as error:
        expected = (
            f"has a lock of a process that is gone, and it cannot be removed ({error.strerror}): "
            f"run `rm {lock}` as its owner"
        )
        raise ConfigError(_FOLDER, str(lock.parent.parent), expected) from error
    sys.stderr.write(f"removed {lock}: the process that compiled there is gone\n")
    sys.stderr.flush()


def build_operator() -> None:
    """Compiles DeepSpeed's operator for communication on the CPU, if it is not there yet."""
    wait_for_compilers()
    from deepspeed.comm.torch import build_shm_op  # noqa: PLC0415 - slow to import

    build_shm_op()


if __name__ == "__main__":
    build_operator()
