import json
import subprocess
import sys
import threading
import time

import pytest

from grpo_stream.train.observe.phases import Phases
from grpo_stream.train.observe.watchdog import EXIT_STALLED, StallReport, Watchdog, summary


def make_watchdog(phases, folder, codes, **changes):
    settings = {
        "step_timeout_seconds": 0.5,
        "folder": folder,
        "rank": 0,
        "world_size": 1,
        "global_step": lambda: 7,
        "in_use": lambda stage: [f"key of {stage}"],
        "end": codes.append,
    }
    return Watchdog(phases, **(settings | changes))


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def sleep_in_a_reward(done):
    done.wait()


class TestWatchdog:
    def test_a_stall_is_told_and_ends_the_process(self, tmp_path, capsys):
        codes: list[int] = []
        phases, done = Phases(), threading.Event()
        watchdog = make_watchdog(phases, tmp_path / "stalls", codes)

        def stall():
            watchdog.start()
            with phases("update"), phases("rewards"):
                sleep_in_a_reward(done)

        thread = threading.Thread(target=stall)
        thread.start()
        wait_for(lambda: codes)
        done.set()
        thread.join()
        watchdog.stop()
        assert codes == [EXIT_STALLED]
        report = json.loads((tmp_path / "stalls/rank-00000.json").read_text())
        assert report["stage"] == "rewards"
        assert report["global_step"] == 7
        assert report["in_use"] == ["key of rewards"]
        assert report["collective"] is None
        assert report["place"].startswith("sleep_in_a_reward (")
        assert 0.5 <= report["seconds"] < 2
        told = capsys.readouterr().err
        assert "no progress within step_timeout_seconds=0.5: rank 0" in told
        assert "stage rewards for 1 s, global step 7; samples key of rewards" in told
        assert "in sleep_in_a_reward\n" in told
        assert "the run has stalled on 1 of 1 ranks" in told

    def test_progress_keeps_it_quiet(self, tmp_path):
        codes: list[int] = []
        phases = Phases()
        watchdog = make_watchdog(phases, tmp_path, codes)
        watchdog.start()
        for _ in range(30):
            with phases("rollout"):
                time.sleep(0.03)
        watchdog.stop()
        assert codes == []
        assert list(tmp_path.iterdir()) == []

    def test_the_report_of_an_earlier_run_is_removed(self, tmp_path):
        (tmp_path / "rank-00000.json").write_text("{}")
        watchdog = make_watchdog(Phases(), tmp_path, [])
        watchdog.start()
        watchdog.stop()
        assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_found_out_is_left_out(self, tmp_path, capsys):
        codes: list[int] = []
        folder = tmp_path / "stalls"
        folder.write_text("a file where the folder would be")
        watchdog = make_watchdog(Phases(), folder / "x", codes, in_use=lambda _: 1 / 0)
        watchdog._folder = folder
        watchdog._path = lambda rank: folder / "no" / f"{rank}"
        watchdog._report(watchdog._phases.stage)
        told = capsys.readouterr().err
        assert "samples unknown (division by zero)" in told
        assert "cannot leave its report" in told


HOLDS_THE_INTERPRETER = """
import re, sys
from pathlib import Path
from grpo_stream.train.observe.phases import Phases
from grpo_stream.train.observe.watchdog import Watchdog

def endless_reward():
    re.match("(a+)+$", "a" * 64 + "b")

phases = Phases()
watchdog = Watchdog(phases, step_timeout_seconds=0.5, folder=Path(sys.argv[1]), rank=0,
                    world_size=1, global_step=lambda: 0, in_use=lambda stage: [])
watchdog.start()
phases.restart()
import time; time.sleep(0.2)
with phases("rewards"):
    endless_reward()
"""


def test_c_code_that_holds_the_interpreter_is_ended_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_INTERPRETER, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in endless_reward" in done.stderr


def make_report(rank, **changes):
    fields = {
        "rank": rank,
        "host": "node-1",
        "pid": 100 + rank,
        "global_step": 3,
        "stage": "rewards",
        "stage_number": 40,
        "seconds": 9.0,
        "collective": "all_gather_into_tensor",
        "place": "gather (operations.py:1)",
        "in_use": ["a", "b"],
        "stacks": "",
    }
    return StallReport(**(fields | changes))


class TestSummary:
    def test_a_rank_in_no_collective_is_waited_for(self):
        reports = [make_report(0), make_report(1), make_report(2, collective=None), make_report(3)]
        first, behind, rest = summary(reports, 4).splitlines()
        assert first == "the run has stalled on 4 of 4 ranks and ends"
        assert "behind: rank 2 (node-1, process 102), at" in behind
        assert "samples a, b" in behind
        assert rest.strip() == "ranks 0, 1, 3: in all_gather_into_tensor, stage rewards"

    @pytest.mark.parametrize("collective", [None, "all_gather_into_tensor"])
    def test_of_several_the_one_that_is_behind(self, collective):
        reports = [
            make_report(rank, collective=collective, stage_number=number)
            for rank, number in enumerate([41, 40, 41])
        ]
        assert "behind: rank 1 " in summary(reports, 3)

    def test_a_rank_without_a_word_comes_first(self):
        lines = summary([make_report(0), make_report(3)], 4).splitlines()
        assert lines[1].strip() == "no report from ranks 1, 2: look there first"
