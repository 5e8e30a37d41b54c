"""What tests against a server that goes wrong begin with."""

import pytest


@pytest.fixture
def server(server, folder):
    """Serves the data set ``folder`` of the test's module as a bucket."""
    server.add_folder(folder, "bucket/set")
    return server
