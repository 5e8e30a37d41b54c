import pytest

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.errors import ConfigError
from grpo_stream.polygons import Polygon
from grpo_stream.targets import Target, has_extent, read_target, shape_numbers

TRIANGLE = [0, 0, 8, 0, 0, 8]


@pytest.mark.parametrize(
    ("solution", "wanted", "target"),
    [
        ([1, 2, 3, 4], None, Target((Box(1, 2, 3, 4),))),
        ((1, 2), "any", Target((Point(1, 2),))),
        (TRIANGLE, None, Target((Polygon(((0, 0), (8, 0), (0, 8))),))),
        ([[1, 2, 3, 4]], None, Target((Box(1, 2, 3, 4),))),
        ([[1, 2, 3, 4], [5, 6]], None, Target((Box(1, 2, 3, 4), Point(5, 6)))),
        (((1, 2), (5, 6)), "all", Target((Point(1, 2), Point(5, 6)), wants_all=True)),
        ([], None, Target(())),
        (None, "none", Target(())),
        ([], "none", Target(())),
    ],
)
def test_targets_are_read(solution, wanted, target):
    found = read_target(solution, wanted)
    assert found == target
    assert found.wanted == (wanted or ("any" if found.shapes else "none"))
    numbers = [shape_numbers(shape) for shape in found.shapes]
    assert read_target(numbers, wanted) == target


@pytest.mark.parametrize(
    ("solution", "wanted", "field"),
    [
        ([1, 2, 3], None, "solution"),
        ([1, 2, 3, 4, 5], None, "solution"),
        ([[1, 2, 3, 4], [5]], None, "solution"),
        ([1, 2], "none", "solution"),
        ([], "any", "solution"),
        ([], "all", "solution"),
        ([1, 2], "each", "solution_wanted"),
    ],
)
def test_what_is_no_target_is_named(solution, wanted, field):
    with pytest.raises(ConfigError) as caught:
        read_target(solution, wanted)
    assert caught.value.field == field


def test_all_places_move_between_frames_together():
    target = read_target([[1, 2, 3, 4], [5, 6], TRIANGLE], "all")
    scaled = target.scaled(Size(10, 10), Size(20, 10), "model")
    assert [shape_numbers(shape) for shape in scaled.shapes] == [
        [2, 2, 6, 4],
        [10, 6],
        [0, 0, 16, 0, 0, 8],
    ]
    assert scaled.wants_all
    assert {shape.frame for shape in scaled.shapes} == {"model"}


def test_what_can_be_scored():
    assert [has_extent(read_target(n).shapes[0]) for n in ([1, 2], [1, 2, 1, 9], TRIANGLE)] == [
        True,
        False,
        True,
    ]
