import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.train.cluster.operator_lock import use_operators_of_venv, wait_for_compilers

HOLDER = """\
import sys, time
from torch.utils.file_baton import FileBaton
baton = FileBaton(sys.argv[1])
assert baton.try_acquire()
print("holds", flush=True)
sys.stdin.readline()
baton.release()
"""


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """Where the lock of an operator would be."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "deepspeed_shm_comm").mkdir()
    return tmp_path / "deepspeed_shm_comm/lock"


@pytest.fixture
def holder(lock):
    """A process that holds it as torch does while it compiles; ends with its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.communicate()


def make_old(lock):
    for path in (lock, *lock.parent.iterdir()):
        os.utime(path, (time.time() - 61, time.time() - 61))


def test_nothing_to_wait_for(lock, capfd):
    wait_for_compilers()
    assert capfd.readouterr().err == ""


def test_a_lock_of_a_process_that_was_killed_is_removed(lock, holder, capfd):
    holder.kill()
    holder.wait()
    make_old(lock)
    wait_for_compilers()
    assert not lock.exists()
    assert capfd.readouterr().err == f"removed {lock}: the process that compiled there is gone\n"


def test_a_process_that_compiles_is_waited_for(lock, holder, capfd):
    make_old(lock)
    compiled = threading.Timer(1.0, holder.communicate, ["done\n"])
    compiled.start()
    started = time.monotonic()
    wait_for_compilers()
    assert time.monotonic() - started > 0.9
    compiled.join()
    assert capfd.readouterr().err == ""


def test_a_lock_is_new_as_long_as_files_come_beside_it(lock):
    lock.touch()
    make_old(lock)
    (lock.parent / "shm.o").touch()
    started = time.monotonic()
    wait_for_compilers(stale_seconds=1)
    assert time.monotonic() - started > 0.5
    assert not lock.exists()


def test_a_folder_that_forbids_removal(lock, monkeypatch):
    lock.touch()
    make_old(lock)

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ConfigError, match=f"Operation not permitted.*run `rm {lock}`"):
        wait_for_compilers()


class TestOperatorsOfTheVenv:
    def test_are_found_without_the_variable(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
        use_operators_of_venv()
        assert "TORCH_EXTENSIONS_DIR" not in os.environ  # there are none
        (tmp_path / "torch_extensions").mkdir()
        use_operators_of_venv()
        assert os.environ.pop("TORCH_EXTENSIONS_DIR") == str(tmp_path / "torch_extensions")

    def test_the_variable_wins(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        (tmp_path / "torch_extensions").mkdir()
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "elsewhere")
        use_operators_of_venv()
        assert os.environ["TORCH_EXTENSIONS_DIR"] == "elsewhere"
