import numpy as np
import pytest

from grpo_stream.boxes import Size
from grpo_stream.errors import ImageError, ShardFormatError
from grpo_stream.images import ImageLimits, ResizeRule, decode, resize
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.stream.stream_sample import StreamSample
from tests.shards.support import image_bytes, make_multi_sample

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
