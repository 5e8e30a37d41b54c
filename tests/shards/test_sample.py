import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.boxes import Size
from grpo_stream.errors import ShardFormatError
from grpo_stream.shards.images_field import is_of_several_images
from grpo_stream.shards.sample import (
    Sample,
    check_key,
    check_meta,
    encode_meta,
    is_plainly_sound,
    make_meta,
    parse_meta,
    uses_schema_3,
)
from tests.shards.support import make_sample, make_text_sample

SIZE = Size(10, 20)


def test_properties_read_the_meta():
    sample = make_sample(role="button")
    assert sample.prompt == "Click on the red circle"
    assert sample.solution == (1, 2, 8, 6)
    assert sample.size == sample.original_size == Size(8, 6)
    assert sample.extra == {"role": "button"}


def test_meta_bytes_do_not_depend_on_the_order_of_fields():
    one = make_meta("Öffne", (1.0, 2.5), SIZE, SIZE, {"a": 1, "b": {"y": 1, "x": 2}})
    two = make_meta("Öffne", (1, 2.5), SIZE, SIZE, {"b": {"x": 2, "y": 1}, "a": 1})
    assert encode_meta(one) == encode_meta(two)
    assert '"solution":[1.0,2.5]' in encode_meta(one).decode()
    assert "Öffne".encode() in encode_meta(one)


def test_reserved_names_in_extra_do_not_win():
    meta = make_meta("p", (1, 2), SIZE, SIZE, {"width": 99, "prompt": "other", "own": 1})
    assert (meta["width"], meta["prompt"], meta["own"]) == (10, "p", 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text("xyz", min_size=1), json_values, max_size=3))
def test_what_is_encoded_is_parsed_again(extra):
    meta = make_meta("p", (1, 2, 3, 4), SIZE, SIZE, extra)
    assert parse_meta(encode_meta(meta), "here") == meta


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": " \n"},
        {"prompt": 3},
        {"solution": [1, 2, 3]},
        {"solution": "1,2"},
        {"solution": [1, True]},
        {"solution": [1, math.inf]},
        {"solution": [1, 10**400]},
        {"width": 0},
        {"width": True},
        {"height": 2.5},
        {"original_width": None},
    ],
)
def test_wrong_fields_are_named(bad):
    good = make_meta("p", (1, 2), SIZE, SIZE, {})
    with pytest.raises(ShardFormatError, match="bad_meta: key='k'") as caught:
        parse_meta(json.dumps(good | bad).encode(), "key='k'")
    assert next(iter(bad)) in caught.value.detail


def several(**changes):
    meta = make_meta(
        "p",
        [(1, 2, 3, 4), (5.5, 6)],
        SIZE,
        Size(20, 40),
        {"images": ["a.png", "b.png"], "own": 1},
        more_sizes=[(Size(7, 8), Size(70, 80))],
        solution_images=(1, 0),
    )
    return meta | changes


def test_without_images():
    sample = make_text_sample(answer="5", image=[])
    assert sample.images == sample.sizes == sample.original_sizes == sample.solutions == ()
    assert sample.extra == {"answer": "5", "image": []}
    assert not uses_schema_3(sample.meta)
    make_text_sample(solution_wanted="none")
    for wrong in ({"solution": [1, 2]}, {"solution_wanted": "any"}, {"prompt": "<image>?"}):
        with pytest.raises(ShardFormatError, match=r"bad_meta|image_placeholders"):
            check_meta(sample.meta | wrong, "here")


@pytest.mark.parametrize("prompt", ["<image>", "<image> and <image> and <image>"])
def test_places_that_are_not_those_of_the_images(prompt):
    words = f"image_placeholders: here: .* {prompt.count('<')} places for images, and there are 2"
    with pytest.raises(ShardFormatError, match=words):
        check_meta(several(prompt=prompt), "here")
    check_meta(several(prompt="<image> <image>"), "here")


def test_places_in_the_prompt_of_one_image():
    meta = make_sample(prompt="Where in <image>?").meta
    assert not is_plainly_sound(meta)  # at a glance
    check_meta(meta, "here")
    with pytest.raises(ShardFormatError, match="2 places for images, and there are 1"):
        check_meta(meta | {"prompt": "<image><image>"}, "here")


def test_several_images_and_boxes():
    sample = Sample("k", b"1", "png", several(), (("jpg", b"2"),))
    assert sample.images == (("png", b"1"), ("jpg", b"2"))
    assert sample.solutions == ((1, 2, 3, 4), (5.5, 6))
    assert sample.solution_images == (1, 0)
    assert sample.sizes == ((10, 20), (7, 8))
    assert sample.original_sizes == ((20, 40), (70, 80))
    assert sample.extra == {"own": 1}
    assert (sample.solution, sample.size) == ((1, 2, 3, 4), (10, 20))
    assert parse_meta(encode_meta(sample.meta), "here") == sample.meta


def test_one_image_and_one_box_have_the_fields_of_schema_1():
    meta = make_meta("p", [(1.0, 2, 3, 4)], SIZE, SIZE, {})
    sides = '"height":20,"original_height":20,"original_width":10'
    expected = f'{{{sides},"prompt":"p","solution":[1.0,2.0,3.0,4.0],"width":10}}'
    assert encode_meta(meta).decode() == expected
    sample = Sample("k", b"1", "png", meta)
    assert (sample.solutions, sample.solution_images) == (((1, 2, 3, 4),), (0,))
    assert (sample.sizes, sample.original_sizes) == ((SIZE,), (SIZE,))


TRIANGLE = [0.0, 0.0, 8.0, 0.0, 0.0, 8.0]


@pytest.mark.parametrize(
    ("solution", "extra", "stored", "solutions"),
    [
        (TRIANGLE, {}, TRIANGLE, (tuple(TRIANGLE),)),
        ([(1, 2), TRIANGLE], {}, [[1.0, 2.0], TRIANGLE], ((1, 2), tuple(TRIANGLE))),
        ([(1, 2), (3, 4)], {"solution_wanted": "all"}, [[1.0, 2.0], [3.0, 4.0]], ((1, 2), (3, 4))),
        ([], {"solution_wanted": "none"}, [], ()),
    ],
)
def test_targets_of_schema_3(solution, extra, stored, solutions):
    meta = make_meta("p", solution, SIZE, SIZE, extra)
    assert meta["solution"] == stored
    assert uses_schema_3(meta)
    sample = Sample("k", b"1", "png", parse_meta(encode_meta(meta), "here"))
    assert sample.solutions == solutions
    assert sample.solution == (solutions[0] if solutions else ())
    assert sample.extra == extra
    assert len(sample.solution_images) == len(solutions)


def test_older_targets_do_not_use_schema_3():
    for solution in ((1, 2), (1, 2, 3, 4), [(1, 2), (3, 4, 5, 6)]):
        assert not uses_schema_3(make_meta("p", solution, SIZE, SIZE, {}))


@pytest.mark.parametrize(
    ("solution", "extra"),
    [
        ([], {}),
        ([], {"solution_wanted": "all"}),
        ((1, 2), {"solution_wanted": "none"}),
        ((1, 2, 3, 4, 5), {}),
        ((1, 2, 3, 4, 5, 6, 7), {}),
    ],
)
def test_targets_that_contradict_themselves(solution, extra):
    with pytest.raises(ShardFormatError, match="bad_meta: new sample: solution="):
        make_meta("p", solution, SIZE, SIZE, extra)
    good = make_meta("p", (1, 2), SIZE, SIZE, {})
    assert not is_plainly_sound(good | {"solution": list(solution)} | extra)


@pytest.mark.parametrize("own", [["a.png", "b.png"], "a.png", [{"path": "a"}, {"path": "b"}], [{}]])
def test_images_of_the_record_itself_stay_its_own(own):
    meta = make_meta("p", (1, 2), SIZE, SIZE, {"images": own, "solution_images": "own"})
    sample = Sample("k", b"1", "png", parse_meta(encode_meta(meta), "here"))
    assert sample.extra == {"images": own, "solution_images": "own"}
    assert sample.sizes == (SIZE,)


SIDES = {"width": 10, "height": 20, "original_width": 20, "original_height": 40}


@pytest.mark.parametrize(
    "bad",
    [
        {"solution": []},
        {"solution": [[1, 2], [3]]},
        {"solution": [[1, 2], 3]},
        {"solution": [[1, 2], [[3, 4]]]},
        {"solution": [[1, 2], [3, math.nan]]},
        {"solution_images": [0]},
        {"solution_images": [0, 2]},
        {"solution_images": [0, -1]},
        {"solution_images": [0, True]},
        {"solution_images": 0},
        {"images": [SIDES, SIDES | {"height": 0}]},
        {"images": [SIDES, {"width": 10}]},
        {"images": [SIDES | {"width": 11}, SIDES]},
    ],
)
def test_wrong_fields_of_several(bad):
    with pytest.raises(ShardFormatError, match="bad_meta: here"):
        parse_meta(json.dumps(several(**bad)).encode(), "here")


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_no_json_object(data):
    with pytest.raises(ShardFormatError, match="bad_json: here"):
        parse_meta(data, "here")


@pytest.mark.parametrize("value", [math.nan, math.inf, "half \ud800", {1, 2}])
def test_values_that_json_cannot_hold(value):
    with pytest.raises(ShardFormatError, match="bad_meta"):
        encode_meta(make_meta("p", (1, 2), SIZE, SIZE, {"extra": value}))


@pytest.mark.parametrize("key", ["a", "000042_page", "A-b_9", "x" * 90])
def test_good_keys(key):
    check_key(key)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "__meta__", "-a", "ä", "a b", "x" * 91, "a\n"])
def test_bad_keys(key):
    with pytest.raises(ShardFormatError, match="bad_key"):
        check_key(key)


ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2)
ODD_LISTS = st.lists(ODD | st.lists(ODD, max_size=4), max_size=4)


@given(st.dictionaries(st.sampled_from([*SIDES, "prompt", "solution", "images"]), ODD | ODD_LISTS))
def test_what_looks_sound_is(changes):
    meta = several() | {"solution": [1, 2.5]} | changes
    if "images" not in changes:
        del meta["images"]
    if is_plainly_sound(meta):
        check_meta(meta, "here")
        assert not is_of_several_images(meta)


@pytest.mark.parametrize("solution", [(1, 2), (1.5, 2, 3.25, 4)])
def test_what_is_written_of_one_image_looks_sound(solution):
    meta = make_meta("p", solution, SIZE, Size(20, 40), {"own": [1]})
    assert is_plainly_sound(json.loads(encode_meta(meta)))
    assert not is_plainly_sound(json.loads(encode_meta(several())))


@pytest.mark.parametrize(
    "change",
    [
        *({"prompt": value} for value in ("", " \n", 5, None)),
        *({"solution": value} for value in ([], [1], [1, 2, 3], [1] * 5, [[1, 2]], (1, 2), "12")),
        *({"solution": [1, value]} for value in (True, None, "2", math.nan, math.inf, 10**400)),
        *({"width": value} for value in (0, -1, True, 9.0, None, "9")),
        {"original_height": 0},
        {"images": []},
    ],
)
def test_what_is_unsound_or_unusual_does_not_look_sound(change):
    meta = {"prompt": "p", "solution": [1, 2], **SIDES}
    assert is_plainly_sound(meta)
    assert not is_plainly_sound(meta | change)


@pytest.mark.parametrize("meta", [None, [], "prompt", 7, {}, {"prompt": "p", "solution": [1, 2]}])
def test_what_is_no_sample_does_not_look_sound(meta):
    assert not is_plainly_sound(meta)


def test_views_are_pickled_as_bytes():
    sample = Sample("k", memoryview(b"12")[1:], "png", several(), (("jpg", memoryview(b"3")),))
    again = pickle.loads(pickle.dumps(sample))  # noqa: S301 - just made
    assert again == sample
    assert [type(image) for _, image in again.images] == [bytes, bytes]
