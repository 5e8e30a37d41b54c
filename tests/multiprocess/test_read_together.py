"""Two real ranks over gloo: what one meets, both stop for."""

import json

import pytest

from grpo_stream.stream.sources import ShardSource
from tests.multiprocess.ranks import NUM_RANKS, run_ranks
from tests.stream.support import damage, make_stream, write_numbered_set

pytestmark = pytest.mark.multiprocess


@pytest.fixture
def folder(tmp_path):
    return write_numbered_set(tmp_path / "shards", 24)


def test_a_shard_that_is_gone_for_one_rank_stops_both(folder, tmp_path):
    first, second = (make_stream(folder, rank=rank, world_size=2) for rank in range(2))
    shards_of = [
        {one.place.shard for batch in range(6) for one in stream.slot_places(0, batch)}
        for stream in (first, second)
    ]
    only_second = min(shards_of[1] - shards_of[0])
    source = second.sources[0]
    assert isinstance(source, ShardSource)
    info = source.manifest.shards[only_second]
    (folder / info.name).unlink()
    seen = run(folder, tmp_path, max_bad_samples=100)
    assert seen[0]["error"] == seen[1]["error"]
    assert seen[0]["error"].startswith("StoreError: not_found: rank 1: ")
    assert info.name in seen[0]["error"]
    assert seen[0]["num_read"] == seen[1]["num_read"] < 6


def test_bad_samples_of_both_add_up(folder, tmp_path):
    streams = [make_stream(folder, rank=rank, world_size=2) for rank in range(2)]
    for stream in streams:
        place = stream.slot_places(0, 0)[0].place
        damage(stream.sources[0], place.shard, place.sample)
    seen = run(folder, tmp_path, max_bad_samples=1)
    assert seen[0]["error"] == seen[1]["error"]
    assert "2 samples could not be read on 2 ranks" in seen[0]["error"]
    assert [len(one["own"]) for one in seen] == [1, 1]
    assert seen[0]["quarantine"] == seen[1]["quarantine"] == seen[0]["own"] + seen[1]["own"]


def run(folder, tmp_path, max_bad_samples):
    def words(rank):
        probe = "tests.multiprocess.read_probe"
        return [probe, folder, tmp_path / f"rank-{rank}.json", max_bad_samples]

    run_ranks(words, timeout=200)
    return [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(NUM_RANKS)]
