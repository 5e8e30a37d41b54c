from dataclasses import replace

import pytest

from grpo_stream.storage.retrying_store import open_retrying
from grpo_stream.train.cluster import node_checks
from grpo_stream.train.cluster.node_checks import (
    StoreProbe,
    check_folder,
    free_host_bytes,
    probe_node,
    probe_store,
    read_head,
    slowest,
)
from tests.storage.fault_rules import HASTY_RULES, RULES
from tests.stream.support import write_numbered_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_numbered_set(tmp_path_factory.mktemp("set"), 24, per_shard=4)


@pytest.fixture
def served(folder, server, monkeypatch):
    monkeypatch.setattr(node_checks, "RULES", RULES)
    server.add_folder(folder, "bucket/set")
    return server


def test_a_store_that_works(served, folder):
    probe = probe_store(f"{served.url}/bucket/set")
    assert probe.error is None
    assert probe.digest == probe_store(str(folder)).digest
    assert min(probe.latency_seconds or 0, probe.bytes_per_second or 0) > 0
    assert len(served.gets) <= 1 + 3 + 8


def test_nodes_begin_with_different_shards(served):
    probe_store(f"{served.url}/bucket/set", start=4)
    first = next(name for name, _ in served.gets if name.endswith(".tar"))
    names = sorted(name for name, _ in served.gets if name.endswith(".tar"))
    assert len(set(names)) == 6
    assert first.startswith("bucket/set/shard-")


@pytest.mark.parametrize(
    ("always", "word"),
    [
        ({"manifest": "slow_down"}, "unavailable"),
        ({"manifest": "denied"}, "forbidden"),
        ({".tar": "gone"}, "not_found"),
        ({".tar": "no_range"}, "range_ignored"),
        ({".tar": "silent"}, "timed_out"),
    ],
)
def test_a_store_that_does_not(served, monkeypatch, always, word):
    monkeypatch.setattr(node_checks, "RULES", replace(HASTY_RULES, retry_deadline_seconds=0.4))
    served.always = always
    assert str(probe_store(f"{served.url}/bucket/set").error).startswith(f"{word}: ")


def test_a_cache_folder_takes_whole_objects(served):
    served.always = {".tar": "no_range"}
    assert probe_store(f"{served.url}/bucket/set", takes_whole=True).error is None


def test_no_manifest_no_data_set(tmp_path):
    assert "manifest.json" in str(probe_store(str(tmp_path)).error)


def test_the_head_of_a_large_manifest_is_enough(tmp_path, monkeypatch):
    folder = write_numbered_set(tmp_path / "set", 24, per_shard=1)
    monkeypatch.setattr(node_checks, "_HEAD_BYTES", 2000)
    digest, shards = read_head(open_retrying(str(folder)))
    assert len(digest or "") == 64
    assert 3 < len(shards) < 24
    assert shards[0] == ("shard-000000.tar", (folder / "shard-000000.tar").stat().st_size)


def test_folders(tmp_path):
    assert check_folder(str(tmp_path / "not/yet")).error is None
    assert check_folder(str(tmp_path / "not/yet")).free_bytes > 0
    (tmp_path / "file").touch()
    assert "is no folder" in str(check_folder(str(tmp_path / "file/below")).error)


def test_free_memory_is_the_containers(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 99 kB\nMemAvailable:    4000 kB\n",
        "/sys/fs/cgroup/memory.max": "max\n",
        "/sys/fs/cgroup/memory.current": "1000\n",
    }
    monkeypatch.setattr(node_checks, "_text", lambda path: files.get(path, ""))
    assert free_host_bytes() == 4_096_000
    files["/sys/fs/cgroup/memory.max"] = "3000\n"
    assert free_host_bytes() == 2000
    files.clear()
    assert free_host_bytes() is None


def test_a_nodes_report(folder, tmp_path):
    report = probe_node([str(folder), str(tmp_path)], str(tmp_path), None, 3)
    assert [probe.error is None for probe in report.stores] == [True, False]
    assert report.cache is None


def test_of_several_data_sets_the_slowest_counts():
    probes = [StoreProbe("a", "", 0.1, 9e6), StoreProbe("b", "", 0.3, 7e6), StoreProbe("c")]
    assert slowest(probes) == (7e6, 0.3)
    assert slowest([]) == (None, None)
