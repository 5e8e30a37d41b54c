"""What holds for all tests, and the server that many of them talk to."""

import os

import pytest
from hypothesis import settings

# Speed is never asserted: a shared machine may stall any example. CI repeats the same examples, so
# that a failure there is the change's own; runs by hand look for new ones.
settings.register_profile("grpo_stream", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("grpo_stream")


@pytest.fixture
def server(monkeypatch):
    """An empty object store; ``s3://`` leads to it."""
    from benchmarks.servers.object_server import ObjectServer

    pytest.importorskip("obstore")
    with ObjectServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
