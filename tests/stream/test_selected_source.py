"""A choice of samples: what comes how often, and that a position in it is exact."""

import io
import tarfile
from collections import Counter

import numpy as np
import pytest

from grpo_stream.errors import ConfigError, CursorError
from grpo_stream.shards.sample import encode_meta
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.record_source import RecordSource
from grpo_stream.stream.selected_source import SelectedSource, count_copies
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from shard_builder.cli import main
from tests.shards.support import image_bytes
from tests.stream.remote_support import RemoteStore
from tests.stream.support import (
    CountingStore,
    keys_of,
    make_config,
    make_samples,
    write_numbered_set,
)

NUM = 23
COPIES = np.array([number % 4 for number in range(NUM)], np.uint8)
COPIES[4:8] = 0  # the second shard is left out
EXPECTED = {f"{number:06d}": int(copies) for number, copies in enumerate(COPIES) if copies}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_numbered_set(tmp_path_factory.mktemp("shards"), NUM)


def stream_of(source, rank=0, world_size=1, **changes):
    return PromptStream(source, make_config(**changes), World(rank, world_size))


def epoch_of(source, world_size=1, state=None, **changes):
    """The keys of each generation batch over all ranks, and the state after the first two."""
    parts, states = [], []
    for rank in range(world_size):
        with PromptLoader(stream_of(source(), rank, world_size, **changes), keys_of) as loader:
            if state is not None:
                loader.load_state_dict(state)
            found = []
            for number, batch in enumerate(loader, 1):
                found.append(batch)
                if number == 2:
                    states.append(loader.state_dict())
            parts.append(found)
    batches = [[key for part in batch for key in part] for batch in zip(*parts, strict=True)]
    return batches, states


def choice(folder, copies=COPIES, store=CountingStore):
    return lambda: SelectedSource(ShardSource(store(folder)), copies)


def test_each_comes_as_often_as_chosen(folder):
    source = choice(folder)()
    assert source.shard_counts.sum() == COPIES.sum()
    assert source.shard_counts[1] == 0
    stream = stream_of(source)
    found = Counter(
        key for n in range(stream.num_batches) for key in keys_of(stream.read_batch(0, n))
    )
    _, shards, places = stream.plan.reserve(0)
    found += Counter(source.read(int(s), int(p)).key for s, p in zip(shards, places, strict=True))
    assert found == EXPECTED


def test_ranks_threads_and_far_stores_give_one_order(folder):
    alone, _ = epoch_of(choice(folder))
    assert epoch_of(choice(folder), 2, num_reader_threads=2)[0] == alone
    assert epoch_of(choice(folder, store=RemoteStore), num_reader_threads=2)[0] == alone


def test_a_resume_is_the_exact_continuation_and_of_the_same_choice_alone(folder):
    whole, (state,) = epoch_of(choice(folder))
    rest, _ = epoch_of(choice(folder), state=state)
    assert rest == whole[2:]
    two, _ = epoch_of(choice(folder), 2, state=state)
    assert two == whole[2:]
    other = COPIES.copy()
    other[-1] += 1
    for source in (choice(folder, other), lambda: ShardSource(folder)):
        with pytest.raises(CursorError, match="the data set"):
            epoch_of(source, state=state)


def test_copies_that_are_wanted_together_are_read_once(folder):
    store = RemoteStore(folder)
    source = SelectedSource(ShardSource(store), np.full(NUM, 2, np.uint8))
    assert source.runs(0, [1, 0, 3]) == [[1, 0, 3]]
    samples = [one.sample() for one in source.fetch(0, [1, 0, 3])]
    assert keys_of(samples) == ["000000", "000000", "000001"]
    assert len({name for name, _, _ in store.ranges}) == len(store.ranges)


def test_a_bad_sample_is_counted_once_whatever_its_copies(folder):
    source = SelectedSource(ShardSource(folder), np.full(NUM, 2, np.uint8))
    assert source.identity(0, 0) == source.identity(0, 1) == ShardSource(folder).identity(0, 0)
    assert source.describe(0, 2) == ShardSource(folder).describe(0, 1)


class TestCounting:
    def test_weights_are_met_in_the_mean(self):
        keys = [f"{number:06d}" for number in range(4000)]
        weights = {key: (0.0, 0.25, 1.0, 2.5)[n % 4] for n, key in enumerate(keys)}
        copies, num_known = count_copies(lambda shard: keys[1000 * shard :][:1000], 4, weights)
        assert num_known == 4000
        kinds = [copies[n::4] for n in range(4)]
        assert [set(kind.tolist()) for kind in kinds] == [{0}, {0, 1}, {1}, {2, 3}]
        means = [kind.mean() for kind in kinds]
        assert means == pytest.approx([0, 0.25, 1, 2.5], abs=0.05)
        again, _ = count_copies(lambda _: keys, 1, dict(reversed(weights.items())))
        assert again.tolist() == copies.tolist()

    def test_others_have_a_weight_of_their_own(self):
        copies, num_known = count_copies(lambda _: ["a", "b", "c"], 1, {"b": 3.0, "z": 1.0}, 0.0)
        assert (copies.tolist(), num_known) == ([0, 3, 0], 1)

    @pytest.mark.parametrize("weight", [-0.5, float("nan"), 101.0])
    def test_weights_out_of_range(self, weight):
        with pytest.raises(ConfigError, match="weight of a"):
            count_copies(lambda _: ["a"], 1, {"a": weight})


class TestKeys:
    def test_of_shards_without_their_images(self, folder):
        store = RemoteStore(folder)
        source = ShardSource(store)
        keys = [key for shard in range(len(source.shard_counts)) for key in source.keys(shard)]
        assert keys == [f"{number:06d}" for number in range(NUM)]
        assert {size for _, _, size in store.ranges} == {512}

    def test_of_tars_with_other_headers(self, folder, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for number, sample in enumerate(make_samples(4)):
                for suffix, data in (("png", sample.image), ("json", encode_meta(sample.meta))):
                    info = tarfile.TarInfo(f"dir/{sample.key}.{suffix}")
                    info.size, info.mtime = len(data), number / 4  # a fraction needs pax
                    tar.addfile(info, io.BytesIO(bytes(data)))
        assert main(["index", str(tmp_path)]) == 0
        source = ShardSource(tmp_path)
        assert source.keys(0) == [source.read(0, n).key for n in range(4)]
        assert source.keys(0)[3] == "dir/000003"

    def test_of_records(self, tmp_path):
        (tmp_path / "a.png").write_bytes(image_bytes((40, 30), "red"))
        record = {"image": "a.png", "prompt": "Click", "solution": [1, 2, 3, 4]}
        source = RecordSource([record, record | {"image": "no.png"}, record], tmp_path)
        assert source.keys(0) == ["000000000_a", "000000001_no", "000000002_a"]
        assert source.read(0, 2).key == "000000002_a"
