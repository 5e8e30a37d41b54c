import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_stream.errors import ConfigError
from grpo_stream.order.epoch_plan import EpochPlan, Lanes, Segments
from grpo_stream.stream.world import World
from tests.order.support import batch_ordinals

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
        read = [batch_ordinals(plan, batch, slots) for batch in range(plan.num_batches)]
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
        parts = [batch_ordinals(plan, 0, slots) for slots in ranks]
        assert {len(part) for part in parts} == {plan.num_lanes // world_size}
        together = np.concatenate(parts).tolist()
        assert together == batch_ordinals(plan, 0, range(plan.num_lanes)).tolist()

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

    @pytest.mark.parametrize(
        ("settings_of_plan", "digest"),
        [
            (([40] * 9, 8, 0, 0, 4), "3ae9f9ba5b6937d0"),
            (([0, 1, 0, 0, 17, 1, 300, 2], 5, 2**64, 3, 3), "7d13d613ba511575"),
            (([1] * 50, 7, 11, 2, 1), "b961de01c40b7b39"),
            (([123, 45, 6] * 20, 16, 5, 4, 64), "868a38dea984663d"),
        ],
    )
    def test_the_order_is_the_same_in_every_version_digests(self, settings_of_plan, digest):
        plan = make_plan(*settings_of_plan)
        slots = range(plan.num_lanes)
        ends = [(batch, slot) for batch in (0, plan.num_batches - 1) for slot in slots]
        parts = [
            *plan.locate(np.arange(plan.num_samples)),
            *(batch_ordinals(plan, batch, slots) for batch in range(plan.num_batches)),
            *(plan.stand_ins(batch, slot, 9) for batch, slot in ends),
        ]
        found = hashlib.blake2b(np.concatenate(parts).astype("<i8").tobytes(), digest_size=8)
        assert found.hexdigest() == digest

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
        with pytest.raises(IndexError, match=f"batch {batch} .* of 5"):
            batch_ordinals(make_plan([20]), batch, range(4))

    def test_slot_outside_the_batch(self):
        with pytest.raises(IndexError, match="slot 3 to 4 of 4"):
            batch_ordinals(make_plan([20]), 0, range(3, 5))

    @given(plans())
    def test_batches_at_once_are_the_batches_one_by_one(self, plan):
        slots = range(plan.num_lanes // 2, plan.num_lanes)
        batches = range(plan.num_batches // 3, plan.num_batches)
        at_once = plan.ordinals(batches, slots)
        assert at_once.shape == (len(batches), len(slots))
        assert at_once.tolist() == [batch_ordinals(plan, b, slots).tolist() for b in batches]


@st.composite
def segmented_plans(draw):
    """A plan behind up to four segments, and the ordinals that the segments have read."""
    counts = draw(COUNTS.filter(sum))
    where = {"seed": draw(st.integers(0, 9)), "epoch": 1, "block_shards": draw(st.integers(1, 6))}
    num_lanes = draw(st.integers(1, sum(counts)))
    segments: Segments = ()
    read: list[int] = []
    for _ in range(draw(st.integers(0, 4))):
        plan = EpochPlan(np.array(counts), num_lanes, segments=segments, **where)
        some = st.integers(0, plan.num_batches)
        num_done = draw(some | st.sampled_from([0, plan.num_batches]))
        read.extend(plan.ordinals(range(num_done), range(num_lanes)).ravel().tolist())
        segments = (*segments, (num_lanes, num_done))
        num_lanes = draw(st.integers(1, sum(counts)))
    return EpochPlan(np.array(counts), num_lanes, segments=segments, **where), read


class TestSegments:
    @settings(max_examples=120)
    @given(segmented_plans())
    def test_what_is_left_is_read_exactly_once(self, case):
        plan, read = case
        slots, batches = range(plan.num_lanes), range(plan.num_batches)
        new = plan.ordinals(batches, slots).ravel().tolist()
        first_reserve = plan.num_batches * plan.num_lanes
        reserve = plan._ordinals_of(np.arange(first_reserve, plan.lanes.num_places)).tolist()
        assert sorted([*read, *new, *reserve]) == list(range(plan.num_samples))
        assert len(reserve) == plan.num_reserve < plan.num_lanes

    @given(segmented_plans(), st.data())
    def test_stand_ins_are_never_what_an_earlier_segment_read(self, case, data):
        plan, read = case
        if plan.num_batches:
            batch = data.draw(st.integers(0, plan.num_batches - 1))
            slot = data.draw(st.integers(0, plan.num_lanes - 1))
            assert not set(plan.stand_ins(batch, slot, 9).tolist()) & set(read)

    @given(plans())
    def test_a_segment_without_a_batch_changes_nothing(self, plan):
        same = EpochPlan(
            plan.shard_counts,
            plan.num_lanes,
            plan.seed,
            plan.epoch,
            plan.block_shards,
            segments=((max(plan.num_lanes // 2, 1), 0),),
        )
        slots, batches = range(plan.num_lanes), range(plan.num_batches)
        assert same.ordinals(batches, slots).tolist() == plan.ordinals(batches, slots).tolist()

    def test_an_example(self):
        # 11 ordinals, 2 lanes of 5: 0-4, 5-9, reserve 10. After 3 batches 3 4 8 9 10 are left.
        plan = EpochPlan(np.array([11]), 1, 0, 0, 4, segments=((2, 3),))
        assert plan.ordinals(range(5), range(1)).ravel().tolist() == [3, 4, 8, 9, 10]
        again = EpochPlan(np.array([11]), 2, 0, 0, 4, segments=((2, 3), (1, 2)))
        assert again.ordinals(range(1), range(2)).tolist() == [[8, 9]]
        assert again.stand_ins(0, 0, 1).tolist() == [10]

    def test_less_than_a_batch_is_left(self):
        plan = EpochPlan(np.array([11]), 4, 0, 0, 4, segments=((4, 2),))
        assert (plan.num_batches, plan.num_reserve) == (0, 3)
        assert plan.ordinals(range(0), range(4)).shape == (0, 4)

    def test_neighbouring_lanes_stay_neighbours_in_the_data(self):
        plan = EpochPlan(np.full(64, 100), 8, 3, 0, 4, segments=((16, 100),))
        shards, _ = plan.locate(plan.ordinals(range(20), range(1)).ravel())
        assert len(set(shards.tolist())) <= 4

    def test_rests_of_a_sequence(self):
        lanes = Lanes(11, 2)
        assert [lanes.rest(done, 3).num_places for done in range(6)] == [11, 9, 7, 5, 3, 1]

    @pytest.mark.parametrize("segments", [((2, 6),), ((2, -1),), ((2, 3), (5, 2))])
    def test_more_batches_than_there_are(self, segments):
        with pytest.raises(ConfigError, match="the most is"):
            EpochPlan(np.array([11]), 2, 0, 0, 4, segments=segments)


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
        batches = [batch_ordinals(self.PLAN, b, range(16)) for b in range(self.PLAN.num_batches)]
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
        own = int(batch_ordinals(plan, batch, range(slot, slot + 1))[0])
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
    place = plan.locate(batch_ordinals(plan, plan.num_batches // 2, range(5000, 5001)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.shard_counts is counts
    assert plan.order._block_starts.nbytes < 2_100_000
    assert peak < 100_000_000
    assert 0 <= place[1][0] < 700
