"""Starts ranks on this machine as a launcher would, and waits for all of them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NUM_RANKS = 2
_OWN = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
}


def run_ranks(words_of_rank, *, timeout, exit_code=0, num_ranks=NUM_RANKS):
    """What each of the ranks printed; all must end with ``exit_code`` within ``timeout`` seconds.

    ``words_of_rank`` gives the name of a module and its arguments, for a rank. All ranks of a test
    run are forked from one process: see rank_server.py.
    """
    world = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"{rank}.log") for rank in range(num_ranks)]
        ranks = [
            {
                "words": [str(word) for word in words_of_rank(rank)],
                "environment": {
                    **os.environ, **_OWN, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)
                },
                "log": str(log),
            }
            for rank, log in enumerate(logs)
        ]  # fmt: skip
        codes = _ask_server({"timeout_seconds": timeout, "ranks": ranks})
        told = [log.read_text() if log.exists() else "" for log in logs]
    assert codes == [exit_code] * num_ranks, "\n".join(told)
    return told


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _ask_server(job):
    server = _server()
    try:
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())
    except BaseException:  # a time-out of the test's own: the next one must not get this answer
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        _server.cache_clear()
        raise


@cache
def _server():
    """Ends with its standard input, whatever becomes of this process."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.multiprocess.rank_server"],
        cwd=ROOT,
        env={**os.environ, **_OWN},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
