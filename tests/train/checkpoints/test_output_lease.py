"""Two trainers in one output folder, as processes of their own where it is about processes."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from grpo_stream.errors import CheckpointError, ConfigError
from grpo_stream.train.checkpoints import output_lease
from grpo_stream.train.checkpoints.output_lease import LEASE_NAME, Holder, holding

HOLD = """
import sys
from pathlib import Path
from grpo_stream.errors import ConfigError
from grpo_stream.train.checkpoints.output_lease import holding
try:
    with holding(Path(sys.argv[1])):
        print("holds", flush=True)
        sys.stdin.readline()
except ConfigError as error:
    print(error, flush=True)
"""


@pytest.fixture
def start(tmp_path):
    processes = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def leave(path, **changes):
    path.write_text(json.dumps(asdict(replace(Holder.here(), **changes))))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(output_lease, "BEAT_SECONDS", 0.05)


def test_the_second_is_refused_by_name_and_a_killed_one_is_no_obstacle(tmp_path, start):
    first, second = start(), start()
    told = [process.stdout.readline() for process in (first, second)]
    refused = next(words for words in told if "holds" not in words)
    holder = (first, second)["holds" not in told[0]]
    assert "is in use by another run" in refused
    assert f"process {holder.pid} on " in refused
    holder.kill()  # not yet waited for: a zombie, as under a launcher
    assert start().stdout.readline() == "holds\n"


def test_one_that_ends_leaves_nothing(tmp_path):
    with holding(tmp_path) as lease:
        lease.check()
        assert (tmp_path / LEASE_NAME).exists()
        with holding(tmp_path) as again:  # launch/train.py, and the trainer inside
            again.check()
        assert (tmp_path / LEASE_NAME).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_of_another_machine_the_count_is_watched(tmp_path):
    path = tmp_path / LEASE_NAME
    leave(path, host="node-7", machine="another", pid=1)
    ended = threading.Event()

    def count():
        number = 0
        while not ended.wait(0.02):
            number += 1
            leave(tmp_path / "next", host="node-7", machine="another", token="its", count=number)
            (tmp_path / "next").replace(path)

    counting = threading.Thread(target=count)
    counting.start()
    try:
        with pytest.raises(ConfigError, match=r"process .* on node-7"), holding(tmp_path):
            pass
    finally:
        ended.set()
        counting.join()
    with holding(tmp_path) as lease:  # it no longer counts, whatever any clock says
        lease.check()


@pytest.mark.parametrize("found", ["", "{}", "[1]"])
def test_what_cannot_be_read_is_nobodys(tmp_path, found):
    (tmp_path / LEASE_NAME).write_text(found)
    with holding(tmp_path) as lease:
        lease.check()


def test_a_process_of_the_same_number_is_another_one(tmp_path):
    leave(tmp_path / LEASE_NAME, started=1.0)
    with holding(tmp_path) as lease:
        lease.check()


@pytest.mark.usefixtures("quick")
def test_whoever_lost_it_writes_no_checkpoint(tmp_path):
    with holding(tmp_path) as lease:
        leave(tmp_path / LEASE_NAME, host="node-7")
        with pytest.raises(CheckpointError, match=r"taken over by another run .* on node-7"):
            lease.check()
        time.sleep(0.2)
    assert (tmp_path / LEASE_NAME).exists()  # it is not this one's to remove
