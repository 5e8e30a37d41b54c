import subprocess
import sys

import pytest

from benchmarks.fuzz.fuzz import fuzz
from benchmarks.fuzz.targets import Target, make_targets
from grpo_stream.errors import ImageError

TARGETS = make_targets()
NUM_RUNS = {"image": 4000}


@pytest.mark.parametrize("name", list(TARGETS))
def test_damaged_files_give_their_one_error(name):
    findings, outcomes = fuzz(name, TARGETS[name], range(NUM_RUNS.get(name, 1500)), seed=1)
    assert not findings, findings[0].what
    assert len(outcomes) > 1, "nothing was damaged"


def test_any_other_error_is_a_finding():
    def check(data):
        raise KeyError(len(data))

    findings, _ = fuzz("image", Target((b"abc",), check, (ImageError,)), range(3), seed=0)
    assert [one.run for one in findings] == [0, 1, 2]
    assert "KeyError" in findings[0].what


def test_command():
    words = ["-m", "benchmarks", "fuzz", "--runs", "50", "--seed", "3", "--target", "index"]
    run = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("index: 50 runs in ")
