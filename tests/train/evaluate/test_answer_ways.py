import pytest

from grpo_stream.stream.ordered_reader import OrderedReader
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from grpo_stream.train.batches.collate import PromptCollator
from grpo_stream.train.evaluate.answer_prompts import answer_share, evaluate
from grpo_stream.train.evaluate.answer_ways import Answerer, AnswerWay
from grpo_stream.train.evaluate.policy_texts import PolicyTexts
from tests.shards.support import write_set
from tests.stream.remote_support import RemoteStore
from tests.train.support import MIXED_SIZES, make_collator, make_mixed_sample, write_mixed_set

WAYS = [AnswerWay(zoom=2.0), AnswerWay(num_samples=4, temperature=0.9, seed=3)]


@pytest.fixture(scope="module")
def source(shapes):
    return ShardSource(str(shapes.shards))


@pytest.fixture
def policy(model, processor, monkeypatch):
    """A policy whose answers are places, by what it samples."""

    def decode(ids, **_):
        return [f"({sum(map(int, row)) % 56}, {int(row[0]) * 7 % 56})" for row in ids]

    monkeypatch.setattr(processor.tokenizer, "batch_decode", decode)
    model.eval()
    return model


def answers_of(policy, processor, source, way, world=None, **changes):
    collator = make_collator(processor, **changes)
    reader = OrderedReader(source, collator.rule, 3, world)
    answer = Answerer(PolicyTexts(policy, collator, 3), way)
    return answer_share(reader, answer, title=None)


@pytest.mark.parametrize("way", WAYS, ids=["zoom", "vote"])
def test_any_number_of_ranks_gives_the_same_answers(policy, processor, source, way):
    alone = answers_of(policy, processor, source, way)
    for world_size in (2, 3):
        shares = [
            answers_of(policy, processor, source, way, World(rank, world_size))
            for rank in range(world_size)
        ]
        together = {n: a for s in shares for n, a in zip(s.ordinals, s.answers, strict=True)}
        assert [together[n] for n in sorted(together)] == alone.answers


@pytest.mark.parametrize("way", WAYS, ids=["zoom", "vote"])
def test_sets_far_away_are_answered_alike(policy, processor, source, shapes, way):
    far = RemoteStore(shapes.shards)
    found = answers_of(policy, processor, ShardSource(far), way)
    assert found.answers == answers_of(policy, processor, source, way).answers
    num_bytes = sum(shard.num_bytes for shard in source.manifest.shards)
    asked = {(name, offset, size) for name, offset, size in far.ranges}
    assert sum(size for _, _, size in far.ranges) <= num_bytes  # a second look fetches nothing
    assert len(asked) == len(far.ranges)


def test_a_closer_look_is_asked_around_the_first_answer(policy, processor, source):
    first = evaluate(
        policy, make_collator(processor), source, batch_size=3, max_completion_length=3
    ).answers
    second = answers_of(policy, processor, source, AnswerWay(zoom=2.0)).answers
    assert len({answer.point for answer in first}) > 3
    for before, after in zip(first, second, strict=True):
        assert after.first_look is not None
        assert after.first_look["text"] == before.text
        assert after.first_look["point"] == before.point
        assert after.point is not None
        assert before.point is not None
        x1, y1, x2, y2 = after.first_look["region"]
        assert (x2 - x1, y2 - y1) == (112, 112)  # all of a small image
        assert x1 <= before.point[0] <= x2
        assert after.key == before.key


def test_of_several_images_the_look_is_at_the_one_of_the_place(
    policy, processor, tmp_path, monkeypatch
):
    shown = []
    seen = PromptCollator.__call__

    def spied(collator, samples):
        shown.append([sample.original_sizes for sample in samples])
        return seen(collator, samples)

    monkeypatch.setattr(PromptCollator, "__call__", spied)
    mixed = ShardSource(str(write_mixed_set(tmp_path / "mixed", 4)))
    found = answers_of(policy, processor, mixed, AnswerWay(zoom=2.0)).answers
    assert [answer.num_images for answer in found] == [1, 0, 2, 3]
    for answer in found:
        assert (answer.first_look is None) == (answer.num_images == 0)
    crops = {len(sizes): sizes for batch in shown[1::2] for sizes in batch}
    assert crops[2] == ((56, 56), (84, 112))  # of MIXED_SIZES the last, by its least side
    assert crops[3] == ((84, 84), (56, 112), (112, 56))


def test_several_images_without_a_place_get_no_closer_look(
    policy, processor, tmp_path, monkeypatch
):
    stored = make_mixed_sample("000000", MIXED_SIZES[2])
    absent = {"solution": [], "solution_images": [], "solution_wanted": "none"}
    write_set(tmp_path, [stored._replace(meta={**stored.meta, **absent})])
    (answer,) = answers_of(
        policy, processor, ShardSource(str(tmp_path)), AnswerWay(zoom=2.0)
    ).answers
    assert answer.num_images == 2
    assert answer.wanted == "none"
    assert answer.point is not None
    assert answer.first_look is None


def test_what_gives_no_place_gets_no_closer_look(model, processor, source, monkeypatch):
    texts = ["nowhere", "not found", "[-1, -1]"]
    monkeypatch.setattr(processor.tokenizer, "batch_decode", lambda ids, **_: texts[: len(ids)])
    found = answers_of(model.eval(), processor, source, AnswerWay(zoom=2.0)).answers
    assert all(answer.first_look is None for answer in found)


def test_a_second_look_that_gives_no_place_leaves_the_first(model, processor, source, monkeypatch):
    calls = iter(range(100))

    def decode(ids, **_):
        return ["(20, 20)" if next(calls) % 2 == 0 else "not found"] * len(ids)

    monkeypatch.setattr(processor.tokenizer, "batch_decode", lambda ids, **_: decode(ids))
    found = answers_of(model.eval(), processor, source, AnswerWay(zoom=2.0)).answers
    assert {answer.text for answer in found} == {"(20, 20)"}
    assert all(answer.first_look is not None for answer in found)


def test_sampled_answers_differ_by_seed_and_the_winner_is_one_of_them(policy, processor, source):
    way = AnswerWay(num_samples=4, temperature=1.5, seed=3)
    found = answers_of(policy, processor, source, way).answers
    other = answers_of(policy, processor, source, AnswerWay(num_samples=4, seed=4)).answers
    assert [a.sampled for a in found] != [a.sampled for a in other]
    for answer in found:
        assert len(answer.sampled) == 4
        assert answer.text in {one["text"] for one in answer.sampled}
    assert len({one["text"] for answer in found for one in answer.sampled}) > 5
