import re

import numpy as np
import pytest

from grpo_stream.errors import BadSamplesError, ConfigError, ShardFormatError, StoreError
from grpo_stream.images import ResizeRule
from grpo_stream.order.epoch_plan import EpochPlan
from grpo_stream.stream.sources import ShardSource
from tests.order.support import batch_ordinals
from tests.stream.support import (
    CountingStore,
    damage,
    epoch_keys,
    keys_of,
    make_stream,
    write_numbered_set,
)

WORLD_SIZES = (1, 2, 4)


@pytest.fixture
def folder(tmp_path):
    return write_numbered_set(tmp_path)  # 23 samples, 4 lanes: T=5, reserve 3


def epoch_plan(stream, epoch=0):
    source, config = stream.sources[0], stream.config
    return EpochPlan(
        source.shard_counts, config.num_lanes, config.stream_seed, epoch, config.block_shards
    )


def key_at(plan, ordinal):
    (shard,), (sample,) = plan.locate(np.array([ordinal]))
    return f"{4 * shard + sample:06d}", int(shard), int(sample)


def damage_ordinals(stream, ordinals):
    """Damages the samples of ``ordinals`` of epoch 0; their keys."""
    plan = epoch_plan(stream)
    found = [key_at(plan, ordinal) for ordinal in ordinals]
    for _, shard, sample in found:
        damage(stream.sources[0], shard, sample)
    return [key for key, _, _ in found]


def test_samples_of_a_batch_in_slot_order(folder):
    stream = make_stream(folder)
    plan = epoch_plan(stream)
    for batch in range(5):
        expected = [key_at(plan, ordinal)[0] for ordinal in batch_ordinals(plan, batch, range(4))]
        assert keys_of(stream.read_batch(0, batch)) == expected


def test_settings_reach_the_sample(folder):
    stream = make_stream(folder, resize=ResizeRule())
    assert stream.read_batch(0, 0)[0].pixels.shape == (56, 84, 3)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("num_reader_threads", [0, 2])
def test_each_sample_is_fetched_once_an_epoch(folder, world_size, num_reader_threads):
    store = CountingStore(folder)
    batches = epoch_keys(folder, world_size, store=store, num_reader_threads=num_reader_threads)
    keys = [key for batch in batches for key in batch]
    assert len(keys) == len(set(keys)) == 20
    assert len(store.reads) == 20
    assert set(store.reads.values()) == {1}


def test_every_rank_has_the_same_number_of_batches(folder):
    streams = [make_stream(folder, rank=rank, world_size=4) for rank in range(4)]
    assert {stream.num_batches for stream in streams} == {5}


class TestBadSamples:
    def test_the_reserve_stands_in_and_then_the_neighbours(self, folder):
        stream = make_stream(folder)
        plan = epoch_plan(stream)
        own = batch_ordinals(plan, 2, range(1, 2))
        # Its own sample, the whole reserve and the first neighbour.
        stand_ins = plan.stand_ins(2, 1, 6)
        bad = [own[0], *stand_ins[:4]]
        for num_bad in range(1, 6):
            damage_ordinals(stream, bad[num_bad - 1 : num_bad])
            expected = key_at(plan, stand_ins[num_bad - 1])[0]
            assert stream.read_batch(0, 2)[1].key == expected

    @pytest.mark.parametrize("num_reader_threads", [0, 2])
    def test_every_world_size_sees_the_same_stand_ins(self, folder, num_reader_threads):
        stream = make_stream(folder)
        whole = epoch_keys(folder)
        plan = epoch_plan(stream)
        bad = damage_ordinals(
            stream, [*batch_ordinals(plan, 1, range(4))[::2], plan.num_samples - 1]
        )
        runs = [
            epoch_keys(folder, world_size, num_reader_threads=num_reader_threads)
            for world_size in WORLD_SIZES
        ]
        assert runs[0] == runs[1] == runs[2]
        for batch, (before, after) in enumerate(zip(whole, runs[0], strict=True)):
            assert not set(bad) & set(after)
            kept = [(b, a) for b, a in zip(before, after, strict=True) if b not in bad]
            assert all(b == a for b, a in kept)
            assert len(kept) == (2 if batch == 1 else 4)

    def test_counted_by_cause_and_listed(self, folder):
        stream = make_stream(folder)
        plan = epoch_plan(stream)
        key, shard, sample = key_at(plan, batch_ordinals(plan, 0, range(1))[0])
        damage(stream.sources[0], shard, sample)
        for batch in range(stream.num_batches):
            assert len(stream.read_batch(0, batch)) == 4
        assert stream.counters.num_bad_by_cause == {"checksum": 1}
        where = f"{stream.sources[0].digest[:12]}: shard-{4 * shard:06d}.tar sample {sample}"
        assert list(stream.counters.quarantine) == [where]
        assert stream.counters.num_samples == 20
        assert key not in {s.key for s in stream.read_batch(0, 0)}
        assert list(stream.counters.quarantine) == [
            where
        ]  # it is known: neither read nor counted again

    def test_damage_of_a_copy_is_read_again(self, folder):
        stream = make_stream(folder)
        source = stream.sources[0]
        read_range, found = source._reader.read_range, list[str]()

        def once_damaged(name, offset, num_bytes):
            data = bytearray(read_range(name, offset, num_bytes))
            if not found:
                data[542] ^= 1
            found.append(name)
            return bytes(data)

        source._reader.read_range = once_damaged
        assert keys_of(stream.read_batch(0, 0)) == epoch_keys(folder)[0]
        assert len(found) == 5
        assert stream.counters.num_read_again == 1
        assert not stream.counters.quarantine

    def test_a_shard_that_was_cut_short(self, folder):
        stream = make_stream(folder)
        path = folder / stream.sources[0].manifest.shards[2].name
        path.write_bytes(path.read_bytes()[:3000])
        keys = [key for batch in range(5) for key in keys_of(stream.read_batch(0, batch))]
        assert len(keys) == 20
        assert set(stream.counters.num_bad_by_cause) == {"short_read"}
        assert 1 <= len(stream.counters.quarantine) <= 3

    def test_a_shard_that_is_gone_is_no_sample_s_fault(self, folder):
        stream = make_stream(folder)
        (folder / stream.sources[0].manifest.shards[2].name).unlink()
        with pytest.raises(StoreError, match=r"not_found: .*shard-000008\.tar"):
            all(stream.read_batch(0, batch) for batch in range(5))
        assert not stream.counters.quarantine

    def test_too_large_a_sample(self, folder):
        source = ShardSource(str(folder), max_sample_bytes=100)
        with pytest.raises(ShardFormatError, match=r"sample_bytes: .*sample 1: .*max_sample_bytes"):
            source.read(0, 1)

    def test_above_the_tolerance_it_stops(self, folder):
        stream = make_stream(folder, max_bad_samples=2)
        damage_ordinals(stream, batch_ordinals(epoch_plan(stream), 0, range(3)))
        with pytest.raises(BadSamplesError, match=r"3 samples .*max_bad_samples=2.*'checksum': 3"):
            stream.read_batch(0, 0)
        assert stream.counters.num_samples == 2

    def test_no_tolerance(self, folder):
        stream = make_stream(folder, max_bad_samples=0)
        damage_ordinals(stream, batch_ordinals(epoch_plan(stream), 0, range(1)))
        with pytest.raises(BadSamplesError, match="max_bad_samples=0"):
            stream.read_batch(0, 0)

    def test_when_nothing_can_be_read_it_says_so(self, folder):
        stream = make_stream(folder)
        for shard, count in enumerate(stream.sources[0].shard_counts.tolist()):
            for sample in range(count):
                damage(stream.sources[0], shard, sample)
        expected = re.escape("epoch 0, generation batch 1, slot 0: the sample and 16 stand-ins")
        with pytest.raises(BadSamplesError, match=expected):
            stream.read_batch(0, 1)


@pytest.mark.parametrize(("num_lanes", "field"), [(6, "world_size"), (24, "num_lanes")])
def test_refused_before_anything_is_read(folder, num_lanes, field):
    with pytest.raises(ConfigError) as info:
        make_stream(folder, rank=1, world_size=4, num_lanes=num_lanes)
    assert info.value.field == field


def test_the_cursor_tells_data_and_order(folder):
    stream = make_stream(folder, stream_seed=9, block_shards=2)
    cursor = stream.cursor(3, 4)
    assert cursor.digest == ShardSource(str(folder)).digest
    assert (cursor.seed, cursor.num_lanes, cursor.block_shards) == (9, 4, 2)
    assert (cursor.epoch, cursor.batch_index) == (3, 4)
