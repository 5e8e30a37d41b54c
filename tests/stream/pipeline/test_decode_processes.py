"""Worker processes that decode: same order, and nothing left behind however one side ends."""

import contextlib
import os
import signal
import sys
import time

import psutil
import pytest

from grpo_stream.errors import WorkerDiedError
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.record_source import RecordSource
from tests.shards.cache_support import start_process, wait_for
from tests.shards.support import image_bytes
from tests.stream.fault_support import open_loader
from tests.stream.support import damage, epoch_keys, keys_of, make_config, write_numbered_set

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
]

_PARENT = """
import os, sys, time
from pathlib import Path
from tests.stream.fault_support import open_loader
from tests.stream.support import write_numbered_set

if __name__ == "__main__":
    with open_loader(sys.argv[1], num_decode_processes=2) as loader:
        loader.get(0, 0)
        print(*loader._processes._pool._processes, flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    return write_numbered_set(tmp_path / "set", 24)


def workers_of(loader):
    return list(loader._processes._pool._processes)


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def where_am_i(sample, config):
    return os.getpid()


def die_at_one(sample, config):
    if sample.key == "000009":
        os.kill(os.getpid(), signal.SIGKILL)
    return sample


def test_decoding_happens_there(folder):
    with open_loader(str(folder), num_decode_processes=1, transform=list) as loader:
        loader._processes._open_sample = where_am_i
        pids = {pid for batch in loader for pid in batch}
        assert pids == set(workers_of(loader))
        assert os.getpid() not in pids


def test_damage_is_told_and_replaced(folder):
    with open_loader(str(folder), num_decode_processes=1, num_lanes=5) as loader:
        damage(loader.stream.sources[0], 2, 1)
        keys = [key for batch in loader for key in batch]
        keys += [key for batch in loader for key in batch]
        assert "000009" not in keys
        assert loader.stream.counters.num_bad_by_cause == {"checksum": 1}


def test_close_ends_them(folder):
    with open_loader(str(folder), num_decode_processes=2) as loader:
        list(loader)
        pids = workers_of(loader)
    assert pids
    wait_for(lambda: all(is_gone(pid) for pid in pids))


@pytest.mark.parametrize("num_decode_processes", [1, 2])
def test_one_that_is_killed_is_told_soon(folder, num_decode_processes):
    reference = epoch_keys(folder)
    with open_loader(
        str(folder),
        num_decode_processes=num_decode_processes,
        prefetch_batches=1,
        fetch_ahead_bytes=1,
    ) as loader:
        assert loader.get(0, 0) == reference[0]
        pids = workers_of(loader)
        os.kill(pids[0], signal.SIGKILL)
        wait_for(lambda: is_gone(pids[0]))
        started = time.monotonic()
        for _ in range(2):
            with pytest.raises(WorkerDiedError, match="resume from the last checkpoint"):
                [loader.get(0, number) for number in range(1, 6)]
        assert time.monotonic() - started < 5
        state = loader.stream.cursor(0, 1).to_dict()
    wait_for(lambda: all(is_gone(pid) for pid in pids))
    with open_loader(str(folder)) as loader:  # and nothing is lost
        loader.load_state_dict(state)
        assert list(loader) == reference[1:]


def test_one_that_is_killed_in_the_middle_of_a_sample(folder):
    with open_loader(str(folder), num_decode_processes=1, transform=keys_of) as loader:
        loader._processes._open_sample = die_at_one
        with pytest.raises(WorkerDiedError):
            list(loader)


def test_they_end_with_a_parent_that_is_killed(folder):
    parent = start_process(_PARENT, folder)
    try:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert pids
        assert not any(is_gone(pid) for pid in pids)
        parent.kill()
        parent.wait()
        wait_for(lambda: all(is_gone(pid) for pid in pids))
    finally:
        parent.kill()
        parent.wait()
        parent.stdin.close()
        parent.stdout.close()


def test_they_end_with_a_parent_that_exits_without_closing(folder):
    code = _PARENT.replace("with open_loader(", "opened = open_loader(").replace(
        ") as loader:", ")\n    if loader := opened.__enter__():"
    )
    parent = start_process(code, folder)
    pids = [int(word) for word in parent.stdout.readline().split()]
    with contextlib.closing(parent.stdout):
        parent.stdin.close()
        assert parent.wait(20) == 0
    assert pids
    wait_for(lambda: all(is_gone(pid) for pid in pids))


def test_raw_records_keep_the_byte_budget_too(tmp_path):
    (tmp_path / "a.png").write_bytes(image_bytes())
    record = {"image": "a.png", "prompt": "Click", "solution": [1, 2]}
    source = RecordSource([record | {"id": n} for n in range(400)], tmp_path)
    config = make_config(num_decode_processes=1, prefetch_batches=1, fetch_ahead_bytes=2**22)
    with PromptLoader(PromptStream(source, config), keys_of) as loader:
        assert len(loader.get(0, 0)) == 4
        assert len(loader._works) <= 4  # of 4 samples each, and 16 of them may be ahead
