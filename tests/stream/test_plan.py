import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_stream.errors import ConfigError
from grpo_stream.stream.plan import EpochPlan, derive_key, permute
from grpo_stream.stream.world import World

COUNTS = st.lists(st.integers(0, 40) | st.sampled_from([0, 1]), min_size=1, max_size=14)


@st.composite
def plans(draw):
    counts = draw(COUNTS.filter(sum))
    return EpochPlan(
        shard_counts=np.array(counts),
        num_lanes=draw(st.integers(1, sum(counts))),
        seed=draw(st.integers(0, 2**64)),
        epoch=draw(st.integers(0, 5)),
        block_shards=draw(st.integers(1, 6)),
    )


def make_plan(counts, num_lanes=4, seed=0, epoch=0, block_shards=4):
    return EpochPlan(np.array(counts), num_lanes, seed, epoch, block_shards)


def places(plan, ordinals=None):
    """(shard, sample) pairs of ``ordinals``; of the whole epoch by default."""
    located = plan.locate(np.arange(plan.num_samples) if ordinals is None else ordinals)
    return list(zip(*(part.tolist() for part in located), strict=True))


class TestPermute:
    @pytest.mark.parametrize("sizes", [range(1, 400), range(400, 3001, 37)])
    def test_is_a_bijection(self, sizes):
        for size in sizes:
            permuted = permute(np.arange(size), size, derive_key("key", size))
            assert np.array_equal(np.sort(permuted), np.arange(size)), size

    @given(power=st.integers(1, 5), off=st.integers(-2, 2), key=st.integers(0, 2**64 - 1))
    def test_is_a_bijection_around_powers_of_four(self, power, off, key):
        size = 4**power + off
        assert np.unique(permute(np.arange(size), size, key)).tolist() == list(range(size))

    @given(
        size=st.integers(10**6, 2**52),
        key=st.integers(0, 2**64 - 1),
        where=st.floats(0, 1),
    )
    def test_large_sizes_do_not_collide_in_a_window(self, size, key, where):
        start = int(where * (size - 2000))
        permuted = permute(np.arange(start, start + 2000), size, key)
        assert np.unique(permuted).size == 2000
        assert permuted.min() >= 0
        assert permuted.max() < size

    def test_size_and_key_per_element(self):
        sizes, keys = np.array([1, 7, 100, 10**9]), np.array([3, 4, 5, 6], dtype=np.uint64)
        index = np.array([0, 6, 50, 123456])
        one_by_one = [
            int(permute(np.array([i]), int(n), int(k))[0])
            for i, n, k in zip(index, sizes, keys, strict=True)
        ]
        assert permute(index, sizes, keys).tolist() == one_by_one
        assert permute(index[None], sizes, keys).shape == (1, 4)

    @pytest.mark.parametrize("size", [2, 3, 5, 16, 17])
    def test_each_place_is_equally_likely_over_keys(self, size):
        num_keys = 4000
        keys = np.array([derive_key("a", n) for n in range(num_keys)], dtype=np.uint64)
        for index in (0, size - 1):
            permuted = permute(np.full(num_keys, index), size, keys)
            share = np.bincount(permuted, minlength=size) / num_keys
            # Six standard deviations of a fair draw.
            assert np.abs(share - 1 / size).max() < 6 * np.sqrt(1 / size / num_keys)

    def test_empty(self):
        assert permute(np.arange(0), 5, 1).shape == (0,)

    @pytest.mark.parametrize("index", [-1, 5, 2**40])
    @pytest.mark.timeout(20)
    def test_outside(self, index):
        with pytest.raises(IndexError, match="outside"):
            permute(np.array([2, index]), 5, 1)


def test_derive_key_depends_on_every_part_and_their_order():
    keys = [derive_key(*parts) for parts in ((1, 2), (2, 1), (1,), (12,), ("a", 1, 2))]
    assert len(set(keys)) == len(keys)
    assert derive_key("shards", 3, 4) == derive_key("shards", 3, 4) < 2**64


class TestOrder:
    @given(plans())
    def test_every_sample_has_exactly_one_ordinal(self, plan):
        expected = [
            (shard, sample)
            for shard, count in enumerate(plan.shard_counts.tolist())
            for sample in range(count)
        ]
        assert sorted(places(plan)) == expected

    @given(plans())
    def test_lanes_and_reserve_hold_every_ordinal_once(self, plan):
        slots = range(plan.num_lanes)
        read = [plan.slot_ordinals(batch, slots) for batch in range(plan.num_batches)]
        assert all(len(ordinals) == plan.num_lanes for ordinals in read)
        reserve = range(plan.num_samples - plan.num_reserve, plan.num_samples)
        assert sorted([*np.concatenate(read).tolist(), *reserve]) == list(range(plan.num_samples))
        assert plan.num_reserve < plan.num_lanes
        # Lane j is a contiguous run.
        assert np.array_equal(
            np.concatenate(read).reshape(-1, plan.num_lanes)[:, 0], range(len(read))
        )

    @given(plans(), st.integers(1, 12))
    def test_ranks_share_out_the_lanes(self, plan, world_size):
        if plan.num_lanes % world_size:
            return
        ranks = [World(rank, world_size).slots(plan.num_lanes) for rank in range(world_size)]
        parts = [plan.slot_ordinals(0, slots) for slots in ranks]
        assert {len(part) for part in parts} == {plan.num_lanes // world_size}
        together = np.concatenate(parts).tolist()
        assert together == plan.slot_ordinals(0, range(plan.num_lanes)).tolist()

    @settings(max_examples=30)
    @given(plans())
    def test_one_ordinal_at_a_time_is_the_same(self, plan):
        ordinals = np.arange(0, plan.num_samples, 5)
        assert places(plan, ordinals) == [places(plan, o[None])[0] for o in ordinals]

    def test_the_order_is_the_same_in_every_version(self):
        # A change here makes every saved cursor mean other samples: raise the cursor's version.
        plan = make_plan([3, 0, 1, 4], num_lanes=2, seed=7, epoch=1, block_shards=2)
        expected = [(0, 0), (2, 0), (0, 1), (0, 2), (3, 0), (3, 1), (3, 2), (3, 3)]
        assert places(plan) == expected

    @pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}])
    def test_seed_and_epoch_change_all_of_it(self, change):
        base, changed = places(make_plan([25] * 8)), places(make_plan([25] * 8, **change))
        assert sorted(base) == sorted(changed)
        assert sum(a == b for a, b in zip(base, changed, strict=True)) < 10  # 1 by chance

    def test_block_size_changes_it(self):
        assert places(make_plan([25] * 8)) != places(make_plan([25] * 8, block_shards=3))

    def test_does_not_depend_on_lanes(self):
        assert places(make_plan([7, 9], num_lanes=1)) == places(make_plan([7, 9], num_lanes=16))

    @pytest.mark.parametrize(("counts", "num_lanes"), [([0, 0], 1), ([], 1), ([3, 2], 6), ([1], 2)])
    def test_fewer_samples_than_lanes(self, counts, num_lanes):
        with pytest.raises(ConfigError, match=rf"only {sum(counts)} samples") as info:
            make_plan(counts, num_lanes)
        assert info.value.field == "num_lanes"

    @pytest.mark.parametrize("ordinal", [-1, 20])
    def test_ordinal_outside_the_epoch(self, ordinal):
        with pytest.raises(IndexError):
            make_plan([20]).locate(np.array([ordinal]))

    @pytest.mark.parametrize("batch", [-1, 5])
    def test_batch_outside_the_epoch(self, batch):
        with pytest.raises(IndexError, match="of 5"):
            make_plan([20]).slot_ordinals(batch, range(4))


class TestMixing:
    PLAN = make_plan([100] * 64, num_lanes=16, seed=3)

    def test_each_part_of_a_block_holds_all_of_its_shards(self):
        shards, _ = self.PLAN.locate(np.arange(6400))
        for block in shards.reshape(16, 400):
            assert len(set(block.tolist())) == 4
            for quarter in block.reshape(4, 100):
                # 25 of each shard are expected, with a standard deviation of 3.8.
                counts = np.bincount(quarter)[list(set(block.tolist()))]
                assert counts.min() >= 6
                assert counts.max() <= 44

    def test_neighbours_in_the_order_are_none_in_the_shard(self):
        shards, samples = self.PLAN.locate(np.arange(6400))
        is_next = (np.diff(shards) == 0) & (np.diff(samples) == 1)
        assert is_next.sum() < 50  # 16 by chance
        assert abs(np.corrcoef(np.arange(6400) % 400, samples)[0, 1]) < 0.06

    def test_a_batch_mixes_distant_shards(self):
        batches = [self.PLAN.slot_ordinals(b, range(16)) for b in range(self.PLAN.num_batches)]
        num_shards = [len(set(self.PLAN.locate(batch)[0].tolist())) for batch in batches]
        assert min(num_shards) == 16  # one lane is exactly one block here

    def test_a_lane_walks_through_few_shards_at_a_time(self):
        lane = np.arange(5 * 400, 6 * 400)
        assert len(set(self.PLAN.locate(lane)[0].tolist())) == 4


class TestStandIns:
    @given(plans(), st.data())
    def test_reserve_first_then_what_follows(self, plan, data):
        batch = data.draw(st.integers(0, plan.num_batches - 1))
        slot = data.draw(st.integers(0, plan.num_lanes - 1))
        count = data.draw(st.integers(1, 40))
        chosen = plan.stand_ins(batch, slot, count).tolist()
        assert chosen == plan.stand_ins(batch, slot, count).tolist()
        assert len(chosen) == count
        assert all(0 <= ordinal < plan.num_samples for ordinal in chosen)
        first_reserve = plan.num_batches * plan.num_lanes
        from_reserve, behind = chosen[: plan.num_reserve], chosen[plan.num_reserve :]
        assert all(ordinal >= first_reserve for ordinal in from_reserve)
        assert len(set(from_reserve)) == len(from_reserve)
        own = int(plan.slot_ordinals(batch, range(slot, slot + 1))[0])
        following = [(own + 1 + turn) % plan.num_samples for turn in range(len(behind))]
        assert behind == following

    def test_slots_of_a_batch_start_at_different_places_of_the_reserve(self):
        plan = make_plan([23])  # T=5, reserve 3
        firsts = [plan.stand_ins(2, slot, 1)[0] for slot in range(3)]
        assert sorted(firsts) == [20, 21, 22]


def test_a_million_shards_take_little_memory():
    counts = np.full(10**6, 700)
    tracemalloc.start()
    plan = EpochPlan(counts, num_lanes=10**4, seed=0, epoch=0, block_shards=4)
    place = plan.locate(plan.slot_ordinals(plan.num_batches // 2, range(5000, 5001)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.shard_counts is counts
    assert plan._block_starts.nbytes < 2_100_000
    assert peak < 100_000_000
    assert 0 <= place[1][0] < 700
