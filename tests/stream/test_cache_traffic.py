"""How much more than an epoch's samples is fetched when ranks walk their lanes through caches."""

import numpy as np
import pytest

from grpo_stream.order.epoch_plan import EpochPlan
from grpo_stream.shards.cache import ShardCache
from tests.shards.cache_support import StreamStore, make_set, names, wait_for

_NUM_SHARDS = 233  # so that no lane but the first starts with a block
_SHARD_SAMPLES = 8
_SAMPLE_BYTES = 16
_SHARD_BYTES = _SHARD_SAMPLES * _SAMPLE_BYTES
_NUM_LANES = 8
_AHEAD = 16  # batches


def shards_walked(world_size):
    """The shard and place of each sample, by rank: arrays of shape (num_batches, slots)."""
    plan = EpochPlan(np.full(_NUM_SHARDS, _SHARD_SAMPLES), _NUM_LANES, 0, 0, block_shards=4)
    share = _NUM_LANES // world_size
    slots = [range(rank * share, (rank + 1) * share) for rank in range(world_size)]
    return [plan.locate(plan.ordinals(range(plan.num_batches), own)) for own in slots]


def walk(caches, places):
    """Reads an epoch, all ranks in step, each sample once its shard is there."""
    for batch in range(len(places[0][0])):
        for cache, (shards, samples) in zip(caches, places, strict=True):
            ahead = dict.fromkeys(shards[batch : batch + _AHEAD].ravel().tolist())
            cache.announce(names(*ahead))
            for shard, sample in zip(shards[batch].tolist(), samples[batch].tolist(), strict=True):
                name = f"{shard}.tar"
                wait_for(lambda name=name, cache=cache: cache._fetcher.find(name))
                cache.read_range(name, sample * _SAMPLE_BYTES, _SAMPLE_BYTES)


@pytest.mark.parametrize(
    ("world_size", "num_machines", "bound_shards"),
    [
        (1, 1, _NUM_SHARDS),
        (2, 1, _NUM_SHARDS),
        (4, 1, _NUM_SHARDS),
        (2, 2, _NUM_SHARDS),
        (4, 4, _NUM_SHARDS),
        (4, 1, 96),  # what all lanes are in and come to next, and no more
    ],
)
def test_little_more_is_fetched_than_an_epoch_needs(
    tmp_path, world_size, num_machines, bound_shards
):
    data = tmp_path / "data"
    manifest = make_set(data, _NUM_SHARDS, _SHARD_BYTES)
    store = StreamStore(data)
    caches = [
        ShardCache(
            store, manifest, tmp_path / f"{rank % num_machines}", bound_shards * _SHARD_BYTES
        )
        for rank in range(world_size)
    ]
    places = shards_walked(world_size)
    walk(caches, places)
    for cache in caches:
        cache.close()
    counts = [cache.snapshot() for cache in caches]
    num_needed = sum(shards.size for shards, _ in places) * _SAMPLE_BYTES
    num_read = sum(c.num_bytes_downloaded + c.num_misses * _SAMPLE_BYTES for c in counts)
    assert num_needed == _NUM_SHARDS * _SHARD_BYTES
    assert 1 <= num_read / num_needed <= 1.15
    if num_machines == 1 and bound_shards == _NUM_SHARDS:
        assert num_read == num_needed
