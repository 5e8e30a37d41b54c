import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.storage import local_store
from grpo_stream.storage.blobs import first_line
from grpo_stream.storage.retrying_store import RetryingStore
from grpo_stream.storage.store import LocalStore, ObjectStore, open_store

DATA = bytes(range(256)) * 40


@pytest.fixture(params=["local", "memory", "obstore-local"])
def store(request, tmp_path):
    if request.param == "local":
        return LocalStore(tmp_path)
    backends = pytest.importorskip("obstore.store")
    memory = request.param == "memory"
    client = backends.MemoryStore() if memory else backends.LocalStore(tmp_path)
    return ObjectStore("s3://bucket/set", client)


def test_read_back(store):
    store.write("a.tar", DATA)
    assert store.read("a.tar") == DATA
    assert type(store.read("a.tar")) is bytes
    assert store.size("a.tar") == len(DATA)
    assert store.exists("a.tar")
    assert not store.exists("b.tar")


def test_ranges_are_exact(store):
    store.write("a", DATA)
    for offset, num_bytes in [(0, 1), (100, 300), (len(DATA) - 5, 5), (0, len(DATA)), (7, 0)]:
        assert store.read_range("a", offset, num_bytes) == DATA[offset : offset + num_bytes]
    for offset, num_bytes in [(len(DATA) - 5, 6), (len(DATA) + 10, 5)]:
        with pytest.raises(StoreError):
            store.read_range("a", offset, num_bytes)


def test_several_ranges_are_those_one_by_one(store):
    store.write("a", DATA)
    ranges = [(0, 3), (3, 500), (1000, 1), (len(DATA) - 7, 7), (5, 9)]
    assert list(store.read_ranges("a", ranges)) == [store.read_range("a", *one) for one in ranges]
    neighbours, alone = store.read_ranges("a", ranges)[:2], store.read_ranges("a", [(0, 3)])
    assert all(type(data) is bytes for data in neighbours), "a view would keep all of them"
    assert all(memoryview(data).readonly for data in alone)
    with pytest.raises(StoreError, match="short_read"):
        store.read_ranges("a", [(0, 3), (len(DATA) - 5, 6)])


def test_a_short_read_says_so(tmp_path):
    store = LocalStore(tmp_path)
    store.write("a", b"12345")
    with pytest.raises(StoreError, match=r"short_read: .*: a: 2 of 10 bytes at offset 3"):
        store.read_range("a", 3, 10)


def test_a_truncated_tar_is_named(tmp_path):
    store = LocalStore(tmp_path)
    store.write("shard-000000.tar", DATA)
    assert store.read_range("shard-000000.tar", 5000, 200) == DATA[5000:5200]
    os.truncate(tmp_path / "shard-000000.tar", 5100)
    with pytest.raises(StoreError, match=r"short_read: .*shard-000000\.tar: 100 of 200 bytes"):
        store.read_range("shard-000000.tar", 5000, 200)


def test_ranges_of_a_replaced_file_are_of_the_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr(local_store, "_CHECK_SECONDS", 0.0)
    store = LocalStore(tmp_path / "set")
    for content in (b"old", b"new"):
        store.write("a", content)
        for _ in range(2):
            assert store.read_range("a", 0, 3) == content
    (tmp_path / "set").rename(tmp_path / "away")  # it is still there, but not at this path
    LocalStore(tmp_path / "set").write("a", b"3rd")
    assert store.read_range("a", 0, 3) == b"3rd"
    (tmp_path / "set/a").unlink()
    with pytest.raises(StoreError, match="not_found"):
        store.read_range("a", 0, 3)
    store.write("a", b"4th")
    assert store.read_range("a", 0, 3) == b"4th"
    store.delete("a")
    assert num_open_in(tmp_path) == 0


def num_open_in(folder):
    fds = Path("/proc/self/fd")
    if not fds.is_dir():
        return 0
    places = (os.path.realpath(fd) for fd in fds.iterdir())
    return sum(place.startswith(str(folder)) for place in places)


def test_open_files_are_bounded_and_never_mixed_up(tmp_path):
    store = LocalStore(tmp_path)
    for i in range(200):
        store.write(str(i), i.to_bytes(4, "little") * 1000)

    numbers = [i * 37 % 200 for i in range(4000)]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(store.read_range, map(str, numbers), numbers, [2000] * len(numbers))
        expected = [(n.to_bytes(4, "little") * 1000)[n : n + 2000] for n in numbers]
        assert list(found) == expected
    assert num_open_in(tmp_path) <= 64
    copied = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own
    assert copied.read_range("7", 0, 1) == b"\x07"
    del store, copied
    assert num_open_in(tmp_path) == 0


def test_writes_replace_and_names_are_sorted(store):
    for name in ("b", "a", "c.json"):
        store.write(name, b"old")
    store.write("a", b"new")
    assert store.read("a") == b"new"
    store.write("sub/d", b"")
    assert store.list_names() == ["a", "b", "c.json"]
    assert store.sizes() == {"a": 3, "b": 3, "c.json": 3}


def test_streams_read_forwards(store):
    store.write("a", DATA)
    with store.open_stream("a") as stream:
        parts = [stream.read(7), stream.read(0), stream.read(5000), stream.read(), stream.read(1)]
    assert [len(part) for part in parts] == [7, 0, 5000, len(DATA) - 5007, 0]
    assert b"".join(parts) == DATA
    with store.open_stream("a") as stream:
        assert b"".join(stream) == DATA


def test_files_are_put_whole(store, tmp_path):
    path = tmp_path / "elsewhere"
    path.write_bytes(DATA)
    store.write("sub/a.tar", b"old")
    store.put_file("sub/a.tar", path)
    assert store.read("sub/a.tar") == DATA
    with pytest.raises(StoreError, match="not_found"):
        store.put_file("b", tmp_path / "absent")
    assert not store.exists("b")


def test_delete(store):
    store.write("a", DATA)
    for _ in range(2):
        store.delete("a")
        assert not store.exists("a")
    with pytest.raises(StoreError, match="bad_name"):
        store.delete("../a")


def test_walk_names_everything_below(store):
    names = ["a", "sub/b", "sub/deep/c", "sub2/d"]
    for name in names:
        store.write(name, b"")
    assert store.walk() == names
    assert store.walk("sub") == store.walk("sub/") == ["sub/b", "sub/deep/c"]
    assert store.walk("absent") == []
    with pytest.raises(StoreError, match="bad_name"):
        store.walk("../x")


def test_walk_leaves_hidden_files_out_and_follows_links_once(tmp_path):
    for name in ("set/a", "set/.a.tmp", "set/.git/config", "far/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "set/link").symlink_to(tmp_path / "far")
    (tmp_path / "far/up").symlink_to(tmp_path / "set")
    assert LocalStore(tmp_path / "set").walk() == ["a", "link/b"]


def test_missing_blobs(store):
    for action in (
        store.open_stream,
        store.read,
        store.size,
        lambda name: store.read_range(name, 0, 1),
    ):
        with pytest.raises(StoreError, match="not_found") as caught:
            action("absent.tar")
        assert "absent.tar" in caught.value.detail


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "", "a\0b"])
def test_names_stay_inside(store, name):
    actions = (store.read, store.open_stream, store.exists, lambda name: store.write(name, b""))
    for action in actions:
        with pytest.raises(StoreError, match="bad_name"):
            action(name)


def test_many_threads(store):
    store.write("a", DATA)
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda i: store.read_range("a", i, 50), range(200))
        assert list(parts) == [DATA[i : i + 50] for i in range(200)]


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    store.write("a", b"old")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError, match=r"unwritable: .*No space left"):
        store.write("a", b"new")
    assert store.read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_missing_folder(tmp_path):
    store = LocalStore(tmp_path / "absent")
    assert not store.exists("a")
    with pytest.raises(StoreError, match="not_found"):
        store.list_names()


def test_open_local(tmp_path):
    (tmp_path / "with space").mkdir()
    for url in (tmp_path / "with space", f"file://{tmp_path}/with%20space"):
        store = open_store(url)
        assert isinstance(store, LocalStore)
        assert store.url == str(tmp_path / "with space")
    assert open_store("./a:b/c").url == "a:b/c"


def test_open_buckets():
    pytest.importorskip("obstore")
    store = open_store("s3://bucket/train/")
    assert isinstance(store, RetryingStore)  # a server that sends nothing ends a read
    assert store.url == "s3://bucket/train/"


@pytest.mark.parametrize("url", ["pipe:cat a.tar", "pipe://x", "ftp://host/a", "s3:bucket", ""])
def test_other_schemes(url):
    with pytest.raises(ConfigError, match="for example"):
        open_store(url)


def test_without_obstore_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"grpo_stream\[cloud\]"):
        open_store("s3://bucket/train")


def cause_of(action):
    try:
        action()
    except StoreError as error:
        return error.cause
    return "none"


def test_a_fork_raises_instead_of_hanging():
    backends = pytest.importorskip("obstore.store")
    store = ObjectStore("s3://bucket/set", backends.MemoryStore())
    store.write("a", b"1")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        actions = (lambda: store.read("a"), lambda: ObjectStore("s3://bucket/other"))
        os.write(writer, ",".join(map(cause_of, actions)).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        assert file.read() == "forked,forked"


def test_what_obstore_says_is_one_short_line():
    words = (
        "Object at location a/b.png not found: Error performing GET http://h/a/b.png in "
        "150.609529ms - Server returned non-2xx status code: 404 Not Found: <?xml version='1.0'?>\n"
        "Debug source: NotFound"
    )
    for took in ("150.609529ms", "1.2s", "3µs", "12ns"):
        assert first_line(OSError(words.replace("150.609529ms", took))) == (
            "Object at location a/b.png not found: Error performing GET http://h/a/b.png: "
            "404 Not Found"
        )
    assert first_line(OSError("in 3 steps")) == "in 3 steps"
    assert first_line(OSError()) == "OSError"
