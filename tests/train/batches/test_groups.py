from dataclasses import replace
from typing import Any

import pytest
import torch

from grpo_stream.errors import ConfigError
from grpo_stream.train.batches.groups import (
    PromptGroups,
    check_groups,
    cut_micro_batches,
    reward_rows,
)
from tests.train.support import CPU, make_collator, make_groups, make_stream_sample

SIZES = [(56, 56), (84, 56), (56, 112)]
PATCHES = [16, 24, 32]


@pytest.fixture(scope="module")
def groups(processor):
    return make_groups(processor, SIZES, num_generations=4)


def ids_of(groups):
    return [tuple(ids.tolist()) for ids in groups.prompt_ids]


class TestRows:
    @pytest.mark.parametrize(
        ("start", "stop", "kept", "sizes"),
        [
            (0, 12, [0, 1, 2], [4, 4, 4]),
            (0, 4, [0], [4]),
            (4, 12, [1, 2], [4, 4]),
            (0, 2, [0], [2]),
            (2, 4, [0], [2]),
            (2, 6, [0, 1], [2, 2]),
            (3, 9, [0, 1, 2], [1, 4, 1]),
            (11, 12, [2], [1]),
        ],
    )
    def test_keeps_the_prompts_of_the_rows(self, groups, start, stop, kept, sizes):
        part = groups.rows(start, stop)
        assert part.sizes == sizes
        assert part.num_rows == stop - start
        assert ids_of(part) == [ids_of(groups)[i] for i in kept]
        assert [len(own["pixel_values"]) for own in part.media] == [PATCHES[i] for i in kept]
        for name, joined in part.images().items():
            assert torch.equal(joined, torch.cat([groups.media[i][name] for i in kept]))

    def test_of_rows(self, groups):
        part = groups.rows(2, 10).rows(1, 5)  # rows 3 to 7
        assert part.sizes == [1, 3]
        assert ids_of(part) == ids_of(groups)[:2]

    def test_parts_cover_the_whole(self, groups):
        parts = [groups.rows(start, start + 3) for start in range(0, 12, 3)]
        rows = [ids for part in parts for ids, n in zip(ids_of(part), part.sizes, strict=True)
                for _ in range(n)]  # fmt: skip
        assert rows == [ids for ids in ids_of(groups) for _ in range(4)]


def test_one_prompt_after_another(groups):
    found = list(groups.rows(2, 9).each())
    assert [part.sizes for part in found] == [[2], [4], [1]]
    assert [ids_of(part) for part in found] == [[ids] for ids in ids_of(groups)]


def test_token_types_of_padded_rows(groups):
    longest = max(map(len, groups.prompt_ids))
    types = groups.token_types(longest, 5)
    assert types.shape == (12, longest + 5)
    for row, prompt in enumerate([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]):
        own = groups.mm_token_type_ids[prompt]
        assert torch.equal(types[row, longest - len(own) : longest], own)
        assert types[row].sum() == own.sum()
        assert not types[row, longest:].any()


def test_from_batch_holds_each_image_once(processor):
    batch = make_collator(processor)([make_stream_sample(n, s) for n, s in enumerate(SIZES)])
    groups = PromptGroups.from_batch(batch, 8, CPU)
    assert groups.sizes == [8, 8, 8]
    assert groups.num_rows == 24
    pixels = [own["pixel_values"] for own in groups.media]
    assert [own.shape for own in pixels] == [(number, 1176) for number in PATCHES]
    assert {own.dtype for own in pixels} == {torch.float32}
    # Micro-batches look into them: no copy, however a generation batch is cut.
    for start, stop, number in ((0, 8, 0), (9, 16, 1), (20, 24, 2)):
        (own,) = groups.rows(start, stop).media
        assert own["pixel_values"] is pixels[number]
        assert groups.rows(start, stop).images()["pixel_values"] is pixels[number]


def test_patches_of_a_collator_are_taken_as_they_are(processor):
    batch = make_collator(processor)([make_stream_sample(n, s) for n, s in enumerate(SIZES)])
    own = torch.randn(sum(PATCHES), 1176)
    groups = PromptGroups.from_batch(batch | {"pixel_values": own}, 8, CPU)
    assert groups.media[0]["pixel_values"].data_ptr() == own.data_ptr()


def test_images_without_a_rule_are_refused(processor):
    batch = make_collator(processor)([make_stream_sample()])
    with pytest.raises(ConfigError, match=r"data_collator=.*patch_rule"):
        PromptGroups.from_batch(batch | {"patch_rule": None}, 8, CPU)


def test_positions_go_with_their_prompts(groups):
    positions = [torch.full((3, len(ids)), n) for n, ids in enumerate(groups.prompt_ids)]
    part = replace(groups, positions=positions).rows(5, 12).rows(3, 7)
    assert [int(own[0, 0]) for own in part.positions] == [2]
    assert groups.rows(0, 4).positions is None


class TestCheckGroups:
    @pytest.mark.parametrize("keys", [[], ["a", "a"], ["a", "a", "b", "b"]])
    def test_whole_groups(self, keys):
        check_groups(keys, 2)

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (["a", "b"], r"group 0 mixes the prompts \['a', 'b'\]"),
            (["a", "a", "b", "a"], "group 1 mixes"),
            (["a", "a", "a"], "3 completions are no whole number of groups of 2"),
        ],
    )
    def test_refuses(self, keys, message):
        with pytest.raises(RuntimeError, match=message):
            check_groups(keys, 2)


class TestCutMicroBatches:
    @pytest.mark.parametrize("num_micro_batches", [1, 2, 3, 4, 6])
    def test_keeps_the_order(self, groups, num_micro_batches):
        scored: dict[str, Any] = {
            "completion_ids": torch.arange(24).reshape(12, 2),
            "advantages": torch.arange(12.0),
            "num_items_in_batch": torch.tensor(99),
            "none": None,
        }
        parts = cut_micro_batches(scored, groups, num_micro_batches)
        assert len(parts) == num_micro_batches
        for name in ("completion_ids", "advantages"):
            assert torch.equal(torch.cat([part[name] for part in parts]), scored[name])
        assert all(part["num_items_in_batch"] == 99 and part["none"] is None for part in parts)
        assert {part["groups"].num_rows for part in parts} == {12 // num_micro_batches}
        assert {len(part["advantages"]) for part in parts} == {12 // num_micro_batches}

    def test_rows_stay_with_their_prompts(self, groups):
        # The number of the prompt that each row belongs to travels with the row.
        scored = {"prompt": torch.arange(3).repeat_interleave(4)}
        for part in cut_micro_batches(scored, groups, 6):
            rows = [ids for ids, n in zip(ids_of(part["groups"]), part["groups"].sizes, strict=True)
                    for _ in range(n)]  # fmt: skip
            assert rows == [ids_of(groups)[i] for i in part["prompt"].tolist()]


class TestRewardRows:
    def make_batch(self, processor, extras):
        samples = [make_stream_sample(n, extra=extra) for n, extra in enumerate(extras)]
        return make_collator(processor)(samples)

    def test_are_references(self, processor):
        batch = self.make_batch(processor, [{"words": ["a"]}, {"words": ["b"]}])
        rows = reward_rows(batch, 3)
        assert len(rows) == 6
        assert rows[0] is rows[1] is rows[2]
        assert rows[0]["prompt"] is batch["prompt"][0]
        assert rows[3]["solution"] is batch["solution"][1]
        assert rows[3]["words"] is batch["extra"][1]["words"]
        assert [row["key"] for row in rows] == ["000000"] * 3 + ["000001"] * 3

    def test_columns(self, processor):
        (row,) = reward_rows(self.make_batch(processor, [{"id": 5}]), 1)
        assert {k: v for k, v in row.items() if k != "prompt"} == {
            "solution": [10, 20, 30, 40],
            "scales": (112, 112),
            "model_size": (56, 56),
            "answer_frame": "model",
            "key": "000000",
            "id": 5,
        }

    def test_fields_that_some_records_lack_are_none(self, processor):
        rows = reward_rows(self.make_batch(processor, [{"a": 1}, {"b": 2}]), 1)
        assert [(row["a"], row["b"]) for row in rows] == [(1, None), (None, 2)]
        assert list(rows[0]) == list(rows[1])

    @pytest.mark.parametrize(
        "name", ["image", "images", "completions", "prompts", "trainer_state", "environment"]
    )
    def test_names_that_trl_uses_are_left_out(self, processor, name):
        (row,) = reward_rows(self.make_batch(processor, [{name: "x.png"}]), 1)
        assert name not in row

    @pytest.mark.parametrize("name", ["key", "scales", "answer_frame"])
    def test_our_columns_win_over_a_records_fields(self, processor, name):
        batch = self.make_batch(processor, [{name: "x"}])
        assert reward_rows(batch, 1)[0][name] == batch[name][0]
