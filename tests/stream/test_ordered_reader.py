import pytest

from grpo_stream.errors import ShardFormatError, StoreError
from grpo_stream.images import ResizeRule
from grpo_stream.stream.ordered_reader import BadSample, OrderedReader, read_at, spread_samples
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.stream.world import World
from tests.stream.support import CountingStore, damage, write_numbered_set

NUM_SAMPLES = 23


@pytest.fixture
def folder(tmp_path):
    return write_numbered_set(tmp_path / "shards", NUM_SAMPLES)


def keys_of(reader):
    return {batch.first: [sample.key for sample in batch.outcomes] for batch in reader}


@pytest.mark.parametrize("batch_size", [1, 3, 4, 23, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_all_ranks_together_read_every_sample_once_in_the_same_batches(
    folder, batch_size, world_size
):
    source = ShardSource(str(folder))
    alone = keys_of(OrderedReader(source, None, batch_size))
    assert [key for _, keys in sorted(alone.items()) for key in keys] == [
        f"{number:06d}" for number in range(NUM_SAMPLES)
    ]
    shared: dict[int, list[str]] = {}
    for rank in range(world_size):
        reader = OrderedReader(source, None, batch_size, World(rank, world_size))
        mine = keys_of(reader)
        assert reader.num_samples == sum(map(len, mine.values()))
        assert not shared.keys() & mine.keys()
        shared |= mine
    assert shared == alone


def test_nothing_is_read_twice(folder):
    store = CountingStore(folder)
    list(OrderedReader(ShardSource(store), None, 8))
    assert set(store.reads.values()) <= {1}


def test_images_are_resized_by_the_rule(folder):
    (batch,) = OrderedReader(ShardSource(str(folder)), ResizeRule(28, 28 * 28, 56 * 56), 100)
    samples = [outcome for outcome in batch.outcomes if isinstance(outcome, StreamSample)]
    assert {sample.model_size for sample in samples} == {(56, 28)}
    assert {sample.scales for sample in samples} == {(8, 6), (9, 6)}


def test_a_damaged_sample_is_told_and_its_neighbours_are_read(folder):
    source = ShardSource(str(folder))
    damage(source, 1, 2)
    outcomes = [o for batch in OrderedReader(source, None, 5) for o in batch.outcomes]
    (bad,) = [outcome for outcome in outcomes if isinstance(outcome, BadSample)]
    assert isinstance(bad.error, ShardFormatError)
    assert bad.where == source.describe(1, 2)
    assert [o.key for o in outcomes if isinstance(o, StreamSample)] == [
        f"{number:06d}" for number in range(NUM_SAMPLES) if number != 6
    ]


class Damaged:
    def sample(self):
        raise ShardFormatError("checksum", "other bytes than are stored")


class DamagedOnce(ShardSource):
    """Every first read of a shard is of a damaged local copy."""

    def __init__(self, folder):
        super().__init__(folder)
        self.distrusted: list[int] = []
        self.announced: list[list[int]] = []

    @property
    def keeps_shards(self):
        return True

    def fetch(self, shard, samples):
        if shard in self.distrusted:
            return super().fetch(shard, samples)
        return [Damaged() for _ in samples]

    def invalidate(self, shard):
        self.distrusted.append(shard)

    def expect(self, shards, num_shards_at_once):
        self.announced.append(list(shards))


def test_a_damaged_local_copy_is_not_believed(folder):
    source = DamagedOnce(str(folder))
    assert sum(map(len, keys_of(OrderedReader(source, None, 4)).values())) == NUM_SAMPLES
    assert set(source.distrusted) == set(range(6))


def test_a_source_that_keeps_shards_hears_which_are_needed_next(folder):
    source = DamagedOnce(str(folder))
    list(OrderedReader(source, None, 4, World(1, 2)))
    assert source.announced == [[1, 3, 5], [3, 5], [5]]


def test_a_store_that_fails_is_no_bad_sample(folder):
    source = ShardSource(str(folder))
    (folder / source.manifest.shards[2].name).unlink()
    with pytest.raises(StoreError, match="not_found"):
        list(OrderedReader(source, None, 4))


def test_samples_by_their_place_in_the_whole_source(folder):
    source = ShardSource(str(folder))
    for ordinal in (0, 3, 4, 22):
        assert read_at(source, ordinal).key == f"{ordinal:06d}"
    assert [sample.key for sample in spread_samples(source, 4)] == [
        f"{number:06d}" for number in (0, 5, 11, 17)
    ]
    damage(source, 1, 1)
    assert [sample.key for sample in spread_samples(source, 4)][:2] == ["000000", "000011"]
    assert len(spread_samples(source, 100)) == NUM_SAMPLES - 1
