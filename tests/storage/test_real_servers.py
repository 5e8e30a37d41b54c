"""A whole data set from real servers of every protocol, equal to the one in the folder."""

import pytest

from grpo_stream.errors import StoreError
from grpo_stream.storage.retrying_store import RetryRules, open_retrying
from grpo_stream.stream.sources import ShardSource
from tests.shards.support import make_sample, write_set
from tests.storage import real_servers

pytest.importorskip("obstore")

SAMPLES = [make_sample(f"{i:06d}", f"Click {i}") for i in range(7)]
PLACES = [(shard, i) for shard in range(4) for i in range(2)][:7]
RULES = RetryRules(retry_deadline_seconds=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    write_set(folder, SAMPLES)
    return folder


@pytest.fixture
def url(request, folder, tmp_path, monkeypatch):
    for name in ("GOOGLE_BASE_URL", "AZURE_STORAGE_USE_EMULATOR"):
        monkeypatch.delenv(name, raising=False)
    with request.param(folder, tmp_path) as (url, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield url


WITH_RANGES = [real_servers.moto, real_servers.fake_gcs, real_servers.azurite, real_servers.web]


@pytest.mark.parametrize("url", WITH_RANGES, indirect=True, ids=lambda server: server.__name__)
def test_the_same_samples_as_from_the_folder(url, folder):
    store = open_retrying(url, RULES)
    source = ShardSource(store)
    assert source.digest == ShardSource(str(folder)).digest
    assert [source.read(*place) for place in PLACES] == SAMPLES
    shard = source.manifest.shards[0]
    with store.open_stream(shard.name) as stream:
        assert stream.read() == (folder / shard.name).read_bytes() == store.read(shard.name)
    assert store.size(shard.name) == shard.num_bytes
    with pytest.raises(StoreError, match=r"not_found: .*shard-000099\.tar"):
        store.read("shard-000099.tar")
    with pytest.raises(StoreError, match="short_read: "):
        store.read_range(shard.name, shard.num_bytes - 10, 20)
    counts = store.counters.snapshot()
    assert (counts.num_retries, counts.num_failures) == (0, 2)


@pytest.mark.parametrize("url", [real_servers.web_without_ranges], indirect=True)
def test_a_server_that_sends_whole_files_only(url, folder):
    store = open_retrying(url, RULES)
    source = ShardSource(store)
    with pytest.raises(StoreError, match=r"range_ignored: .*shard-000000\.tar.*--cache_dir"):
        source.read(0, 0)
    for info in source.manifest.shards:
        assert store.read(info.name) == (folder / info.name).read_bytes()
