import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl

from grpo_stream.train.cluster.stop_on_request import EXIT_STOPPED, SIGNALS, StopOnRequest


@pytest.fixture
def stop():
    """Listens, in a run that has begun; afterwards the handlers are as before."""
    before = [signal.getsignal(number) for number in SIGNALS]
    stop = StopOnRequest()
    stop.listen()
    stop.on_step_begin(None, None, None)
    yield stop
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def after_step(stop, folder, global_step=3, max_steps=10, *, is_first=True):
    """What the trainer is told to do after a global step that would also evaluate."""
    args = SimpleNamespace(output_dir=str(folder), device=torch.device("cpu"), process_index=0)
    state = SimpleNamespace(
        global_step=global_step, max_steps=max_steps, is_world_process_zero=is_first
    )
    control = TrainerControl(should_evaluate=True)
    stop.on_step_end(args, state, control)
    return control


def test_nobody_asks(stop, tmp_path):
    control = after_step(stop, tmp_path)
    assert not control.should_training_stop
    assert not control.should_save
    assert control.should_evaluate
    assert not stop.has_stopped


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_for_a_checkpoint_and_the_end(stop, tmp_path, number):
    os.kill(os.getpid(), number)
    control = after_step(stop, tmp_path)
    assert control.should_training_stop
    assert control.should_save
    assert not control.should_evaluate
    assert stop.has_stopped


def test_a_file_asks_once(stop, tmp_path):
    (tmp_path / "stop").touch()
    assert after_step(stop, tmp_path).should_training_stop
    assert not (tmp_path / "stop").exists()


def test_the_first_rank_alone_looks_for_the_file(stop, tmp_path):
    (tmp_path / "stop").touch()
    assert not after_step(stop, tmp_path, is_first=False).should_training_stop


def test_a_run_that_is_done_was_not_stopped(stop, tmp_path):
    (tmp_path / "stop").touch()
    assert after_step(stop, tmp_path, global_step=10).should_save
    assert not stop.has_stopped


STORM = """
import sys
from pathlib import Path
from grpo_stream.train.cluster.early_end import EndedEarly, leave_now
from grpo_stream.train.cluster.stop_on_request import EXIT_STOPPED, StopOnRequest
from tests.train.cluster.test_stop_on_request import after_step
stop = StopOnRequest()
sys.setrecursionlimit(200)
try:
    stop.listen()
    if sys.argv[2] == "training":
        stop.on_step_begin(None, None, None)
    print("listens", flush=True)
    while sys.argv[2] == "loading":
        pass
except EndedEarly as ended:
    sum(range(3_000_000))  # what the main thread undoes
    leave_now(ended.status)
global_step = 0
while not after_step(stop, Path(sys.argv[1]), global_step, 1 << 60).should_training_stop:
    global_step += 1
for _ in range(300_000):  # a checkpoint is written
    pass
sys.exit(EXIT_STOPPED if stop.has_stopped else 0)
"""


@pytest.mark.parametrize("place", ["loading", "training"])
def test_a_storm_of_signals_is_one_request(tmp_path, place):
    """Handlers run within handlers; and Python gives up its own while it ends."""
    run = subprocess.Popen(
        [sys.executable, "-c", STORM, tmp_path, place],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert run.stdout is not None
    with run.stdout as said:
        assert said.readline() == b"listens\n"
        while run.poll() is None:
            for number in SIGNALS * 500:
                run.send_signal(number)
        assert run.returncode == EXIT_STOPPED, said.read().decode()


def test_ctrl_c_is_pythons_own_once_training_has_begun(stop):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
