import json

import pytest
import torch

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.grounding.rewards import accuracy_reward_coord
from grpo_stream.stream.dataset import read_in_order
from grpo_stream.stream.records import RecordSource
from grpo_stream.stream.sources import ShardSource
from grpo_stream.train.evaluate import evaluate, score
from grpo_stream.train.groups import PromptGroups
from tests.train.support import CPU, make_collator, make_stream_sample

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
        (prediction,) = score([make_stream_sample()], [text], "model")
        assert prediction.point == point
        assert prediction.is_correct is is_correct
        assert (prediction.failure is None) == (point is not None)
        assert (prediction.text, prediction.key) == (text, "000000")
        assert prediction.solution == (10, 20, 30, 40)
        assert prediction.scales == Size(112, 112)

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
        assert [float(p.is_correct) for p in score(samples, texts, frame)] == rewards
        assert 0 < sum(filter(None, rewards)) < len(texts)

    def test_points_have_no_accuracy(self):
        with pytest.raises(ConfigError, match="accuracy needs boxes"):
            score([make_stream_sample(solution=(10, 20))], ["(10, 15)"], "model")


@pytest.fixture(scope="module")
def source(shapes):
    return ShardSource(str(shapes.shards))


class TestEvaluate:
    def test_every_sample_once_in_the_order_of_the_set(self, model, processor, source, shapes):
        collator = make_collator(processor)
        result = evaluate(model, collator, source, batch_size=5, max_completion_length=6)
        assert [p.key for p in result.predictions] == [f"{n:06d}" for n in range(13)]
        assert [p.prompt for p in result.predictions] == [r["prompt"] for r in shapes.records]
        again = evaluate(model, collator, source, batch_size=13, max_completion_length=6)
        assert again.predictions == result.predictions

    def test_answers_are_the_models(self, model, processor, source):
        collator = make_collator(processor)
        result = evaluate(model, collator, source, batch_size=4, max_completion_length=5)
        sample = next(iter(read_in_order(source, collator.rule, 1)))
        groups = PromptGroups.from_batch(collator(sample), 1, CPU)
        with torch.no_grad():
            ids = model.generate(
                input_ids=groups.prompt_ids[0][None],
                mm_token_type_ids=groups.mm_token_type_ids[0][None],
                pixel_values=groups.pixel_values,
                image_grid_thw=groups.image_grid_thw,
                do_sample=False,
                max_new_tokens=5,
            )[0, len(groups.prompt_ids[0]) :]
        text = processor.tokenizer.decode(ids, skip_special_tokens=True)
        assert result.predictions[0].text == text

    def test_a_models_own_repetition_penalty_is_not_taken(self, model, processor, source):
        collator = make_collator(processor)
        expected = evaluate(model, collator, source, batch_size=13, max_completion_length=6)
        model.generation_config.repetition_penalty = 50.0
        found = evaluate(model, collator, source, batch_size=13, max_completion_length=6)
        assert found.predictions == expected.predictions

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
        assert result.num_correct == 1
        assert result.accuracy == 1 / 13
        assert result.failures.total() == 3
        plain = json.loads(json.dumps(result.to_dict()))
        assert plain["num_samples"] == len(plain["predictions"]) == 13
        assert sum(plain["parse_failures"].values()) == 3
        assert plain["predictions"][0]["is_correct"] is True

    def test_raw_records(self, model, processor, source, shapes):
        records = RecordSource(shapes.records, shapes.images)
        from_records, from_shards = (
            evaluate(model, make_collator(processor), s, batch_size=13, max_completion_length=4)
            for s in (records, source)
        )
        assert [p.text for p in from_records.predictions] == [
            p.text for p in from_shards.predictions
        ]

    def test_a_sample_that_cannot_be_read_is_no_miss(self, model, processor, shapes):
        records = [*shapes.records[:2], shapes.records[2] | {"image": "missing.png"}]
        with pytest.raises(GrpoStreamError, match="image_not_found"):
            evaluate(
                model,
                make_collator(processor),
                RecordSource(records, shapes.images),
                batch_size=2,
                max_completion_length=2,
            )
