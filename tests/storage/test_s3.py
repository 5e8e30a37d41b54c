"""Stores over S3's own protocol, against a server on this machine."""

import pytest

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.tar import read_sample
from grpo_stream.storage.object_url import client_options
from grpo_stream.storage.store import open_store
from tests.shards.support import make_sample, write_set

pytest.importorskip("obstore")

MIB = 2**20


def test_every_method(server, tmp_path):
    store = open_store("s3://bucket/some/set")
    store.write("a.tar", b"12345")
    store.write("sub/b c+d.jpg", b"1")
    assert server.objects == {
        "bucket/some/set/a.tar": b"12345",
        "bucket/some/set/sub/b c+d.jpg": b"1",
    }
    assert store.read("a.tar") == b"12345"
    assert store.read_range("a.tar", 1, 3) == b"234"
    assert store.size("a.tar") == 5
    assert store.list_names() == ["a.tar"]
    assert store.walk() == ["a.tar", "sub/b c+d.jpg"]
    assert store.read("sub/b c+d.jpg") == b"1"
    for _ in range(2):
        store.delete("a.tar")
    assert not store.exists("a.tar")
    with pytest.raises(StoreError, match="not_found"):
        store.open_stream("a.tar")


def test_samples_by_range(server, tmp_path):
    samples = [make_sample(f"{i:06d}", f"Click {i}") for i in range(5)]
    manifest = write_set(tmp_path, samples)
    store = open_store("s3://bucket/set")
    for path in sorted(tmp_path.iterdir()):
        store.put_file(path.name, path)
    assert Manifest.load(store) == manifest
    found = []
    for info in manifest.shards:
        index = ShardIndex.load(store, info)
        found += [read_sample(store, info.name, index[i]) for i in range(len(index))]
    assert found == samples


def test_large_files_go_up_in_parts_and_come_down_in_pieces(server, tmp_path):
    data = bytes(range(251)) * (20 * MIB // 251)
    (tmp_path / "x").write_bytes(data)
    store = open_store("s3://bucket/set")
    store.put_file("x.tar", tmp_path / "x")
    parts = [one.query for one in server.requests if one.method == "PUT"]
    assert len(parts) == 3
    assert all("partNumber" in query for query in parts)
    with store.open_stream("x.tar") as stream:
        assert b"".join(iter(lambda: stream.read(3 * MIB), b"")) == data


def test_a_stream_that_breaks_off_goes_on(server):
    data = bytes(range(256)) * (8 * MIB // 256)
    store = open_store("s3://bucket/set")
    store.write("x", data)
    server.faults = ["truncated"] * 3
    with store.open_stream("x") as stream:
        assert stream.read() == data
    assert server.faults == []


def test_a_stream_never_mixes_two_objects(server):
    store = open_store("s3://bucket/set")
    store.write("x", b"1" * 4 * MIB)
    server.faults = ["truncated"]
    with store.open_stream("x") as stream:
        assert stream.read(100) == b"1" * 100
        store.write("x", b"2" * 4 * MIB)
        with pytest.raises(StoreError, match=r"changed: s3://bucket/set: x: .*replaced"):
            stream.read()


def test_a_refused_write(server, tmp_path):
    (tmp_path / "x").write_bytes(bytes(9 * MIB))
    store = open_store("s3://bucket/set")
    server.always["bucket/set/x"] = "denied"
    for write in (lambda: store.write("x", b"1"), lambda: store.put_file("x", tmp_path / "x")):
        with pytest.raises(StoreError, match=r"unwritable: s3://bucket/set: x"):
            write()
    assert server.objects == {}


def test_azure_needs_its_account(monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://container/set")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for url in ("az://container/set", "abfs://container/set"):
        assert open_store(url).url == url


@pytest.mark.parametrize(
    ("variables", "is_unsigned"),
    [
        ({}, True),
        ({"AWS_ENDPOINT_URL": "https://minio.example"}, True),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}, False),
        ({"AWS_UNSIGNED_PAYLOAD": "false"}, False),
    ],
)
def test_what_tls_guards_is_not_hashed_again(monkeypatch, variables, is_unsigned):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_UNSIGNED_PAYLOAD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = client_options("s3://bucket/set", None).get("config", {})
    assert (config.get("unsigned_payload") == "true") == is_unsigned
