import json
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from grpo_stream.boxes import Size
from grpo_stream.errors import BadSamplesError, ConfigError, GrpoStreamError
from grpo_stream.grounding.evaluation.evaluation_metrics import evaluation_figures
from grpo_stream.grounding.rewards import accuracy_reward_coord
from grpo_stream.grounding.scores import ScoredAnswer
from grpo_stream.report.answer_cards import answer_card
from grpo_stream.stream.ordered_reader import OrderedReader, read_at
from grpo_stream.stream.record_source import RecordSource
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.evaluate.answer_prompts import answer_share, evaluate, score
from grpo_stream.train.evaluate.answer_ways import Answerer, AnswerWay
from grpo_stream.train.evaluate.policy_texts import PolicyTexts
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.models.tiny import make_tiny_policy
from tests.shards.support import write_set
from tests.train.support import (
    CPU,
    TASK_TEXTS,
    make_collator,
    make_stream_sample,
    write_mixed_set,
)

# The truth is [10, 20, 30, 40] in the original, which is twice as large as the model's image.
ANSWERS = [
    ("(10, 15)", (20, 30), True),
    ("(5, 10)", (10, 20), True),
    ("(15, 15)", (30, 30), False),
    ("(20, 30)", (40, 60), False),
    ('{"bbox_2d": [5, 10, 15, 20]}', (20, 30), True),
    ("nowhere", None, False),
    ("", None, False),
]


class TestScore:
    @pytest.mark.parametrize(("text", "point", "is_correct"), ANSWERS)
    def test_one_answer(self, text, point, is_correct):
        (answer,) = score([make_stream_sample()], [text], "model")
        assert answer.point == point
        assert answer.is_hit is is_correct
        assert (answer.failure is None) == (point is not None)
        assert (answer.text, answer.key) == (text, "000000")
        assert answer.solution == (10, 20, 30, 40)
        assert answer.scales == Size(112, 112)

    @pytest.mark.parametrize("frame", ["model", "original", "per_mille"])
    def test_agrees_with_the_reward(self, frame):
        texts = [f"({x}, {y})" for x in range(0, 300, 10) for y in (12, 30, 200)]
        samples = [make_stream_sample()] * len(texts)
        rewards = accuracy_reward_coord(
            texts,
            solution=[sample.solution for sample in samples],
            scales=[sample.scales for sample in samples],
            model_size=[sample.model_size for sample in samples],
            answer_frame=frame,
        )
        assert [float(bool(a.is_hit)) for a in score(samples, texts, frame)] == rewards
        assert 0 < sum(filter(None, rewards)) < len(texts)

    def test_samples_of_equal_pixels_are_of_one_image(self):
        samples = [make_stream_sample(number) for number in (0, 1, 0)]
        samples += [make_stream_sample(0, (28, 112)), make_stream_sample(0, (112, 28))]
        first, other, same, *shapes = score(samples, ["(1, 2)"] * 5, "model")
        assert first.image == same.image
        assert len({answer.image for answer in (first, other, *shapes)}) == 4

    def test_the_fields_that_are_asked_for_are_kept(self):
        sample = make_stream_sample(extra={"source": "web", "id": 7, "element": {"role": "link"}})
        (answer,) = score([sample], ["(1, 2)"], "model", fields=("source", "element.role", "none"))
        assert answer.fields == {"source": "web", "element.role": "link"}

    def test_points_have_no_accuracy(self):
        with pytest.raises(ConfigError, match="accuracy needs boxes"):
            score([make_stream_sample(solution=(10, 20))], ["(10, 15)"], "model")
        (answer,) = score([make_stream_sample(solution=(20, 31))], ["(10, 15)"], "model", 0.05)
        assert answer.is_hit


@pytest.fixture(scope="module")
def source(shapes):
    return ShardSource(str(shapes.shards))


class TestEvaluate:
    def test_every_sample_once_in_the_order_of_the_set(self, model, processor, source, shapes):
        collator = make_collator(processor)
        result = evaluate(model, collator, source, batch_size=5, max_completion_length=6)
        assert result.ordinals == list(range(13))
        assert [p.key for p in result.answers] == [f"{n:06d}" for n in range(13)]
        assert [p.prompt for p in result.answers] == [r["prompt"] for r in shapes.records]
        again = evaluate(model, collator, source, batch_size=13, max_completion_length=6)
        assert again.answers == result.answers

    def test_answers_are_the_models(self, model, processor, source):
        collator = make_collator(processor)
        result = evaluate(model, collator, source, batch_size=4, max_completion_length=5)
        sample = [StreamSample.from_sample(read_at(source, 0), collator.rule)]
        groups = PromptGroups.from_batch(collator(sample), 1, CPU)
        with torch.no_grad():
            ids = model.generate(
                input_ids=groups.prompt_ids[0][None],
                mm_token_type_ids=groups.mm_token_type_ids[0][None],
                **groups.media[0],
                do_sample=False,
                max_new_tokens=5,
            )[0, len(groups.prompt_ids[0]) :]
        text = processor.tokenizer.decode(ids, skip_special_tokens=True)
        assert result.answers[0].text == text

    def test_any_number_of_images(self, model, processor, tmp_path):
        mixed, collator = ShardSource(str(write_mixed_set(tmp_path, 8))), make_collator(processor)
        found = evaluate(model, collator, mixed, batch_size=3, max_completion_length=6).answers
        alone = evaluate(model, collator, mixed, batch_size=1, max_completion_length=6).answers
        assert found == alone
        assert [answer.num_images for answer in found] == [1, 0, 2, 3] * 2
        assert [answer.image_number for answer in found] == [0, 0, 1, 2] * 2
        assert [answer.scales for answer in found[:3]] == [(112, 84), (0, 0), (84, 140)]
        assert [answer.asks_place for answer in found[:3]] == [True, False, True]
        assert len({answer.image for answer in found}) == 8
        chosen: dict[str, Any] = {"asks_boxes": False, "num_resamples": 100}
        figures = evaluation_figures(found, [], **chosen)["figures"]
        assert figures["num_samples"] == 8
        assert figures["point_accuracy"]["num_samples"] == 6
        for answer in found:
            assert ScoredAnswer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer
            answer_card(answer.to_dict(), Image.new("RGB", (84, 140)))

    @pytest.mark.parametrize("family", ["gemma3", "internvl"])
    def test_families_with_tensors_of_their_own(self, family, source, tmp_path):
        """Their models refuse arguments of Qwen's, and tell images apart in other ways."""
        folder = make_tiny_policy(tmp_path, TASK_TEXTS, family=family)
        own = AutoModelForImageTextToText.from_pretrained(folder)
        collator = make_collator(load_processor(str(folder)), answer_frame="per_mille")
        found, alone = (
            evaluate(own, collator, source, batch_size=size, max_completion_length=6).answers
            for size in (5, 1)
        )
        assert found == alone
        sample = StreamSample.from_sample(read_at(source, 12), collator.rule)
        (conversation,) = collator([sample])["prompt"]
        own_words = collator.processor.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
        inputs = collator.processor(
            images=[sample.pixels], text=[own_words], add_special_tokens=False, return_tensors="pt"
        )
        inputs.pop("num_crops", None)  # no argument of the model
        ids = own.generate(**inputs, do_sample=False, max_new_tokens=6)
        (text,) = collator.processor.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert found[12].text == text

    def test_a_models_own_repetition_penalty_is_not_taken(self, model, processor, source):
        collator = make_collator(processor)
        expected = evaluate(model, collator, source, batch_size=13, max_completion_length=6)
        model.generation_config.repetition_penalty = 50.0
        found = evaluate(model, collator, source, batch_size=13, max_completion_length=6)
        assert found.answers == expected.answers

    def test_numbers(self, model, processor, source, monkeypatch):
        texts = ["(1000, 1000)"] * 3 + ["no"]
        calls = iter(range(100))

        def answers(ids, **_):
            # The right answer for the first prompt of the set only.
            box = source.read(0, 0).solution
            right = f"({(box[0] + box[2]) // 2}, {(box[1] + box[3]) // 2})"
            return [right if next(calls) == 0 else texts[i % 4] for i in range(len(ids))]

        monkeypatch.setattr(processor.tokenizer, "batch_decode", answers)
        result = evaluate(
            model, make_collator(processor), source, batch_size=4, max_completion_length=2
        )
        assert result.accuracy == 1 / 13
        assert result.failures == {"no_numbers": 3}
        assert [answer.is_hit for answer in result.answers] == [True] + 12 * [False]

    def test_raw_records(self, model, processor, source, shapes):
        records = RecordSource(shapes.records, shapes.images)
        from_records, from_shards = (
            evaluate(model, make_collator(processor), s, batch_size=13, max_completion_length=4)
            for s in (records, source)
        )
        assert [p.text for p in from_records.answers] == [p.text for p in from_shards.answers]

    def test_a_sample_that_cannot_be_read_is_no_miss(self, model, processor, shapes):
        missing = shapes.records[2] | {"image": "missing.png"}
        records = RecordSource([*shapes.records[:2], missing, missing], shapes.images)
        with pytest.raises(GrpoStreamError, match="image_not_found"):
            evaluate(
                model, make_collator(processor), records, batch_size=3, max_completion_length=2
            )
        collator = make_collator(processor)
        reader = OrderedReader(records, collator.rule, 3)
        answer = Answerer(PolicyTexts(model, collator, 2), AnswerWay())
        share = answer_share(reader, answer, max_bad_samples=2)
        assert share.ordinals == [0, 1]
        assert len(share.answers) == 2
        assert [where.partition(":")[0] for where in share.bad_samples] == ["record 2", "record 3"]
        with pytest.raises(BadSamplesError, match=r"2 samples.*max_bad_samples=1"):
            answer_share(reader, answer, max_bad_samples=1)

    def test_an_empty_set_is_refused(self, model, processor, tmp_path):
        write_set(tmp_path, [])
        empty = ShardSource(str(tmp_path))
        with pytest.raises(ConfigError, match="at least one sample"):
            evaluate(model, make_collator(processor), empty, batch_size=3, max_completion_length=2)
