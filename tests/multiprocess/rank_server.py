"""Forks ranks from a process that has imported the training stack; started by ranks.py.

A rank then starts in a tenth of a second instead of the five that the imports take. What forks
share and fresh processes would not: the seed of ``hash()``, so a rank's sets have the order of the
other's. Tests that start the launcher (test_zero3.py) have ranks that differ in that, too.

Standard input has a job a line, and standard output gets its exit codes, negative for a signal::

    {"timeout_seconds": 60, "ranks": [{"words": [...], "environment": {...}, "log": path}, ...]}
"""

import gc
import importlib
import json
import os
import random
import runpy
import signal
import sys
import time

import numpy as np

from grpo_stream.train.cluster.early_end import end_process

_PRELOADED = ("deepspeed", "grpo_stream.train.trainer", "grpo_stream.train.setup.open_data")


def main():
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # a rank's collections, the one at its end too, would look through all of that
    for line in sys.stdin:
        job = json.loads(line)
        pids = []
        for rank in job["ranks"]:
            pid = os.fork()
            if pid == 0:
                return _run(**rank)
            pids.append(pid)
        codes = _exit_codes(pids, job["timeout_seconds"])
        sys.stdout.write(f"{json.dumps(codes)}\n")
        sys.stdout.flush()
    return None


def _run(words, environment, log):
    streams = [os.open(os.devnull, os.O_RDONLY)]
    streams += [os.open(log, os.O_WRONLY | os.O_CREAT)] * 2
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    np.random.seed()  # noqa: NPY002 - what a library may draw from
    module, *sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    end_process(0)  # as launch scripts do: a thread in torch may abort one that ends otherwise


def _exit_codes(pids, timeout_seconds):
    """Waits for all; those that are still there after the time are killed."""
    deadline = time.monotonic() + timeout_seconds
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    main()
