"""What the tests of the shard cache begin with."""

import pytest

from tests.shards.cache_support import make_set


@pytest.fixture
def data(tmp_path):
    """A data set of four small shards of random bytes."""
    make_set(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path):
    """Where the cache lies."""
    return tmp_path / "cache"
