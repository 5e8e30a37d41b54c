"""Starts ranks on this machine as a launcher would, and waits for all of them."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NUM_RANKS = 2


def run_ranks(words_of_rank, *, timeout, exit_code=0):
    """What each of two ranks printed; all must end with ``exit_code`` within ``timeout`` seconds.

    ``words_of_rank`` gives Python's arguments for a rank.
    """
    port = str(free_port())
    ranks = [_start(rank, port, words_of_rank(rank)) for rank in range(NUM_RANKS)]
    late = threading.Timer(timeout, lambda: [rank.kill() for rank in ranks])
    late.start()
    try:
        told = [rank.communicate()[0] for rank in ranks]
    finally:
        late.cancel()
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [exit_code] * NUM_RANKS, "\n".join(told)
    return told


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(rank, port, words):
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
    own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    own |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
