"""Parts as processes of their own: in random order, two killed, two run twice at once."""

import os
import random
import signal
import time

import pytest

from grpo_stream.storage.store import open_store
from shard_builder.build.build import build
from shard_builder.build.output.kept_results import PLAN_NAME, result_names
from tests.shard_builder.support import files_of, make_settings, write_raw
from tests.shard_builder.test_bucket import objects_of
from tests.shard_builder.two_builders import command_of, end, start

pytestmark = pytest.mark.slow(reason="starts sixteen builders as processes")
FLAGS = ("--samples-per-shard", "4", "--quiet", "--shuffle-seed", "5", "--part")
LEFT_OUT = "warning: 96 of 400 records are left out"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw") / "raw", 400)


@pytest.fixture(scope="module")
def expected(raw, tmp_path_factory):
    """The files that one process makes."""
    out = tmp_path_factory.mktemp("here") / "here"
    build(make_settings(raw, out, shuffle_seed=5))
    return files_of(out)


def run_all(raw, out, num_parts):
    """Runs all parts; returns the numbers of those that were killed in the middle."""
    store = open_store(out)
    numbers = random.Random(7).sample(range(1, num_parts + 1), num_parts)
    killed, twice, rest = numbers[:2], numbers[2:4], numbers[4:]

    def part(number):
        return start(command_of(raw, out, *FLAGS, f"{number}/{num_parts}"))

    first = [part(number) for number in killed]  # both at once: one of them makes the plan
    for process in first:
        wait_for(lambda: store.exists(PLAN_NAME) and result_names(store), process)
        os.kill(process.pid, signal.SIGKILL)
        end(process)
    assert 0 < len(result_names(store)) < 400 // 4 // num_parts
    pairs = [part(number) for number in twice * 2]
    assert [end(process) for process in pairs] == [(0, "")] * 4
    for number in rest:
        assert end(part(number)) == (0, "")
    assert not store.exists("manifest.json")
    finish = [*command_of(raw, out)[:3], "finish", "--out", out]
    code, words = end(start(finish))
    named = ", ".join(map(str, sorted(killed)))
    assert code == 1
    assert f"2 are not whole yet: {named} (" in words
    assert end(part(killed[0])) == (0, "")
    last = [part(killed[1]) for _ in range(2)]  # twice at once, and the last one finishes
    ends = [end(process) for process in last]
    assert [code for code, _ in ends] == [0, 0], ends
    assert any(LEFT_OUT in words for _, words in ends), ends  # one of them has finished it
    code, words = end(start([*finish, "--quiet"]))
    assert code == 0
    assert LEFT_OUT in words


def wait_for(is_so, process):
    deadline = time.monotonic() + 60
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_in_a_folder(raw, expected, tmp_path):
    run_all(raw, str(tmp_path / "out"), 10)
    assert files_of(tmp_path / "out") == expected


def test_in_a_bucket(raw, expected, bucket):
    pytest.importorskip("obstore")
    run_all(raw, f"{bucket}/set", 5)
    assert objects_of(f"{bucket}/set") == expected
