"""No setting but those of the order changes what the loader delivers, and from any place on."""

import tempfile
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_stream.order.cursor import Cursor
from grpo_stream.stream.config import CacheSettings
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from tests.stream.remote_support import RemoteStore
from tests.stream.support import keys_of, make_config, write_numbered_set

pytestmark = pytest.mark.timeout(120)

NUM_LANES = 4
SIZES = {"one": [23], "three": [23, 10, 31]}
WEIGHTS = {"one": None, "three": [Fraction(1, 2), Fraction(1, 8), Fraction(3, 8)]}
END = (2, 3)  # epoch and batch

FEW = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SETTINGS = st.fixed_dictionaries(
    {
        "num_reader_threads": st.sampled_from([0, 1, 2, 7]),
        "prefetch_batches": st.integers(1, 4),
        "fetch_ahead_bytes": st.sampled_from([1, 3000, 2**28]),
        "num_fetch_threads": st.sampled_from([1, 3, 16]),
    }
)
STORAGE = st.sampled_from(["local", "remote", "cached"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        name: [
            write_numbered_set(tmp_path_factory.mktemp(f"{name}-{n}"), size, per_shard=3 + n)
            for n, size in enumerate(sizes)
        ]
        for name, sizes in SIZES.items()
    }


def open_loader(folders, weights, world=None, storage="local", num_lanes=NUM_LANES, **changes):
    cache = None
    if storage == "cached":
        cache = CacheSettings(tempfile.mkdtemp(dir=folders[0].parent), 30_000)
    stores = [folder if storage == "local" else RemoteStore(folder, 0.002) for folder in folders]
    stream = PromptStream(
        [ShardSource(store, cache=cache) for store in stores],
        make_config(num_lanes, **changes),
        world,
        weights=weights,
    )
    return PromptLoader(stream, keys_of, until=END)


def read(loaders, start, end):
    """The keys of each generation batch over all ranks, from one place to another."""
    place, batches = start, []
    while place < end:
        batches.append([key for loader in loaders for key in loader.get(*place)])
        place = loaders[0].stream.plan.place_after(*place, 1)
    return batches


@pytest.fixture(scope="module")
def references(folders):
    found = {}
    for name in SIZES:
        with open_loader(folders[name], WEIGHTS[name]) as loader:
            found[name] = read([loader], (0, 0), END)
    return found


@FEW
@given(
    name=st.sampled_from(sorted(SIZES)),
    storage=STORAGE,
    world_size=st.sampled_from([1, 2, 4]),
    changes=SETTINGS,
)
def test_neither_threads_nor_storage_nor_ranks(
    folders, references, name, storage, world_size, changes
):
    worlds = [World(rank, world_size) for rank in range(world_size)]
    loaders = [
        open_loader(folders[name], WEIGHTS[name], world, storage, **changes) for world in worlds
    ]
    try:
        assert read(loaders, (0, 0), END) == references[name]
    finally:
        for loader in loaders:
            loader.close()


@pytest.mark.parametrize("name", sorted(SIZES))
def test_nor_processes(folders, references, name):
    with open_loader(
        folders[name], WEIGHTS[name], storage="remote", num_decode_processes=2
    ) as loader:
        assert read([loader], (0, 0), END) == references[name]


@FEW
@given(
    name=st.sampled_from(sorted(SIZES)),
    parts=st.lists(
        st.tuples(st.integers(1, 7), st.sampled_from([1, 2, 4]), STORAGE, SETTINGS),
        min_size=2,
        max_size=4,
    ),
)
def test_resumed_again_and_again_with_other_ranks_and_settings(folders, references, name, parts):
    state, batches = None, []
    for num_batches, world_size, storage, changes in parts:
        states, by_rank = [], []
        for rank in range(world_size):
            world = World(rank, world_size)
            with open_loader(folders[name], WEIGHTS[name], world, storage, **changes) as loader:
                if state is not None:
                    loader.load_state_dict(state)
                by_rank.append([next(iter(loader)) for _ in range(num_batches)])
                states.append(loader.state_dict())
        assert all(one == states[0] for one in states)
        state = states[0]
        batches += [[key for part in parts for key in part] for parts in zip(*by_rank, strict=True)]
    whole = references[name]
    num_known = min(len(whole), len(batches))
    assert batches[:num_known] == whole[:num_known]


@pytest.mark.parametrize("name", sorted(SIZES))
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_resumed_at_an_epochs_end(folders, references, name, off):
    with open_loader(folders[name], WEIGHTS[name], num_reader_threads=2) as loader:
        num_batches = len(loader) + off
        batches = [next(iter(loader)) for _ in range(num_batches)]
        state = loader.state_dict()
    with open_loader(
        folders[name], WEIGHTS[name], storage="remote", num_reader_threads=1
    ) as loader:
        loader.load_state_dict(state)
        batches += read([loader], (state["epoch"], state["batch_index"]), END)
    assert batches == references[name]


@FEW
@given(
    lanes=st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 3)), min_size=2, max_size=4
    ),
    changes=SETTINGS,
    storage=STORAGE,
)
def test_other_numbers_of_lanes_read_exactly_what_is_left(folders, lanes, changes, storage):
    (folder,) = folders["one"]
    state, keys, num_left = None, list[str](), SIZES["one"][0]
    for num_lanes, num_batches in [*lanes, (lanes[-1][0], 100)]:
        with open_loader([folder], None, None, storage, num_lanes, **changes) as loader:
            if state is not None:
                loader.load_state_dict(Cursor.from_dict(state).reopened(num_lanes).to_dict())
            if loader.state_dict()["epoch"] > 0:  # less than a batch was left
                break
            before = len(keys)
            for _ in range(min(num_batches, num_left // num_lanes)):
                keys += next(iter(loader))
            num_left -= len(keys) - before
            state = loader.state_dict()
            if state["epoch"] > 0:
                break
    assert len(keys) == len(set(keys)) == SIZES["one"][0] - num_left
    assert num_left < num_lanes
