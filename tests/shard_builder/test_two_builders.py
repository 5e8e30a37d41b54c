"""Two of them at once, in a bucket of a real S3 server, and in folders without locks."""

import errno
import fcntl
import os
import signal
import threading
import time
from itertools import count

import pytest

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import LocalStore, open_store
from shard_builder.build.build import build
from shard_builder.build.output import output_folder, output_lock
from shard_builder.build.output.output_lock import LEASE_NAME, FolderLock, Lease, lock_output
from shard_builder.datasets.rewrite import head, merge
from shard_builder.datasets.verify import verify
from tests.shard_builder.support import files_of, make_settings, write_raw
from tests.shard_builder.two_builders import command_of, end, foreign_lease, start

pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def raws(tmp_path_factory):
    """Two raw sets whose shards have equal names."""
    folder = tmp_path_factory.mktemp("raws")
    return write_raw(folder / "a", 120), write_raw(folder / "b", 120, note="another")


@pytest.fixture
def brief(monkeypatch):
    """Leases that live fast."""
    monkeypatch.setattr(output_lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(output_lock, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(output_lock, "_POLL_SECONDS", 0.05)


def is_sound(url):
    store = open_store(url)
    return verify(store, Manifest.load(store)).num_samples


@pytest.mark.slow(reason="four times two builders, each a process that imports all it needs")
@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
@pytest.mark.parametrize("which", ["equal", "different"])
def test_of_two_builders_one_builds_and_the_other_is_told(bucket, raws, which, flags):
    url = f"{bucket}/set"
    first_raw, second_raw = raws if which == "different" else (raws[0], raws[0])
    processes = [
        start(command_of(raw, url, "--quiet", "--samples-per-shard", "2", *flags))
        for raw in (first_raw, second_raw)
    ]
    ends = [end(process) for process in processes]
    codes = sorted(code for code, _ in ends)
    # Who comes second waits to see whether the first still lives, and may find its work done.
    assert codes in ([0, 2], [0, 0] if which == "equal" or flags else [0, 2]), ends
    assert any("holds the lock" in words for _, words in ends)
    if codes == [0, 2]:
        words = next(words for code, words in ends if code == 2)
        assert "another build is writing there" in words or "holds another data set" in words
    assert is_sound(url) > 80
    assert not open_store(url).walk("_build")


def test_a_killed_builder_of_this_machine_is_followed_at_once(bucket, raws, tmp_path):
    url = f"{bucket}/set"
    command = command_of(raws[0], url, "--quiet", "--samples-per-shard", "4")
    process = start(command)
    store = open_store(url)
    while len(store.walk("_build/")) < 6:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    end(process)
    assert store.exists(LEASE_NAME)
    started = time.monotonic()
    assert end(start(command))[0] == 0
    assert time.monotonic() - started < output_lock.STALE_SECONDS
    build(make_settings(raws[0], tmp_path / "here"))
    found = {name: store.read(name) for name in store.walk()}
    assert found == files_of(tmp_path / "here")


def test_a_lease_that_nobody_renews_is_taken(bucket, brief):
    store = open_store(f"{bucket}/set")
    store.write(LEASE_NAME, foreign_lease())
    started = time.monotonic()
    lease = Lease(store, "out")
    assert time.monotonic() - started >= 1.5
    lease.check()
    lease.close()
    assert not store.exists(LEASE_NAME)


def test_a_lease_that_is_renewed_is_not(bucket, brief):
    store = open_store(f"{bucket}/set")
    store.write(LEASE_NAME, foreign_lease())
    is_over = threading.Event()

    def renew():
        for beat in count(1):
            if is_over.wait(0.2):
                return
            store.write(LEASE_NAME, foreign_lease(beat=beat))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="another build is writing there, process 1 on else"):
            Lease(store, "out")
    finally:
        is_over.set()
        thread.join()


def test_of_many_at_once_one_gets_the_lease(bucket, brief):
    store = open_store(f"{bucket}/set")
    got, refused = [], []

    def attempt():
        try:
            got.append(Lease(store, "out"))
        except (ConfigError, StoreError) as error:
            refused.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5)
    got[0].close()


def test_a_build_that_lost_its_lease_writes_no_manifest(bucket, raws, brief, monkeypatch):
    settings = make_settings(raws[0], f"{bucket}/set")
    store = open_store(f"{bucket}/set")
    begin = output_folder.Output.begin

    def begin_and_lose(self, *args, **kwargs):
        found = begin(self, *args, **kwargs)
        store.write(LEASE_NAME, foreign_lease())
        return found

    monkeypatch.setattr(output_folder.Output, "begin", begin_and_lose)
    with pytest.raises(StoreError, match=r"taken_over: .*taken over by process 1 on elsewhere"):
        build(settings)
    assert not store.exists("manifest.json")
    assert store.read(LEASE_NAME) == foreign_lease()  # it is not ours to remove


def test_a_shard_that_another_has_put_there_is_noticed(bucket, raws, monkeypatch):
    settings = make_settings(raws[0], f"{bucket}/set")
    store = open_store(f"{bucket}/set")
    commit = output_folder.Output.commit

    def replace_and_commit(self, *args):
        name = "shard-000003.tar"
        store.write(name, bytes(len(store.read(name))))  # of equal size
        commit(self, *args)

    monkeypatch.setattr(output_folder.Output, "commit", replace_and_commit)
    with pytest.raises(
        StoreError, match=r"shard-000003\.tar was written, but is there no more, or"
    ):
        build(settings)
    assert not store.exists("manifest.json")


def test_an_index_of_equal_size_in_a_folder_is_noticed(raws, tmp_path, monkeypatch):
    commit = output_folder.Output.commit

    def replace_and_commit(self, *args):
        path = tmp_path / "out" / "shard-000003.tar.index"
        path.write_bytes(bytes(path.stat().st_size))
        commit(self, *args)

    monkeypatch.setattr(output_folder.Output, "commit", replace_and_commit)
    with pytest.raises(StoreError, match=r"shard-000003\.tar\.index was written, but"):
        build(make_settings(raws[0], tmp_path / "out"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_gets_a_lease(raws, tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    build(make_settings(raws[0], tmp_path / "set"))
    monkeypatch.setattr(fcntl, "flock", flock)
    lock = lock_output(LocalStore(tmp_path / "out"), "out")
    assert isinstance(lock, Lease)
    assert (tmp_path / "out" / LEASE_NAME).exists()
    lock.close()
    assert head(str(tmp_path / "set"), str(tmp_path / "out"), 5).num_samples == 5
    assert not (tmp_path / "out" / LEASE_NAME).exists()


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EWOULDBLOCK, "another build"), (errno.EIO, "is the disk sound")]
)
def test_a_lock_that_is_refused_says_why(tmp_path, monkeypatch, number, words):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match=words):
        FolderLock(tmp_path / "out")


def test_head_and_merge_keep_to_the_same_lock(raws, tmp_path):
    build(make_settings(raws[0], tmp_path / "set"))
    lock = FolderLock(tmp_path / "out")
    for act in (
        lambda: head(str(tmp_path / "set"), str(tmp_path / "out"), 5),
        lambda: merge([str(tmp_path / "set")] * 2, str(tmp_path / "out"), prefixes=["a", "b"]),
    ):
        with pytest.raises(ConfigError, match="another build is writing there"):
            act()
    lock.close()
    assert head(str(tmp_path / "set"), str(tmp_path / "out"), 5).num_samples == 5


def test_of_two_that_both_believe_to_hold_the_lock_one_writes_the_manifest(
    bucket, raws, monkeypatch
):
    """One was stopped for so long that its lease was taken, between its last look and its end."""
    url = f"{bucket}/set"
    store = open_store(url)
    theirs = b"of another build"

    def others_end_first(*_):
        store.write("manifest.json", theirs)
        return iter(())

    monkeypatch.setattr(output_folder.Output, "_missing_files", others_end_first)
    with pytest.raises(StoreError, match=r"taken_over: .*another process has written a manifest"):
        build(make_settings(raws[0], url))
    assert store.read("manifest.json") == theirs
