import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[3]
RANK = """\
import sys, time
from grpo_stream.train.cluster.exit_with_launcher import end_with_launcher
end_with_launcher(lambda: sys.argv[-1] == "ending", 0.05)
print("rank", flush=True)
time.sleep(60)
"""
STARTER = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"


@pytest.fixture
def start(tmp_path):
    """Starts a rank below processes of the given names; (those, outermost first, and the rank)."""
    started = []

    def start(*names, flags=()):
        words = [sys.executable, "-c", RANK, *flags]
        for name in reversed(names):
            script = tmp_path / name
            script.write_text(STARTER)
            words = [sys.executable, str(script), *words]
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "rank\n"
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
        started.append(family)
        assert len(family) == len(names) + 1
        return family

    yield start
    for outermost, *family in started:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        outermost.kill()
        outermost.communicate()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_ends_with_either_launcher_of_deepspeed(start, killed):
    family = start("deepspeed", "deepspeed.launcher.launch")
    family[killed].send_signal(signal.SIGKILL)
    family[-1].wait(timeout=60)
    with contextlib.suppress(psutil.NoSuchProcess):
        family[1].kill()
    assert "its launcher has gone" in family[0].stderr.read()


def test_a_rank_ends_with_torchrun_but_not_with_what_began_that(start):
    script, torchrun, rank = start("script", "torchrun")
    script.kill()
    time.sleep(0.5)
    assert rank.is_running()
    torchrun.kill()
    rank.wait(timeout=60)


def test_a_run_that_was_begun_by_hand_may_outlive_its_shell(start):
    shell, rank = start("shell")
    shell.kill()
    time.sleep(0.5)
    assert rank.is_running()


def test_a_rank_that_is_ending_anyhow_is_left_to_it(start):
    deepspeed, _, rank = start("deepspeed", "deepspeed.launcher.launch", flags=["ending"])
    deepspeed.kill()
    time.sleep(0.5)
    assert rank.is_running()
