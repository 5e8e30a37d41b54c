"""File systems that know less than a local disk, and disks that fail."""

import errno
import fcntl
import io
import os
import stat

import pytest

from grpo_stream.errors import StoreError
from grpo_stream.shards.tar import ShardWriter
from grpo_stream.storage import local_store
from grpo_stream.storage.atomic_files import read_at, write_atomic
from grpo_stream.storage.hashed_file import HashedFile
from grpo_stream.storage.store import LocalStore
from shard_builder.build.output.temp_folder import temp_folder
from tests.shards.support import make_sample


def failing(number, is_meant=lambda _: True):
    """A call of ``os`` on a descriptor that fails, for those that are meant."""

    def call(descriptor, *_):
        if is_meant(descriptor):
            raise OSError(number, os.strerror(number))

    return call


def is_folder(descriptor):
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", failing(number, is_folder))
    write_atomic(tmp_path / "x", b"data")
    assert (tmp_path / "x").read_bytes() == b"data"
    with ShardWriter(tmp_path / "shard-000000.tar") as writer:
        writer.add(make_sample())
    LocalStore(tmp_path).write("sub/y", b"data")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_folder_or_file_that_fails_is_named(tmp_path, monkeypatch, number):
    for is_meant in (is_folder, lambda one: not is_folder(one)):
        monkeypatch.setattr(os, "fsync", failing(number, is_meant))
        with pytest.raises(OSError, match=str(tmp_path)) as caught:
            write_atomic(tmp_path / "x", b"data")
        assert caught.value.errno == number
        with pytest.raises(StoreError, match=rf"unwritable: {tmp_path}: y: .*{tmp_path}"):
            LocalStore(tmp_path).write("y", b"data")


def test_a_write_that_fails_names_its_file(tmp_path, monkeypatch):
    file = HashedFile(tmp_path / "shard.tar")
    monkeypatch.setattr(os, "write", failing(errno.ENOSPC))
    file.write([b"x"])
    with pytest.raises(OSError, match=r"shard\.tar") as caught:
        file.finish()
    assert caught.value.errno == errno.ENOSPC


def test_a_stream_that_fails_names_its_file(tmp_path):
    (tmp_path / "x").write_bytes(bytes(3000))
    with LocalStore(tmp_path).open_stream("x") as stream:
        assert stream.read(10) == bytes(10)
        assert isinstance(stream, io.BufferedReader)
        os.dup2(os.open(tmp_path, os.O_RDONLY), stream.fileno())  # a folder cannot be read
        with pytest.raises(OSError, match=str(tmp_path / "x")):
            stream.raw.readinto(bytearray(10))


def test_a_stale_file_is_opened_anew_once(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"0123456789")
    store = LocalStore(tmp_path)
    calls = []

    def stale_at_first(descriptor, offset, num_bytes):
        calls.append(descriptor)
        if len(calls) == 1 or is_always:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read_at(descriptor, offset, num_bytes)

    is_always = False
    monkeypatch.setattr(local_store, "read_at", stale_at_first)
    assert store.read_range("x", 2, 3) == b"234"
    assert len(calls) == 2
    is_always = True
    with pytest.raises(StoreError, match=rf"unreadable: {tmp_path}: x: "):
        store.read_range("x", 2, 3)
    assert len(calls) == 4


def test_a_temporary_folder_without_locks(monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS))
    with temp_folder() as folder, temp_folder() as other:
        assert folder.is_dir()
        assert other.is_dir()
    assert not folder.exists()
