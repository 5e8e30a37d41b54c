import json

import numpy as np
import pytest

from grpo_stream.boxes import Size
from grpo_stream.errors import StoreError
from grpo_stream.images import ResizeRule
from grpo_stream.shards.sample import Sample, make_meta
from grpo_stream.storage.store import LocalStore
from shard_builder.datasets.measure import HEAT_CELLS, measure
from shard_builder.datasets.stats import stats_dict, stats_table
from shard_builder.datasets.streaming_quantiles import Spread
from tests.shards.support import image_bytes, write_set

RULE = ResizeRule(28, 28 * 28, 28 * 28 * 100)


def sample(number, size, solution, prompt="Click", suffix="png", more=(), lies_in=()):
    kind = {"png": "PNG", "jpg": "JPEG"}[suffix]
    sizes = [(Size(*other), Size(*other)) for other in more]
    meta = make_meta(prompt, solution, Size(*size), Size(*size), {}, sizes, lies_in)
    images = tuple(("png", image_bytes(other)) for other in more)
    return Sample(f"{number:06d}", image_bytes(size, kind=kind), suffix, meta, images)


def measured(data_set, rule=RULE):
    store, manifest = data_set
    return measure(store, manifest, rule)


@pytest.fixture
def data_set(tmp_path):
    samples = [
        sample(0, (280, 140), (0, 0, 28, 14), "x" * 5),
        sample(1, (280, 140), (252, 112, 280, 140), "x" * 7, "jpg"),
        sample(2, (56, 112), (28, 56), "x" * 9),
        sample(3, (280, 140), [(0, 0, 20, 20), (5, 5)], "x" * 11, more=[(28, 28)], lies_in=[1, 0]),
    ]
    return LocalStore(tmp_path), write_set(tmp_path, samples, per_shard=3)


def test_everything_is_counted(data_set):
    store, manifest = data_set
    told = []
    found = measure(store, manifest, RULE, lambda *numbers: told.append(numbers))
    assert told == [(shard.num_samples, shard.num_bytes) for shard in manifest.shards]
    assert found.num_samples == 4
    assert found.formats == {"png": 4, "jpg": 1}
    assert found.sizes.counts == {"280x140": 3, "56x112": 1, "28x28": 1}
    assert (found.num_boxes, found.num_points) == (3, 2)
    assert (found.num_multi_image, found.num_multi_box) == (1, 1)
    assert (found.prompt_chars.low, found.prompt_chars.high) == (5, 11)
    assert (found.box_width.low, found.box_height.low) == (20, 14)
    assert found.box_share.high == pytest.approx(400 / 784)
    assert found.tokens.total == 3 * 50 + 8 + 1
    assert found.image_bytes.count == 5


def test_boxes_shorter_than_a_token_are_those_at_the_models_size(data_set):
    # 14 of 140 pixels stay 14; 20 of 28 stay 20: the image is one token.
    found = measured(data_set)
    assert (found.num_narrow_boxes, found.num_tiny_boxes) == (2, 1)
    # Made twice as large, 28 x 28 pixels become 40 x 40 and 28 x 14 become 56 x 28.
    larger = measured(data_set, ResizeRule(28, 28 * 28 * 200, 28 * 28 * 400))
    assert (larger.num_narrow_boxes, larger.num_tiny_boxes) == (0, 0)


def test_the_heat_map_has_rows_from_top_to_bottom(data_set):
    found = measured(data_set)
    last, half = HEAT_CELLS - 1, HEAT_CELLS // 2
    assert found.centres.sum() == 5
    assert found.centres[int(126 / 140 * HEAT_CELLS), int(266 / 280 * HEAT_CELLS)] == 1
    assert found.centres[half, half] == 1
    assert found.centres[last, 0] == 0


def test_the_table_says_it_and_the_dictionary_is_json(data_set):
    found = measured(data_set)
    table = stats_table(found)
    for line in (
        "samples             4 in 2 shards",
        "images              5: 5 (png 4, jpg 1)",
        "image sizes         280x140 3, 56x112 1, 28x28 1",
        "boxes, points       3, 2",
        "1 of several images, 1 of several boxes or points",
        "prompt, characters            5          5          7         11         11          8",
        "--patch-multiple 28 --min-pixels 784 --max-pixels 78400",
        "boxes under a token 1 of 3 (33.3%) in both sides",
        "2 of 3 (66.7%) in one side at least",
    ):
        assert line in table
    values = json.loads(json.dumps(stats_dict(found), allow_nan=False))
    assert values["num_tokens"] == 159
    assert values["prompt_chars"] == {
        "count": 4,
        "min": 5,
        "p5": 5,
        "median": 7,
        "p95": 11,
        "max": 11,
        "mean": 8,
    }
    assert np.array(values["centres"]).shape == (HEAT_CELLS, HEAT_CELLS)


def test_rejects_and_warnings_by_cause(tmp_path):
    manifest = write_set(tmp_path, [sample(0, (28, 28), (1, 1))])
    manifest.rejects.update(image_missing=2)
    lines = [{"cause": "duplicate"}, {"cause": "duplicate"}, {"cause": "box_clipped"}]
    text = "\n".join(map(json.dumps, lines)) + "\nno json\n"
    (tmp_path / "warnings.jsonl").write_text(text)
    table = stats_table(measure(LocalStore(tmp_path), manifest, RULE))
    assert "rejected records    image_missing 2" in table
    assert "4 (duplicate 2, box_clipped 1, unreadable_line 1)" in table


def test_an_image_that_no_processor_takes_is_told(tmp_path):
    manifest = write_set(tmp_path, [sample(0, (1000, 4), (1, 1, 9, 3))])
    found = measure(LocalStore(tmp_path), manifest, RULE)
    assert found.num_untokenised == 1
    assert found.tokens.count == 0
    assert "1 image is longer than 200 to 1" in stats_table(found)
    json.dumps(stats_dict(found), allow_nan=False)


def test_memory_does_not_grow_with_the_set(tmp_path):
    few = measure(LocalStore(tmp_path), write_set(tmp_path, [sample(0, (28, 28), (1, 1))]), RULE)
    held = [value for value in vars(few).values() if isinstance(value, Spread)]
    for spread in held:
        spread.add(np.random.default_rng(0).random(10_000))
        assert spread._exact is None
        assert spread._bins.nbytes < 20_000


def test_a_missing_index_names_the_way_out(data_set):
    store, manifest = data_set
    store.delete("shard-000000.tar.index")
    with pytest.raises(StoreError, match="shard-builder index"):
        measure(store, manifest, RULE)
