import dataclasses
import pickle
import tracemalloc
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_stream.errors import ConfigError, CursorError
from grpo_stream.order.blend import Blend, exact_weights
from grpo_stream.order.blend_plan import BlendPlan
from grpo_stream.order.epoch_plan import EpochPlan
from grpo_stream.order.permutation import derive_key
from grpo_stream.order.stream_plan import SourceCounts, StreamPlan
from grpo_stream.stream.world import World

COUNTS = st.lists(st.integers(0, 30) | st.sampled_from([0, 1]), min_size=1, max_size=8).filter(sum)


def make_plan(*sources, num_lanes=4, seed=0, block_shards=4, **changes):
    """A plan of (digest, counts, weight) sources."""
    parts = [SourceCounts(digest, np.array(counts), weight) for digest, counts, weight in sources]
    return StreamPlan(parts, num_lanes, seed, block_shards, **changes)


ONE = ("one", [7, 0, 9, 12, 1], 1)
BLEND = (("aa", [40] * 6, "0.7"), ("bb", [25] * 4, "0.3"))


def listed(places):
    """(source, shard, sample) of each place, in one flat list."""
    return list(zip(*(part.ravel().tolist() for part in places), strict=True))


def whole(plan, epoch=0):
    return plan.places(epoch, range(plan.num_batches_in(epoch)), range(plan.num_lanes))


def in_rounds(plan, rounds):
    """All places of the generation batches ``rounds``, counted from the first of epoch 0."""
    source, shard, sample = plan._blended.places(np.asarray(rounds), range(plan.num_lanes))
    return np.asarray(plan._by_digest)[source], shard, sample


@st.composite
def blends(draw):
    num_lanes = draw(st.integers(1, 12))
    sources = []
    for digest in ("d", "a", "c")[: draw(st.integers(2, 3))]:
        counts = draw(COUNTS)
        counts[-1] += num_lanes  # as many samples as lanes, whatever the weight
        sources.append((digest, counts, draw(st.integers(1, 9))))
    seed, block_shards = draw(st.integers(0, 2**64)), draw(st.integers(1, 4))
    return make_plan(*sources, num_lanes=num_lanes, seed=seed, block_shards=block_shards)


class TestOneSource:
    @settings(max_examples=50)
    @given(COUNTS, st.data())
    def test_is_the_epoch_plan(self, counts, data):
        num_lanes = data.draw(st.integers(1, sum(counts)))
        plan = make_plan(("d", counts, "0.2"), num_lanes=num_lanes, seed=5)
        for epoch in (0, 3):
            same = EpochPlan(np.array(counts), num_lanes, 5, epoch, 4)
            assert plan.num_batches_in(epoch) == same.num_batches
            batches, slots = range(same.num_batches), range(num_lanes)
            shard, sample = same.locate(same.ordinals(batches, slots))
            source, *found = plan.places(epoch, batches, slots)
            assert [part.tolist() for part in found] == [shard.tolist(), sample.tolist()]
            assert not source.any()
            expected = same.locate(same.stand_ins(0, num_lanes - 1, 7))
            found = plan.stand_ins(epoch, 0, num_lanes - 1, 7)[1:]
            assert [part.tolist() for part in found] == [part.tolist() for part in expected]

    @settings(max_examples=50)
    @given(COUNTS, st.data())
    def test_a_blend_of_one_is_the_same(self, counts, data):
        num_lanes = data.draw(st.integers(1, sum(counts)))
        plan = make_plan(("d", counts, 1), num_lanes=num_lanes, seed=5)
        blended = BlendPlan(Blend(exact_weights([3]), num_lanes), [np.array(counts)], [5], 4)
        for epoch in (0, 2):
            rounds = np.arange(plan.num_batches) + epoch * plan.num_batches
            assert listed(blended.places(rounds, range(num_lanes))) == listed(whole(plan, epoch))
        slot = num_lanes // 2
        stand_ins = blended.stand_ins(plan.num_batches, slot, 9)
        assert listed(stand_ins) == listed(plan.stand_ins(1, 0, slot, 9))


class TestBlend:
    @settings(max_examples=40)
    @given(blends())
    def test_nothing_is_read_twice_in_an_epoch_of_its_source(self, plan):
        num_rounds = min(3 * max(plan.source_batches), 400)
        source, shard, sample = in_rounds(plan, range(num_rounds))
        for i, length in enumerate(plan.source_batches):
            counts = plan.sources[i].shard_counts
            assert (sample[source == i] < counts[shard[source == i]]).all()
            assert sample.min() >= 0
            for start in range(0, num_rounds, length):
                here = source[start : start + length] == i
                keys = (shard * 1000 + sample)[start : start + length][here]
                assert np.unique(keys).size == keys.size

    @settings(max_examples=50)
    @given(blends(), st.integers(1, 12), st.data())
    def test_world_size_and_batches_at_once_change_nothing(self, plan, world_size, data):
        first = data.draw(st.integers(0, plan.num_batches - 1))
        batches = range(first, min(first + 5, plan.num_batches))
        expected = plan.places(1, batches, range(plan.num_lanes))
        if plan.num_lanes % world_size == 0:
            ranks = [World(rank, world_size).slots(plan.num_lanes) for rank in range(world_size)]
            parts = [plan.places(1, batches, slots) for slots in ranks]
            together = [np.concatenate(part, axis=1) for part in zip(*parts, strict=True)]
            assert [p.tolist() for p in together] == [p.tolist() for p in expected]
        singles = [plan.places(1, range(b, b + 1), range(plan.num_lanes)) for b in batches]
        together = [np.concatenate(part) for part in zip(*singles, strict=True)]
        assert [p.tolist() for p in together] == [p.tolist() for p in expected]

    @settings(max_examples=40)
    @given(blends())
    def test_shares_hold_over_the_whole_run(self, plan):
        source = np.concatenate([whole(plan, epoch)[0] for epoch in range(2)])
        for i, weight in enumerate(plan.weights):
            counts = np.cumsum((source == i).sum(axis=1))
            exact = np.arange(1, len(counts) + 1) * float(weight * plan.num_lanes)
            assert np.abs(counts - exact).max() < 1 + 1e-9

    @settings(max_examples=60)
    @given(blends(), st.data())
    def test_stand_ins_are_of_the_same_source_and_not_regular_while_the_reserve_lasts(
        self, plan, data
    ):
        batch = data.draw(st.integers(0, plan.num_batches - 1))
        slot = data.draw(st.integers(0, plan.num_lanes - 1))
        own_source = int(plan.places(0, range(batch, batch + 1), range(slot, slot + 1))[0][0, 0])
        internal = plan._by_digest.index(own_source)
        blended = plan._blended
        num_reserve = blended.num_samples[internal] - blended.num_regular(internal)
        stand_ins = listed(plan.stand_ins(0, batch, slot, num_reserve + 3))
        assert len(stand_ins) == num_reserve + 3
        assert {source for source, _, _ in stand_ins} == {own_source}
        assert len(set(stand_ins[:num_reserve])) == num_reserve
        length = plan.source_batches[own_source]
        epoch_of_source = batch // length
        rounds = range(epoch_of_source * length, (epoch_of_source + 1) * length)
        regular = set(listed(in_rounds(plan, rounds)))
        assert not set(stand_ins[:num_reserve]) & regular

    def test_the_order_of_the_sources_changes_their_numbers_alone(self):
        there, back = make_plan(*BLEND), make_plan(*BLEND[::-1])
        source, *places = whole(there)
        other_source, *other_places = whole(back)
        assert (source == 1 - other_source).all()
        assert [p.tolist() for p in places] == [p.tolist() for p in other_places]
        assert there.cursor() == back.cursor()
        assert there.source_batches == back.source_batches[::-1]

    @pytest.mark.parametrize("change", [{"seed": 1}, {"block_shards": 2}])
    def test_settings_change_the_order(self, change):
        assert listed(whole(make_plan(*BLEND))) != listed(whole(make_plan(*BLEND, **change)))

    def test_sources_of_equal_shape_have_orders_of_their_own(self):
        plan = make_plan(("aa", [100] * 4, 1), ("bb", [100] * 4, 1))
        source, shard, sample = whole(plan)
        orders = [list(zip(shard[source == i], sample[source == i], strict=True)) for i in (0, 1)]
        assert sum(a == b for a, b in zip(*orders, strict=True)) < 20
        assert plan._blended.seeds[0] == derive_key("source", 0, "aa")

    def test_the_order_is_the_same_in_every_version(self):
        # A change here makes every saved cursor mean other samples: raise the cursor's version.
        plan = make_plan(("aa", [3, 4], "0.6"), ("bb", [5], "0.4"), num_lanes=3, seed=7)
        expected = [
            (0, 1, 0),
            (1, 0, 2),
            (0, 0, 0),
            (0, 1, 1),
            (1, 0, 0),
            (0, 0, 1),
            (0, 0, 2),
            (1, 0, 4),
            (0, 1, 3),
            (0, 0, 2),
            (1, 0, 1),
            (0, 1, 1),
        ]
        assert listed(whole(plan)) == expected

    def test_epochs_of_a_source_differ(self):
        plan = make_plan(*BLEND, num_lanes=10)
        assert plan.source_batches == (34, 33)
        source, shard, sample = plan.places(0, range(34), range(10))
        other_source, other_shard, other_sample = whole(plan, 1)
        assert source.shape == other_source.shape == (34, 10)
        keys = (shard * 100 + sample)[source == 0], (other_shard * 100 + other_sample)
        assert (keys[0] == keys[1][other_source == 0]).sum() < 12

    @pytest.mark.parametrize(
        ("batches", "slots", "words"),
        [
            (range(85, 86), range(4), "batch 85 to 85 of 85"),
            (range(-1, 1), range(4), "batch -1 to 0 of 85"),
            (range(1), range(3, 5), "slot 3 to 4 of 4"),
        ],
    )
    def test_outside(self, batches, slots, words):
        with pytest.raises(IndexError, match=words):
            make_plan(*BLEND).places(0, batches, slots)

    def test_nothing_asked_for(self):
        parts = make_plan(*BLEND).places(0, range(0), range(4))
        assert [part.shape for part in parts] == [(0, 4)] * 3


class TestRefused:
    def test_no_data_or_the_same_twice(self):
        for sources in ((), (BLEND[0], ("aa", [9, 9], "0.3"))):
            with pytest.raises(ConfigError, match="each only once"):
                make_plan(*sources)

    def test_a_source_smaller_than_its_slots(self):
        with pytest.raises(ConfigError, match=r"of 3 samples .* is 5 of .*; use at most 6"):
            make_plan(("aa", [100], 1), ("bb", [3], 1), num_lanes=10)
        make_plan(("aa", [100], 1), ("bb", [3], 1), num_lanes=6)
        with pytest.raises(ConfigError, match=r"of 0 samples .* leave it out"):
            make_plan(("aa", [100], 1), ("bb", [0, 0], 1))

    @pytest.mark.parametrize("counts", [[0], [3]])
    def test_one_source_with_fewer_samples_than_lanes(self, counts):
        with pytest.raises(ConfigError, match=f"only {sum(counts)} samples") as info:
            make_plan(("aa", counts, 1))
        assert info.value.field == "num_lanes"

    def test_segments_of_a_blend(self):
        with pytest.raises(ConfigError, match="of a blend cannot change"):
            make_plan(*BLEND, segments=((8, 1),))

    def test_segments_that_cannot_be(self):
        with pytest.raises(ConfigError, match="the most is 3"):
            make_plan(ONE, segments=((8, 4),))


class TestPlaceAfter:
    @given(st.integers(0, 3), st.integers(0, 6), st.integers(0, 40))
    def test_counts_through_epochs(self, epoch, batch, number):
        plan = make_plan(ONE, segments=((8, 2),), segments_epoch=1)
        if epoch < 1:
            return
        in_order = [(e, b) for e in range(1, 20) for b in range(plan.num_batches_in(e))]
        if batch < plan.num_batches_in(epoch):
            expected = in_order[in_order.index((epoch, batch)) + number]
            assert plan.place_after(epoch, batch, number) == expected

    def test_an_end_is_the_next_start(self):
        plan = make_plan(ONE)
        assert plan.num_batches == 7
        assert plan.place_after(2, 7) == plan.place_after(2, 0, 7) == (3, 0)
        assert plan.place_after(0, 0, 7 * 10**12 + 3) == (10**12, 3)


class TestResuming:
    def read(self, plan, place, num_batches):
        """Places of ``num_batches`` batches from ``place`` on, and the cursor behind them."""
        found = []
        for _ in range(num_batches):
            epoch, batch = place
            found += listed(plan.places(epoch, range(batch, batch + 1), range(plan.num_lanes)))
            place = plan.place_after(epoch, batch, 1)
        return found, plan.cursor(*place)

    def test_a_chain_of_segments_reads_the_epoch_once(self):
        plan = make_plan(("d", [50] * 8, 1), num_lanes=16)
        read, cursor = self.read(plan, (0, 0), 5)
        for num_lanes, num_batches in ((7, 9), (7, 3), (40, 4), (3, 20)):
            cursor = cursor.reopened(num_lanes)
            plan = make_plan(("d", [50] * 8, 1), num_lanes=num_lanes).resumed(cursor)
            more, cursor = self.read(plan, (cursor.epoch, cursor.batch_index), num_batches)
            read += more
        assert cursor.segments == ((16, 5), (7, 12), (40, 4))
        assert len(read) == 16 * 5 + 7 * 12 + 40 * 4 + 3 * 20
        left = plan.num_batches_in(0) - 20
        rest, cursor = self.read(plan, (0, 20), left)
        assert len(set(read + rest)) == len(read + rest) == 400 - 1
        # The next epoch is a whole one, in which nothing is left of the segments.
        assert (cursor.epoch, cursor.batch_index, cursor.segments) == (1, 0, ())
        fresh = make_plan(("d", [50] * 8, 1), num_lanes=3)
        assert listed(whole(plan, 1)) == listed(whole(fresh, 1))
        assert cursor == fresh.cursor(1)

    def test_another_number_of_lanes_at_an_epochs_start(self):
        cursor = make_plan(ONE).cursor(2, 0).reopened(5)
        plan = make_plan(ONE, num_lanes=5)
        assert cursor == plan.cursor(2, 0)
        assert listed(whole(plan.resumed(cursor), 2)) == listed(whole(plan, 2))

    def test_less_than_a_batch_is_left(self):
        cursor = make_plan(ONE).cursor(0, 6).reopened(6)  # 29 samples, 24 are read
        plan = make_plan(ONE, num_lanes=6).resumed(cursor)
        assert plan.num_batches_in(0) == 0
        assert plan.place_after(0, 0) == (1, 0)

    def test_a_blend_goes_on(self):
        plan = make_plan(*BLEND)
        read, cursor = self.read(plan, (0, 0), 20)
        more, _ = self.read(make_plan(*BLEND).resumed(cursor), (cursor.epoch, 20), 20)
        assert read + more == self.read(plan, (0, 0), 40)[0]

    @pytest.mark.parametrize(
        ("sources", "words"),
        [
            ((BLEND[0],), "manifest digest.*weights of the data sets: saved '7/10 3/10', now '1'"),
            ((BLEND[0], ("bb", [25] * 4, "0.4")), "weights of the data sets: saved '7/10 3/10'"),
            ((BLEND[0], ("cc", [25] * 4, "0.3")), r"saved 'aa\+bb', now 'aa\+cc'"),
        ],
    )
    def test_other_data_or_weights(self, sources, words):
        with pytest.raises(CursorError, match=words):
            make_plan(*sources).resumed(make_plan(*BLEND).cursor(0, 3))

    def test_no_place_in_the_order(self):
        plan = make_plan(ONE)
        with pytest.raises(CursorError, match="batch 8 of an epoch of 7 batches"):
            plan.resumed(plan.cursor(0, 8))
        damaged = dataclasses.replace(plan.cursor(), segments=((4, 9),))
        with pytest.raises(CursorError, match="damaged"):
            plan.resumed(damaged)

    def test_pickle(self):
        for plan in (make_plan(*BLEND), make_plan(ONE, segments=((8, 2),), segments_epoch=1)):
            same = pickle.loads(pickle.dumps(plan))  # noqa: S301
            assert listed(whole(same, 1)) == listed(whole(plan, 1))


def test_a_large_run_is_light_and_fast():
    # Beside one another: a million shards with 7e8 samples, and a hundredth of that; 10^4 lanes.
    large, small = np.full(10**6, 700), np.full(10**4, 700)
    tracemalloc.start()
    started = perf_counter()
    plan = StreamPlan(
        [SourceCounts("l", large, "0.99"), SourceCounts("s", small, "0.01")], 10**4, 0, 4
    )
    batches, slots = range(60_000, 60_016), range(4096, 4096 + 128)
    plan.places(0, batches, slots)
    built = perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000_000
    assert built < 5  # 0.4 s where this was written, most of it tracing
    seconds = []
    for _ in range(5):
        started = perf_counter()
        plan.places(0, batches, slots)
        seconds.append(perf_counter() - started)
    assert min(seconds) / (16 * 128) < 20e-6
