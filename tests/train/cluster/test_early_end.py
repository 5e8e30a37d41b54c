"""What needs no ranks; tests/multiprocess/test_early_end.py has signals at each place of a run."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from grpo_stream.train.cluster.early_end import EarlyEnd, EndedEarly

BUSY = """\
import atexit, sys, threading, time, torch
from grpo_stream.train.cluster.early_end import end_process

def work():
    square = torch.randn(400, 400)
    while True:
        square = torch.tanh(square @ square)

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
atexit.register(print, "trackers are closed")
time.sleep(0.3)
print("done")
end_process(int(sys.argv[1]))
"""


@pytest.mark.parametrize("code", [0, 75])
def test_threads_in_torch_do_not_abort_a_process_that_ends(code):
    done = subprocess.run(
        [sys.executable, "-c", BUSY, str(code)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == "done\ntrackers are closed\n"


@pytest.fixture
def ended():
    """Exit codes, and a way to wait for the first; afterwards the handlers are as before."""
    before = signal.getsignal(signal.SIGUSR2)
    yield Ended()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGUSR2, before)


class Ended:
    def __init__(self):
        self.codes, self.happened = [], threading.Event()

    def __call__(self, code):
        self.codes.append(code)
        self.happened.set()


def test_the_main_thread_is_told_and_after_a_while_the_process_ends(ended, capfd):
    early = EarlyEnd({signal.SIGUSR2: 5}, end=ended, grace_seconds=0.2)
    early.begin()
    with pytest.raises(EndedEarly) as raised:
        os.kill(os.getpid(), signal.SIGUSR2)
    assert raised.value.status == 5
    assert ended.codes == []
    assert ended.happened.wait(10)
    assert ended.codes == [5]
    assert "received SIGUSR2 before the first step, so it ends" in capfd.readouterr().err
    os.kill(os.getpid(), signal.SIGUSR2)  # once is enough
    early.finish({signal.SIGUSR2: signal.SIG_DFL})


def test_afterwards_signals_go_to_their_next_handlers(ended):
    early = EarlyEnd({signal.SIGUSR2: 5}, end=ended, grace_seconds=0.0)
    early.begin()
    received: list[int] = []
    for _ in range(2):  # again: of nothing
        early.finish({signal.SIGUSR2: lambda number, _: received.append(number)})
    os.kill(os.getpid(), signal.SIGUSR2)
    assert not ended.happened.wait(0.3)
    assert received == [signal.SIGUSR2]


def test_a_run_that_ended_before_training_leaves_no_handler(ended):
    """Or a later signal to the same process would end it two seconds after it was dealt with."""
    before = signal.getsignal(signal.SIGUSR2)
    early = EarlyEnd({signal.SIGUSR2: 5}, end=ended, grace_seconds=0.0)
    early.begin()
    early.restore()
    assert signal.getsignal(signal.SIGUSR2) == before
    assert signal.set_wakeup_fd(-1) == -1
    assert not ended.happened.wait(0.1)
