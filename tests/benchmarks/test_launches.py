"""Counts of operations: exact for the pinned versions, so any change of them is seen here."""

import pytest

from benchmarks.gpu.deep_policy import DEPTHS, Depth, make_deep_policy, make_groups
from benchmarks.gpu.launch_counts import DispatchCounter, count_compiled, count_launches
from benchmarks.gpu.launches import FAMILIES

pytestmark = pytest.mark.slow(reason="every dispatched operation of three steps passes Python")

SMALL = Depth(2, 3, (1,))
NUM_CALLS = {"prefill": 1 * 2 + 7, "scoring": 3 * 2 + 7, "forward": 3 * 2 + 7}
"""Attention of two layers, to the prefix alone or in three parts, and of three blocks: windows of
three lengths in two of them, and one call for the whole image."""


@pytest.fixture(scope="module")
def ours():
    return {number: count(num_groups=number) for number in (1, 4)}


def count(num_groups, *, is_ours=True, depth=SMALL):
    return count_launches(
        "qwen2_5_vl",
        depth,
        is_ours=is_ours,
        num_groups=num_groups,
        num_generations=4,
        grid=(12, 20),
    )


def test_calls_of_attention(ours):
    assert {phase: ours[1][phase]["attention"] for phase in NUM_CALLS} == NUM_CALLS
    assert ours[1]["backward"]["attention"] == NUM_CALLS["forward"]


def test_the_tower_takes_no_more_calls_for_four_images(ours):
    groups = {"prefill": 1, "scoring": 3, "forward": 3}  # calls of a layer for each group
    for phase, calls in groups.items():
        assert ours[4][phase]["attention"] == calls * 2 * 4 + 7


SCREENSHOT = (52, 92)
"""Patches of an image of 1288 x 728 in Qwen2.5-VL."""


def test_calls_of_the_tower_at_its_real_depth():
    found = {}
    for is_ours in (True, False):
        model = make_deep_policy("qwen2_5_vl", DEPTHS["qwen2_5_vl"], is_ours=is_ours)
        media = make_groups(model, 1, 8, SCREENSHOT).media[0]
        with DispatchCounter() as forward:
            features = model.model.visual(media["pixel_values"], media["image_grid_thw"])
        with DispatchCounter() as backward:
            features.pooler_output.sum().backward()
        found[is_ours] = forward.counts(), backward.counts()
    for own, others in zip(found[True], found[False], strict=True):
        assert (own["attention"], others["attention"]) == (88, 2356)
        assert own["operations"] < 0.4 * others["operations"]
    assert (found[True][0]["syncs"], found[False][0]["syncs"]) == (8, 100)


def test_four_groups_take_less_than_half_the_kernels_of_four_times_one(ours):
    for phase in ("forward", "backward"):
        assert ours[4][phase]["kernels"] < 0.5 * 4 * ours[1][phase]["kernels"]


def test_trls_layout_asks_for_more(ours):
    plain, found = count(1, is_ours=False), ours[1]
    assert plain["forward"]["attention"] > 4 * found["forward"]["attention"]
    for phase in ("scoring", "forward"):
        assert plain[phase]["kernels"] > found[phase]["kernels"]
        assert plain[phase]["syncs"] > found[phase]["syncs"]


def test_a_token_of_eight_layers_takes_no_more_than_in_generates_loop():
    """Some ten operations are of the loop, so of two layers it would be a few more."""
    counts = [
        count(1, is_ours=is_ours, depth=Depth(8, 1, (0,)))["token"] for is_ours in (True, False)
    ]
    assert all(own <= others for own, others in zip(*(one.values() for one in counts), strict=True))


HELD = {
    "prefill": {"operations": 759, "kernels": 370, "attention": 9, "syncs": 22},
    "token": {"operations": 214, "kernels": 121, "attention": 2, "syncs": 1},
    "scoring": {"operations": 885, "kernels": 429, "attention": 13, "syncs": 18},
    "forward": {"operations": 909, "kernels": 429, "attention": 13, "syncs": 18},
    "backward": {"operations": 1056, "kernels": 530, "attention": 13, "syncs": 0},
}
"""With torch 2.13, transformers 5.23, trl 1.16; another version may need other numbers."""

COMPILED = {
    "operations": 41,
    "kernels": 32,
    "attention": 0,
    "syncs": 1,
    "breaks": 0,
    "compilations": 1,
}
"""Of a token: one call of the graph, and the loop around it."""


def test_counts_are_those_that_were_written_down(ours):
    assert {phase: ours[1][phase] for phase in HELD} == HELD


def test_a_compiled_token_is_one_graph_that_is_compiled_once():
    found = count_compiled("qwen2_5_vl", SMALL, num_groups=1, num_generations=4, grid=(12, 20))
    assert found == COMPILED


FORKED = {
    "qwen3_5": Depth(4, 1, kinds=DEPTHS["qwen3_5"].kinds),
    "gemma3": Depth(6, 1, kinds=DEPTHS["gemma3"].kinds),
}


@pytest.mark.parametrize("family", FORKED)
def test_a_compiled_token_of_a_forked_family_is_the_same_loop(family):
    depth = FORKED[family]
    found = count_compiled(family, depth, num_groups=1, num_generations=4, grid=(12, 20))
    assert found == COMPILED | {"operations": 37, "kernels": 30}


def test_every_family_has_a_depth():
    assert tuple(DEPTHS) == FAMILIES
