"""Small data sets for the stream's tests, and a store that counts what is read."""

from collections import Counter

from grpo_stream.boxes import Size
from grpo_stream.shards.index import ShardIndex
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.storage.store import LocalStore
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from tests.shards.support import image_bytes, write_set

_COLOURS = ("red", "green", "blue", "black")


class CountingStore(LocalStore):
    """A folder that counts its ranged reads by (name, offset), and its whole ones by name."""

    def __init__(self, folder):
        super().__init__(folder)
        self.reads: Counter[tuple[str, int]] = Counter()
        self.whole_reads: Counter[str] = Counter()

    def read(self, name):
        self.whole_reads[name] += 1
        return super().read(name)

    def read_range(self, name, offset, num_bytes):
        self.reads[name, offset] += 1
        return super().read_range(name, offset, num_bytes)


def make_samples(num_samples):
    """Samples with keys ``000000``, ``000001``, ... and images of two sizes."""
    samples = []
    for number in range(num_samples):
        size = Size(8 + number % 2, 6)
        meta = make_meta(f"Click {number}", (1, 2, 7, 5), size, size, {"number": number})
        image = image_bytes(size, _COLOURS[number % len(_COLOURS)])
        samples.append(Sample(f"{number:06d}", image, "png", meta))
    return samples


def write_numbered_set(folder, num_samples=23, per_shard=4):
    """A data set of :func:`make_samples`, the last shard shorter than the others."""
    write_set(folder, make_samples(num_samples), per_shard)
    return folder


def make_config(num_lanes=4, **changes):
    return StreamConfig(
        **({"num_lanes": num_lanes, "num_reader_threads": 0, "resize": None} | changes)
    )


def make_stream(folder, *, rank=0, world_size=1, store=None, **changes):
    source = ShardSource(store or CountingStore(folder))
    return PromptStream(source, make_config(**changes), World(rank, world_size))


def keys_of(samples):
    return [sample.key for sample in samples]


def epoch_keys(folder, world_size=1, state=None, **changes):
    """The keys of each generation batch over all ranks, up to the epoch's end."""
    parts = []
    for rank in range(world_size):
        stream = make_stream(folder, rank=rank, world_size=world_size, **changes)
        with PromptLoader(stream, keys_of) as loader:
            if state is not None:
                loader.load_state_dict(state)
            parts.append(list(loader))
    return [[key for part in batch for key in part] for batch in zip(*parts, strict=True)]


def damage(source, shard, sample):
    """Flips a byte in the image of one sample, on disk."""
    info = source.manifest.shards[shard]
    path = source._store.folder / info.name
    entry = ShardIndex.load(source._store, info)[sample]
    data = bytearray(path.read_bytes())
    data[entry.offset + 512 + 30] ^= 0xFF  # behind the tar header and PNG's signature
    path.write_bytes(data)
