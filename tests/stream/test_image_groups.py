import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.servers.object_server import ObjectServer
from grpo_stream.errors import ConfigError, ShardFormatError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import open_store
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.image_groups import ImageGroupSource, open_image_group
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.stream.world import World
from shard_builder.build.build import BuildSettings, build
from shard_builder.build.chunk_plan import ShardLimits, Splits

SIZES = [3, 1, 4, 2, 1, 5, 2]  # records of each image


@pytest.fixture
def built(tmp_path):
    """Records of seven images, in turn; a shard takes four, and what is left of an image."""
    for number in range(len(SIZES)):
        noise = np.random.default_rng(number).integers(0, 256, (56, 84, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "PNG")
        (tmp_path / f"{number}.png").write_bytes(buffer.getvalue())
    records = [
        {"image": f"{number}.png", "prompt": f"{number} {turn}", "solution": [turn, 2, 30, 40]}
        for turn in range(max(SIZES))
        for number, size in enumerate(SIZES)
        if turn < size
    ]
    (tmp_path / "records.json").write_text(json.dumps(records))

    def make(name="shards", **changes):
        settings: dict[str, Any] = {
            "inputs": (str(tmp_path / "records.json"),),
            "images_root": str(tmp_path),
            "out": str(tmp_path / name),
            "by_image": True,
            "limits": ShardLimits(max_samples=4),
        }
        build(BuildSettings(**(settings | changes)))
        return tmp_path / name

    return make


@pytest.fixture
def bucket(monkeypatch):
    pytest.importorskip("obstore")
    with ObjectServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield "s3://bucket/set"


def groups_of(folder, **changes):
    source = ImageGroupSource(ShardSource(str(folder)))
    config = StreamConfig(num_reader_threads=0, resize=None, **({"num_lanes": 1} | changes))
    return PromptStream(source, config, open_sample=open_image_group)


def prompts(group):
    return [sample.prompt for sample in group]


@pytest.mark.parametrize("seed", [None, 1])
def test_an_epoch_has_every_image_once_with_all_its_records(built, seed):
    folder = built(shuffle_seed=seed)
    stream = groups_of(folder)
    assert stream.num_batches == len(SIZES)
    found = [group for b in range(len(SIZES)) for group in stream.read_batch(0, b)]
    expected = [[f"{number} {turn}" for turn in range(size)] for number, size in enumerate(SIZES)]
    assert sorted(map(prompts, found)) == expected
    manifest = Manifest.load(open_store(str(folder)))
    assert sum(manifest.group_counts) == len(SIZES)
    assert len(manifest.shards) > 2
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_group_is_its_samples_and_its_image_is_decoded_once(built, monkeypatch):
    folder = built()
    singles = PromptStream(ShardSource(str(folder)), StreamConfig(num_lanes=1, resize=None))
    by_key = {s.key: s for b in range(sum(SIZES)) for s in singles.read_batch(0, b)}
    calls = []
    real = StreamSample.from_sample

    def counted(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(StreamSample, "from_sample", counted)
    stream = groups_of(folder)
    for batch in range(stream.num_batches):
        (group,) = stream.read_batch(0, batch)
        for sample in group:
            alone = by_key.pop(sample.key)
            assert (sample.prompt, sample.solution) == (alone.prompt, alone.solution)
            assert (sample.scales, sample.extra) == (alone.scales, alone.extra)
            assert np.array_equal(sample.pixels, alone.pixels)
            assert sample.pixels is group[0].pixels
    assert not by_key
    assert len(calls) == len(SIZES)


def test_ranks_and_threads_change_nothing_and_positions_resume(built):
    folder = built()
    alone = groups_of(folder, num_lanes=2)
    expected = [[prompts(g) for g in alone.read_batch(0, b)] for b in range(3)]
    for rank in range(2):
        source = ImageGroupSource(ShardSource(str(folder)))
        config = StreamConfig(num_lanes=2, num_reader_threads=2, resize=None)
        stream = PromptStream(source, config, World(rank, 2), open_sample=open_image_group)
        with PromptLoader(stream, list) as loader:
            loader.load_state_dict(alone.cursor(0, 1).to_dict())
            found = [[prompts(group) for group in batch] for batch in loader]
        assert found == [batch[rank : rank + 1] for batch in expected[1:]]


def test_a_group_that_no_batch_can_be_made_of_is_bad_and_another_stands_in(built):
    folder = built()
    stream = groups_of(folder, max_bad_samples=3)

    def collate(groups):
        if any("3 0" in prompts(group) for group in groups):
            raise OverflowError("int too large")
        return list(map(prompts, groups))

    with PromptLoader(stream, collate) as loader:
        found = [group for batch in loader for group in batch]
    assert len(found) == len(SIZES)
    assert not any("3 0" in group for group in found)
    assert stream.counters.num_bad_by_cause == {"not_collated": 1}


def test_from_object_storage(built, bucket):
    folder = built()
    built(out=bucket)
    stream = groups_of(bucket)
    near = groups_of(folder)
    assert stream.is_remote
    with PromptLoader(stream, list) as loader:
        found = [prompts(group) for (group,) in loader]
    assert found == [prompts(g) for b in range(len(SIZES)) for g in near.read_batch(0, b)]


def test_one_bad_record_takes_its_group_away_and_another_stands_in(built):
    folder = built()
    manifest = Manifest.load(open_store(str(folder)))
    name = manifest.shards[0].name
    data = bytearray((folder / name).read_bytes())
    data[data.index(b"IDAT") + 40] ^= 1
    (folder / name).write_bytes(bytes(data))
    stream = groups_of(folder)
    found = [prompts(g) for b in range(len(SIZES)) for g in stream.read_batch(0, b)]
    assert len(found) == len(SIZES)
    assert len({group[0] for group in found}) == len(SIZES) - 1
    assert list(stream.counters.quarantine.values()) == ["checksum"]
    assert f"{name} image" in next(iter(stream.counters.quarantine))


def test_a_position_among_samples_is_none_among_groups(built):
    source = ShardSource(str(built()))
    assert ImageGroupSource(source).digest != source.digest


def test_shards_of_another_order_are_refused(built):
    folder = built("mixed", by_image=False)
    with pytest.raises(ConfigError, match="--group-by image"):
        ImageGroupSource(ShardSource(str(folder)))


def test_an_index_that_does_not_fit_is_named(built):
    folder = built()
    store = open_store(str(folder))
    manifest = Manifest.load(store)
    counts = [manifest.group_counts[0] + 1, *manifest.group_counts[1:]]
    dataclasses.replace(manifest, group_counts=tuple(counts)).save(store)
    source = ImageGroupSource(ShardSource(str(folder)))
    with pytest.raises(ShardFormatError, match="images in a row"):
        source.read(0, 0)


@pytest.mark.parametrize(
    "changes", [{"limits": ShardLimits(max_bytes=40_000)}, {"split": Splits((("val", 0.4),))}]
)
def test_an_image_stays_in_one_shard_of_one_set(built, changes):
    folder = built(**changes)
    found = [
        prompts(group)
        for path in sorted(folder.glob("**/manifest.json"))
        for stream in [groups_of(path.parent)]
        for batch in range(stream.num_batches)
        for group in stream.read_batch(0, batch)
    ]
    expected = [[f"{number} {turn}" for turn in range(size)] for number, size in enumerate(SIZES)]
    assert sorted(found) == expected
    assert len(list(folder.glob("**/*.tar"))) > 1
