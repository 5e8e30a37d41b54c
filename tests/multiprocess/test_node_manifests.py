"""Two ranks of one node over gloo: a manifest is fetched by the first and reaches both."""

import json

import pytest

from benchmarks.servers.object_server import ObjectServer
from grpo_stream.stream.sources import ShardSource
from tests.multiprocess.manifest_probe import NUM_LOADINGS
from tests.multiprocess.ranks import NUM_RANKS, run_ranks
from tests.stream.support import write_numbered_set

pytestmark = pytest.mark.multiprocess


def test_a_manifest_is_fetched_once_and_its_absence_told_to_both(tmp_path):
    shards = write_numbered_set(tmp_path / "shards", 24)
    with ObjectServer() as server:
        server.add_folder(shards, "train")
        urls = [f"{server.url}/train", f"{server.url}/none"]

        def words(rank):
            return ["tests.multiprocess.manifest_probe", *urls, tmp_path / f"{rank}.json"]

        run_ranks(words, timeout=200)
        names = [name for name, _ in server.gets]
    assert names == ["train/manifest.json"] * NUM_LOADINGS + ["none/manifest.json"]
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(NUM_RANKS)]
    assert seen[0] == seen[1]
    assert seen[0]["digest"] == ShardSource(shards).digest
    assert seen[0]["error"].startswith(f"ManifestError: {urls[1]}: no manifest, no data set")
