"""Views of a sample: where crops are, and that targets are where they were."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.grounding.cases import Case
from grpo_stream.grounding.frames import View, to_original
from grpo_stream.image_encoding import encode_png
from grpo_stream.images import ResizeRule
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.stream import sample_views, stream_sample
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sample_views import OpenViews, SampleViews, crop_region
from grpo_stream.stream.sources import ShardSource
from grpo_stream.targets import WANTED_FIELD, read_shape, read_target
from tests.shards.support import image_bytes, write_set
from tests.stream.support import make_config, write_numbered_set

STORED, ORIGINAL = Size(640, 400), Size(1280, 800)
BOX = (500.0, 300.0, 560.0, 340.0)


def make_sample(solution=BOX, key="a", stored=STORED, original=ORIGINAL, **extra):
    meta = make_meta("Click", solution, stored, original, extra)
    return Sample(key, image_bytes(stored), "png", meta)


def views_of(sample, num_views=4, **changes):
    config = make_config(**({"resize": ResizeRule(28, 784, 28 * 28 * 100)} | changes))
    opened = OpenViews(num_views)(sample, config)
    assert opened.key == sample.key
    return opened.views


sides = st.integers(2, 3000)


@st.composite
def samples(draw):
    """Sizes and a target: a box, a point or a polygon anywhere inside."""
    width, height = draw(sides), draw(sides)
    xs = sorted(draw(st.lists(st.floats(0, width), min_size=2, max_size=2)))
    ys = sorted(draw(st.lists(st.floats(0, height), min_size=2, max_size=2)))
    box = (xs[0], ys[0], max(xs[1], xs[0] + 0.01), max(ys[1], ys[0] + 0.01))
    point = (min(xs[0], width - 0.5), min(ys[0], height - 0.5))
    polygon = (box[0], box[1], box[2], box[1], box[2], box[3])
    solution = draw(st.sampled_from([box, point, polygon, (box, point)]))
    meta = make_meta("Click", solution, Size(width, height), Size(width, height), {})
    return Sample(draw(st.text("abc", min_size=1)), b"", "png", meta)


@settings(max_examples=40)
@given(samples(), st.integers(0, 3), st.integers(1, 5))
def test_a_crop_is_inside_and_holds_the_target(sample, seed, number):
    region = crop_region(sample, seed, number)
    width, height = sample.size
    assert 0 <= region.x1 < region.x2 <= width
    assert 0 <= region.y1 < region.y2 <= height
    assert all(number == int(number) for number in (region.x1, region.y1, region.x2, region.y2))
    for numbers in sample.solutions:
        shape = read_shape(numbers)
        if isinstance(shape, Point):
            assert region.contains(shape)
        else:
            box = shape if isinstance(shape, Box) else shape.bounds
            assert region.x1 <= box.x1
            assert min(box.x2, width) <= region.x2
            assert region.y1 <= box.y1
            assert min(box.y2, height) <= region.y2
    assert region == crop_region(sample, seed, number)


def test_crops_are_of_many_sizes_and_places():
    one = make_sample()
    regions = [crop_region(one._replace(key=str(n)), 0, 1) for n in range(200)]
    shares = [region.width / STORED.width for region in regions]
    assert min(shares) < 0.45
    assert max(shares) > 0.85
    assert len({region.x1 for region in regions}) > 50
    assert len({crop_region(make_sample(), seed, n) for seed in (0, 1) for n in (1, 2)}) == 4


def test_the_first_view_is_the_whole_image():
    whole = views_of(make_sample())[0]
    alone = stream_sample.decode_sample(
        make_sample(), make_config(resize=ResizeRule(28, 784, 78400))
    )
    assert (whole.solution, whole.scales, whole.prompt) == (alone.solution, ORIGINAL, "Click")
    assert np.array_equal(whole.pixels, alone.pixels)
    assert whole.extra == {"view": 0, "view_region": [0, 0, 1280, 800]}


@pytest.mark.parametrize("frame", ["model", "per_mille", "original"])
@pytest.mark.parametrize("solution", [BOX, (530.0, 320.0), (*BOX[:2], *BOX[2:], 500.0, 340.0)])
def test_an_answer_at_the_same_spot_earns_the_same_in_every_view(solution, frame):
    """Through each view's frame: the target's middle is a hit, a spot beside it is none."""
    for view in views_of(make_sample(solution)):
        shown = View(Box(*view.extra["view_region"]), view.scales)
        target = read_target(view.solution)
        span = {"model": view.model_size, "per_mille": Size(1000, 1000), "original": view.scales}
        for spot, is_hit in (((1059, 641), 1.0), ((940, 640), 0.0)):
            region, (width, height) = shown.region, span[frame]
            x = (spot[0] - region.x1) / region.width * width
            y = (spot[1] - region.y1) / region.height * height
            case = Case(f"({x}, {y})", target, view.scales, view.model_size, frame)
            assert case.accuracy(0.01) == is_hit
            back = to_original(
                Point(x, y, frame), model_size=view.model_size, original_size=ORIGINAL, view=shown
            )
            assert (back.x, back.y) == pytest.approx(spot)


def test_pixels_are_those_of_the_region():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (STORED.height, STORED.width, 3), dtype=np.uint8)
    meta = make_meta("Click", BOX, STORED, STORED, {})
    view = views_of(Sample("a", encode_png(pixels), "png", meta), resize=None)[1]
    x1, y1, x2, y2 = map(int, view.extra["view_region"])
    assert np.array_equal(view.pixels, pixels[y1:y2, x1:x2])
    assert view.solution == (BOX[0] - x1, BOX[1] - y1, BOX[2] - x1, BOX[3] - y1)


def test_what_is_not_there_is_in_no_view():
    views = views_of(make_sample((), **{WANTED_FIELD: "none"}))
    assert all(read_target(one.solution, one.extra[WANTED_FIELD]).is_absent for one in views)
    assert len({tuple(one.extra["view_region"]) for one in views}) == 4


def test_several_places_are_all_in_every_view():
    views = views_of(make_sample((BOX, (100.0, 60.0)), **{WANTED_FIELD: "all"}))
    for view in views:
        assert len(read_target(view.solution, "all").shapes) == 2
        x, y = view.solution[1]
        assert 0 <= x < view.scales.width
        assert 0 <= y < view.scales.height


def test_one_decode_and_a_resize_for_each_view(monkeypatch):
    counts = {"decode": 0, "resize": 0}
    for module, name in (
        (stream_sample, "decode"),
        (stream_sample, "resize"),
        (sample_views, "resize"),
    ):
        function = getattr(module, name)

        def counted(*args, function=function, name=name):
            counts[name] += 1
            return function(*args)

        monkeypatch.setattr(module, name, counted)
    views_of(make_sample(), 3)
    assert counts == {"decode": 1, "resize": 3}


def test_a_stream_of_views_is_the_same_on_any_rank_and_thread(tmp_path):
    folder = write_numbered_set(tmp_path)

    def places(opened):
        return [(view.key, view.extra["view_region"]) for one in opened for view in one.views]

    def read(**changes):
        stream = PromptStream(ShardSource(folder), make_config(**changes), open_sample=OpenViews(3))
        with PromptLoader(stream, places) as loader:
            return list(loader)

    alone = read()
    assert len(alone[0]) == 4 * 3
    assert read(num_reader_threads=2) == alone
    assert read(stream_seed=1) != alone
    assert pickle.loads(pickle.dumps(OpenViews(3))) == OpenViews(3)  # noqa: S301


def test_without_one_image_every_view_is_whole(tmp_path):
    size = Size(8, 6)
    meta = make_meta("Click", (1, 2, 7, 5), size, size, {}, [(size, size)])
    sample = Sample("a", image_bytes(size), "png", meta, (("png", image_bytes(size)),))
    write_set(tmp_path, [sample], 1)
    opened = OpenViews(2)(ShardSource(tmp_path).read(0, 0), make_config())
    assert isinstance(opened, SampleViews)
    assert [view.extra["view"] for view in opened.views] == [0, 1]
    assert [len(view.images) for view in opened.views] == [2, 2]
