import time

import psutil
import pytest

from benchmarks.loaders.bare_loop import BARE
from benchmarks.loaders.bench_data import make_shards
from benchmarks.loaders.job import Job
from benchmarks.loaders.turns import Contestant


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    shards = make_shards(tmp_path_factory.mktemp("turns"), 24, 12, (64, 48))
    return Job(BARE, str(shards), batch_size=4, num_warm_up=4, num_samples=8, num_turns=2)


def family(contestant):
    parent = psutil.Process(contestant._process.pid)
    return [parent, *parent.children(recursive=True)]


def stands_still(contestant):
    # Only its first process was waited for: another may get the signal a moment later.
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        if {process.status() for process in family(contestant)} == {psutil.STATUS_STOPPED}:
            return True
        time.sleep(0.01)
    return False


def test_all_of_a_contestant_stands_still_between_its_turns(job):
    with Contestant(job) as one, Contestant(job) as other:
        for left in (1, 0):
            for contestant in (one, other):
                assert len(family(contestant)) == 3
                assert stands_still(contestant)
                measured = contestant.take_turn()
                assert measured.num_samples == 8
                assert measured.cpu_seconds > 0
                assert contestant.turns_left == left
    assert one._process.returncode == other._process.returncode == 0


def test_what_has_turns_left_is_ended(job):
    with Contestant(job) as contestant:
        processes = family(contestant)
        contestant.close()
    gone, alive = psutil.wait_procs(processes, timeout=10)
    assert (len(gone), alive) == (3, [])


def test_what_it_said_is_told_when_it_fails(job, tmp_path):
    with pytest.raises(RuntimeError, match=r"threads: (?s:.)*nowhere"):
        Contestant(Job("threads", str(tmp_path / "nowhere"), num_turns=1))
