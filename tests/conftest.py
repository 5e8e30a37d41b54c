"""What holds for all tests, and the server that many of them talk to."""

import os

# Before torch: its models here are so small that a second thread only costs time, and two workers
# with two threads each would fight for two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
import sys

import pytest
from hypothesis import settings

from grpo_stream.storage import atomic_files

# Speed is never asserted: a shared machine may stall any example. CI repeats the same examples, so
# that a failure there is the change's own; runs by hand look for new ones.
settings.register_profile("grpo_stream", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("grpo_stream")


# A shell that starts the tests in the background has Ctrl-C ignored, and every process inherits
# that: the ones that a test interrupts would never end.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    if signal.getsignal(number) is signal.SIG_IGN:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)


@pytest.fixture(autouse=True, scope="module")
def _accelerate_of_its_own():
    """accelerate keeps its precision and plugins for the process: the next file's are its own."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.fixture
def server(monkeypatch):
    """An empty object store; ``s3://`` leads to it."""
    from benchmarks.servers.object_server import ObjectServer

    pytest.importorskip("obstore")
    with ObjectServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def full_disk(monkeypatch):
    """Makes the disk full for a file that is to appear whole: give its path."""

    def fill(path):
        drawn = atomic_files.temp_beside
        temporary = drawn(path)
        temporary.symlink_to("/dev/full")
        monkeypatch.setattr(
            atomic_files,
            "temp_beside",
            lambda other: temporary if other == path else drawn(other),
        )

    return fill


def pytest_collection_modifyitems(items):
    """What ``make test`` leaves out says why."""
    for item in items:
        for marker in item.iter_markers("slow"):
            if marker.args or not marker.kwargs.get("reason"):
                expected = 'pytest.mark.slow(reason="what takes more than ten seconds")'
                raise pytest.UsageError(f"{item.nodeid}: write {expected}")
