import threading
import time

import pytest

from grpo_stream.records.read_ahead import ReadAhead

WAIT_SECONDS = 5


class Blobs:
    """Counts reads; each waits until it may go on."""

    def __init__(self, num_bytes=10):
        self.num_bytes = num_bytes
        self.begun = []
        self.running = self.most_running = 0
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    def read(self, name):
        with self._lock:
            self.begun.append(name)
            self.running += 1
            self.most_running = max(self.running, self.most_running)
        self.gate.wait(WAIT_SECONDS)
        with self._lock:
            self.running -= 1
        if name.startswith("bad"):
            raise OSError(name)
        return name.encode().ljust(self.num_bytes)


def until(condition):
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def blobs():
    return Blobs()


def names(count):
    return [f"n{number}" for number in range(count)]


def test_everything_is_read_once_and_arrives_as_asked(blobs):
    ahead = ReadAhead(blobs.read, num_requests=4)
    ahead.plan(names(50))
    assert [ahead.take(name).strip().decode() for name in names(50)] == names(50)
    assert sorted(blobs.begun) == sorted(names(50))
    assert blobs.most_running <= 4
    ahead.close()


def test_requests_run_at_the_same_time(blobs):
    blobs.gate.clear()
    ahead = ReadAhead(blobs.read, num_requests=5)
    ahead.plan(names(20))
    until(lambda: blobs.running == 5)
    blobs.gate.set()
    ahead.close()


def test_bytes_that_wait_are_bounded(blobs):
    ahead = ReadAhead(blobs.read, num_requests=2, max_bytes=55)
    ahead.plan(names(50))
    until(lambda: blobs.running == 0 and len(blobs.begun) >= 6)
    time.sleep(0.02)
    assert len(blobs.begun) in (6, 7)  # six pass the bound; a seventh may have been on its way
    for name in names(50):
        ahead.take(name)
    assert len(blobs.begun) == 50
    ahead.close()


def test_blobs_that_nobody_takes_make_room_for_later_ones(blobs):
    ahead = ReadAhead(blobs.read, num_requests=1, max_bytes=15)
    ahead.plan(names(30))
    until(lambda: len(blobs.begun) == 2 and blobs.running == 0)
    ahead.take("n1")
    until(lambda: len(blobs.begun) == 4 and blobs.running == 0)
    assert ahead.take("n0").strip() == b"n0"  # it was dropped, so it is read again
    ahead.close()


def test_what_was_not_planned_is_read_at_once(blobs):
    ahead = ReadAhead(blobs.read)
    assert ahead.take("other").strip() == b"other"
    ahead.close()


def test_errors_are_raised_where_the_blob_is_taken(blobs):
    ahead = ReadAhead(blobs.read, num_requests=2)
    ahead.plan(["n0", "bad", "n1"])
    ahead.take("n0")
    with pytest.raises(OSError, match="bad"):
        ahead.take("bad")
    assert ahead.take("n1").strip() == b"n1"
    ahead.close()


def test_a_new_plan_drops_the_old_one(blobs):
    ahead = ReadAhead(blobs.read, num_requests=1, max_bytes=15)
    ahead.plan(names(30))
    until(lambda: len(blobs.begun) == 2 and blobs.running == 0)
    ahead.plan(["x", "y", "z"])
    assert [ahead.take(name).strip() for name in "xyz"] == [b"x", b"y", b"z"]
    assert blobs.begun == ["n0", "n1", "x", "y", "z"]
    ahead.close()


def test_close_ends_the_threads(blobs):
    before = threading.active_count()
    blobs.gate.clear()
    ahead = ReadAhead(blobs.read, num_requests=3)
    ahead.plan(names(30))
    until(lambda: blobs.running == 3)
    blobs.gate.set()
    ahead.close()
    assert threading.active_count() == before
    assert len(blobs.begun) < 30
