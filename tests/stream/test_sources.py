import numpy as np
import pytest

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, ImageError, ManifestError, ShardFormatError, StoreError
from grpo_stream.images import ImageLimits, ResizeRule, decode, resize
from grpo_stream.shards.index import index_name
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.storage.store import LocalStore
from grpo_stream.stream import sources
from grpo_stream.stream.sources import ShardSource, StreamSample
from tests.shards.support import image_bytes, make_multi_sample, write_set, write_shard
from tests.stream.support import CountingStore, damage, make_samples, write_numbered_set

SMALL = ResizeRule(min_pixels=28 * 28, max_pixels=28 * 28 * 4)


def stored_sample(size=(40, 30), original=(40, 30), solution=(4, 6, 20, 15), **changes):
    meta = make_meta("Click", solution, Size(*size), Size(*original), {"note": "n"})
    return Sample("k", image_bytes(size), "png", meta)._replace(**changes)


class TestStreamSample:
    def test_decodes_and_resizes(self):
        stored = stored_sample(size=(100, 40), original=(100, 40))
        sample = StreamSample.from_sample(stored, SMALL)
        assert sample.model_size == SMALL.target(Size(100, 40)) == Size(112, 28)
        assert np.array_equal(sample.pixels, resize(decode(stored.image), Size(112, 28)))
        assert sample.pixels.dtype == np.uint8
        assert (sample.key, sample.prompt, sample.extra) == ("k", "Click", {"note": "n"})

    def test_without_a_rule_the_image_stays_as_stored(self):
        stored = stored_sample()
        assert np.array_equal(StreamSample.from_sample(stored, None).pixels, decode(stored.image))

    @pytest.mark.parametrize(
        ("original", "solution", "expected"),
        [
            ((40, 30), (4, 6, 20, 15), (4, 6, 20, 15)),
            ((80, 90), (4, 6, 20, 15), (8, 18, 40, 45)),
            ((80, 90), (4, 6), (8, 18)),
            ((20, 15), (4, 6), (2, 3)),
        ],
    )
    def test_the_solution_is_in_the_frame_of_the_original(self, original, solution, expected):
        stored = stored_sample(original=original, solution=solution)
        sample = StreamSample.from_sample(stored, SMALL)
        assert sample.solution == expected
        assert sample.scales == Size(*original)

    def test_size_mismatch(self):
        stored = stored_sample(image=image_bytes((41, 30)))
        with pytest.raises(ShardFormatError, match=r"size_mismatch: k: .*41.*40"):
            StreamSample.from_sample(stored, SMALL)

    def test_several_images(self):
        boxes = [(0, 0, 8, 6), (1, 1), (0, 0, 4, 2)]
        stored = make_multi_sample(boxes=boxes, lies_in=(0, 2, 1))
        sample = StreamSample.from_sample(stored, SMALL)
        assert [image.shape for image in sample.images] == [
            (size.height, size.width, 3) for size in map(SMALL.target, stored.sizes)
        ]
        assert sample.original_sizes == (Size(8, 6), Size(8, 4), Size(5, 7))
        assert sample.model_sizes[0] == sample.model_size
        # Each place in the frame of its own image; the second one was stored at half its size.
        assert sample.solution == ((0, 0, 8, 6), (1, 1), (0, 0, 8, 4))
        assert sample.extra["solution_images"] == [0, 2, 1]

    def test_without_images(self):
        meta = make_meta("What is 2 + 3?", (), None, None, {"answer": "5"})
        sample = StreamSample.from_sample(Sample("k", b"", "", meta), SMALL)
        assert (sample.images, sample.original_sizes, sample.model_sizes) == ((), (), ())
        assert (sample.solution, sample.extra) == ((), {"answer": "5"})

    def test_pixels_of_all_images_together(self):
        stored = make_multi_sample()
        total = sum(size.width * size.height for size in map(SMALL.target, stored.sizes))
        StreamSample.from_sample(stored, SMALL, max_total_pixels=total)
        words = f"images_too_large: 3 images of {total} pixels are more than max_total_pixels="
        with pytest.raises(ImageError, match=words):
            StreamSample.from_sample(stored, SMALL, max_total_pixels=total - 1)

    @pytest.mark.parametrize(
        ("solution", "extra", "expected"),
        [
            ([(1, 2), (3, 4, 5, 6)], {}, ((2, 4), (6, 8, 10, 12))),
            ([(1, 2), (3, 4)], {"solution_wanted": "all"}, ((2, 4), (6, 8))),
            ((0, 0, 4, 0, 0, 4), {}, (0, 0, 8, 0, 0, 8)),
            ([], {"solution_wanted": "none"}, ()),
        ],
    )
    def test_targets_other_than_one_box_are_scaled(self, solution, extra, expected):
        meta = make_meta("p", solution, Size(40, 30), Size(80, 60), extra)
        sample = StreamSample.from_sample(stored_sample()._replace(meta=meta), SMALL)
        assert sample.solution == expected
        assert sample.extra == extra

    def test_limits(self):
        with pytest.raises(ImageError, match="image_too_large"):
            StreamSample.from_sample(stored_sample(), None, ImageLimits(max_image_pixels=100))


class TestShardSource:
    def test_every_sample_by_its_place(self, tmp_path):
        source = ShardSource(str(write_numbered_set(tmp_path, num_samples=7, per_shard=3)))
        assert source.shard_counts.tolist() == [3, 3, 1]
        assert source.shard_counts.dtype == np.int64
        places = [(shard, sample) for shard in range(3) for sample in range(3)][:7]
        assert [source.read(*place) for place in places] == make_samples(7)
        assert source.digest == Manifest.load(LocalStore(tmp_path)).digest

    def test_one_ranged_read_per_sample_and_one_index_per_shard(self, tmp_path):
        store = CountingStore(write_numbered_set(tmp_path, num_samples=6, per_shard=3))
        source = ShardSource(store)
        for place in [(0, 0), (1, 2), (0, 1), (0, 2)]:
            source.read(*place)
        assert list(store.reads.values()) == [1, 1, 1, 1]
        shards = [info.name for info in source.manifest.shards]
        assert store.whole_reads == {"manifest.json": 1, **{index_name(name): 1 for name in shards}}

    def test_old_indexes_are_dropped(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "_NUM_OPEN_INDEXES", 2)
        source = ShardSource(str(write_numbered_set(tmp_path, num_samples=8, per_shard=2)))
        for shard in (0, 1, 0, 2):
            source.read(shard, 0)
        assert list(source._indexes) == [1, 2]

    def test_checksum(self, tmp_path):
        source = ShardSource(str(write_numbered_set(tmp_path)))
        damage(source, 1, 2)
        source.read(1, 1)
        with pytest.raises(ShardFormatError) as info:
            source.read(1, 2)
        assert info.value.cause == "checksum"
        assert "000006" in info.value.detail

    def test_an_index_of_another_build(self, tmp_path):
        source = ShardSource(str(write_numbered_set(tmp_path)))
        name = source.manifest.shards[0].name
        write_shard(tmp_path / "other.tar", make_samples(2))
        (tmp_path / index_name("other.tar")).replace(tmp_path / index_name(name))
        with pytest.raises(ShardFormatError, match="foreign_index"):
            source.read(0, 0)

    def test_a_shard_that_is_gone(self, tmp_path):
        source = ShardSource(str(write_numbered_set(tmp_path)))
        (tmp_path / source.manifest.shards[0].name).unlink()
        with pytest.raises(StoreError, match="not_found"):
            source.read(0, 0)

    def test_no_data_set(self, tmp_path):
        with pytest.raises(ManifestError, match="no manifest, no data set"):
            ShardSource(str(tmp_path))
        with pytest.raises(ConfigError, match="url"):
            ShardSource("")

    def test_the_digest_follows_the_content(self, tmp_path):
        write_set(tmp_path / "a", make_samples(4))
        write_set(tmp_path / "b", make_samples(4))
        write_set(tmp_path / "c", make_samples(5))
        a, b, c = (ShardSource(str(tmp_path / name)).digest for name in "abc")
        assert a == b != c
