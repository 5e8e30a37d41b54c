import os
import signal
import tempfile

import pytest

from shard_builder.build.output.temp_folder import temp_folder


@pytest.fixture(autouse=True)
def own_tempdir(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_ends_with_its_block(own_tempdir):
    with temp_folder() as folder:
        (folder / "shard").write_bytes(b"1")
    assert list(own_tempdir.iterdir()) == []


def test_a_killed_ones_is_removed_and_a_living_ones_is_not(own_tempdir):
    with temp_folder() as living:
        (living / "mine").write_bytes(b"1")
        child = os.fork()
        if child == 0:
            with temp_folder() as folder:
                (folder / "spooled").write_bytes(b"2")
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert len(list(own_tempdir.iterdir())) == 2
        with temp_folder() as mine:
            assert sorted(own_tempdir.iterdir()) == sorted([living, mine])
            assert (living / "mine").exists()
    assert list(own_tempdir.iterdir()) == []
