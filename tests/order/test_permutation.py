import tracemalloc
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.order.permutation import EpochOrder, derive_key, permute


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


def make_order(counts, seed=0, epoch=0, block_shards=4):
    return EpochOrder(np.array(counts), seed, epoch, block_shards)


class TestLocate:
    def test_any_shape(self):
        order = make_order([5, 0, 9, 1])
        flat = order.locate(np.arange(12))
        square = order.locate(np.arange(12).reshape(3, 4))
        for one, other in zip(flat, square, strict=True):
            assert one.reshape(3, 4).tolist() == other.tolist()
        assert order.locate(np.arange(0))[0].shape == (0,)

    def test_many_at_once_are_cut_into_pieces(self):
        order = make_order([50_000, 40_000, 0, 3])
        shards, samples = order.locate(np.arange(90_003))
        assert np.unique(shards * 10**6 + samples).size == 90_003
        assert order.locate(np.array([77_777]))[1].tolist() == samples[77_777:77_778].tolist()

    def test_what_is_kept_of_the_last_look_up_changes_nothing(self):
        walked, jumped = make_order([7] * 60), make_order([7] * 60)
        jumps = np.random.default_rng(0).permutation(420)
        for ordinal in jumps[:100]:
            jumped.locate(np.array([ordinal]))
        whole = [part.tolist() for part in walked.locate(np.arange(420))]
        again = [part.tolist() for part in walked.locate(np.arange(400, 420))]
        one_by_one = [jumped.locate(np.array([ordinal])) for ordinal in range(420)]
        assert whole[0] == [int(shard[0]) for shard, _ in one_by_one]
        assert whole[1] == [int(sample[0]) for _, sample in one_by_one]
        assert again == [part[400:] for part in whole]

    def test_block_keys_are_those_of_derive_key(self):
        order = make_order([3] * 8, seed=2**64, epoch=3)
        found = order._look_up(np.array([0, 1])).keys.tolist()
        assert found == [derive_key("samples", 2**64, 3, block) for block in (0, 1)]

    @pytest.mark.parametrize("ordinals", [[-1], [0, 20], [2**62]])
    def test_outside(self, ordinals):
        with pytest.raises(IndexError, match=r"\[0, 20\)"):
            make_order([20]).locate(np.array(ordinals))


class TestMixing:
    """Statistics of 64 orders; bounds are six standard deviations, or more, of a fair shuffle."""

    ORDERS = tuple(make_order([100] * 8, seed=seed, epoch=3) for seed in range(64))

    def located(self):
        return [order.locate(np.arange(800)) for order in self.ORDERS]

    def test_where_a_sample_of_a_block_comes_to_lie_is_uniform(self):
        # Chi-square over (tenth of the block) x (tenth of the shard): 99 degrees of freedom.
        table = np.zeros((10, 10))
        for _, samples in self.located():
            np.add.at(table, (np.arange(800) % 400 // 40, samples // 10), 1)
        expected = table.sum() / 100
        chi_square = ((table - expected) ** 2 / expected).sum()
        assert chi_square < 99 + 6 * np.sqrt(2 * 99)

    def test_mean_displacement_is_that_of_a_shuffle(self):
        # A third of the length, for two independent uniform places.
        displacements = []
        for order in self.ORDERS:
            mixed = permute(np.arange(400), 400, int(order._look_up(np.array([0])).keys[0]))
            displacements.append(np.abs(mixed - np.arange(400)).mean())
        assert abs(np.mean(displacements) - 400 / 3) < 6 * 95 / np.sqrt(64 * 400)

    def test_neighbours_come_from_different_shards(self):
        # Of four shards in a block: three times in four.
        same = np.mean([np.diff(shards) == 0 for shards, _ in self.located()])
        assert abs(same - 0.25) < 0.02

    def test_every_order_of_the_shards_is_equally_likely(self):
        firsts = [make_order([1] * 5, seed=s, block_shards=1) for s in range(600)]
        placed = np.array([order.locate(np.arange(5))[0] for order in firsts])
        for place in range(5):
            share = np.bincount(placed[:, place], minlength=5) / 600
            assert np.abs(share - 0.2).max() < 6 * np.sqrt(0.2 * 0.8 / 600)

    def test_epochs_and_seeds_are_independent(self):
        # Two independent shuffles of n agree in one place on average, with a deviation of one.
        orders = [make_order([100] * 8, s, e) for s in range(4) for e in range(4)]
        keys = [
            shard * 100 + sample for shard, sample in (o.locate(np.arange(800)) for o in orders)
        ]
        agree = [(a == b).sum() for i, a in enumerate(keys) for b in keys[:i]]
        assert max(agree) <= 8
        assert abs(np.mean(agree) - 1) < 6 / np.sqrt(len(agree))


class TestPermutationsOfFew:
    @pytest.mark.parametrize("size", [3, 4])
    def test_every_permutation_is_equally_likely_over_keys(self, size):
        num_keys, num_permutations = 6000, {3: 6, 4: 24}[size]
        keys = np.array([derive_key("p", n) for n in range(num_keys)], dtype=np.uint64)
        placed = permute(np.tile(np.arange(size), (num_keys, 1)), size, keys[:, None])
        codes = placed @ (size ** np.arange(size))
        _, counts = np.unique(codes, return_counts=True)
        assert counts.size == num_permutations
        expected = num_keys / num_permutations
        chi_square = ((counts - expected) ** 2 / expected).sum()
        freedom = num_permutations - 1
        assert chi_square < freedom + 6 * np.sqrt(2 * freedom)


class TestALargeOrder:
    """A million shards of 700 samples, as a rank of a large run would ask."""

    def test_building_and_looking_up(self):
        counts = np.full(10**6, 700)
        tracemalloc.start()
        order = EpochOrder(counts, seed=0, epoch=0, block_shards=4)
        ordinals = np.arange(2000) * 350_000
        shards, samples = order.locate(ordinals)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100_000_000
        assert order._block_starts.nbytes < 2_100_000
        seconds = []
        for step in range(1, 6):
            started = perf_counter()
            order.locate(ordinals + step * 1000)
            seconds.append(perf_counter() - started)
        # 2.4 us each where this was written; a loop over the ordinals took 180.
        assert min(seconds) / 2000 < 20e-6
        assert np.unique(shards * 700 + samples).size == 2000

    def test_the_order_is_the_same_in_every_version(self):
        order = EpochOrder(np.full(10**6, 700), seed=0, epoch=0, block_shards=4)
        shards, samples = order.locate(np.array([0, 1, 10**8, 7 * 10**8 - 1]))
        assert shards.tolist() == [185413, 478327, 85633, 730848]
        assert samples.tolist() == [599, 688, 608, 99]
