"""What tests against a server that goes wrong begin with."""

import pytest

from tests.shards.faulty_server import faulty_server
from tests.shards.s3_server import s3_environment
from tests.stream.fault_support import serve


@pytest.fixture
def server(folder, monkeypatch):
    """Serves the data set ``folder`` of the test's module as a bucket."""
    with faulty_server() as server:
        for name, value in s3_environment(server.url).items():
            monkeypatch.setenv(name, value)
        serve(server, folder)
        yield server
