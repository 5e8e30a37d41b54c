"""A rank ends with its launcher. Otherwise it would keep its GPU, and train on for nobody."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

_LAUNCHERS = {
    *("deepspeed", "deepspeed.launcher.launch"),
    *("torchrun", "torch.distributed.run", "accelerate"),
}
"""Programs and modules of launchers that leave their ranks behind when they are killed."""


def launchers() -> list[psutil.Process]:
    """The launchers above this process: the one of this node, then a ``deepspeed`` that began it.

    Empty under a launcher that ends its ranks itself, as srun and mpirun do, and without any: a
    run that was started by hand may outlive its shell.
    """
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().parents():
            if _program(process.cmdline()) not in _LAUNCHERS:
                break
            found.append(process)
    return found


def end_with_launcher(is_ending: Callable[[], bool], seconds: float = 1.0) -> None:
    """Ends this process with exit code 1 soon after one of its launchers has gone.

    Args:
        is_ending: Whether the process was asked to end, as its launchers may have been: then it is
            left to do so in good order.
        seconds: How often it looks.
    """
    watched = launchers()
    if watched:
        threading.Thread(target=_watch, args=(watched, is_ending, seconds), daemon=True).start()


def _program(words: list[str]) -> str:
    """The name of what a command line runs; of Python the script or module."""
    if words and Path(words[0]).name.startswith("python"):
        words = [word for word in words[1:] if not word.startswith("-")]
    return Path(words[0]).name if words else ""


def _watch(watched: list[psutil.Process], is_ending: Callable[[], bool], seconds: float) -> None:
    # By its parents a process knows best: those that have died are replaced at once.
    pids = [process.pid for process in watched]
    while _parents(len(pids)) == pids or is_ending():
        time.sleep(seconds)
    with contextlib.suppress(OSError):
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(f"error: rank {rank}: its launcher has gone, so it ends\n")
        sys.stderr.flush()
    os._exit(1)


def _parents(number: int) -> list[int]:
    with contextlib.suppress(psutil.Error):
        return [process.pid for process in psutil.Process().parents()[:number]]
    return []
