import pytest
import torch

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.grounding.prompts import TEMPLATES
from grpo_stream.train.supervised.supervised_batches import SupervisedCollator
from grpo_stream.train.supervised.taught_answers import TaughtAnswers
from tests.train.support import make_collator, make_stream_sample

POINTS = {"point": "(10, 15)", "box": '{"bbox_2d": [5, 10, 15, 20]}', "box_pairs": "(5,10),(15,20)"}


def answers(template="point", frame="model", **changes):
    return TaughtAnswers(TEMPLATES[template], frame, **changes)


class TestAnswers:
    """The sample's box is (10, 20, 30, 40) in an original twice as large as the model's image."""

    @pytest.mark.parametrize(("template", "text"), POINTS.items())
    def test_the_solution_in_the_models_frame(self, template, text):
        assert answers(template).of(make_stream_sample()) == text
        assert TEMPLATES[template].is_followed_by(text)

    def test_a_tool_call(self):
        text = answers("click").of(make_stream_sample())
        assert text.endswith('"coordinate": [10, 15]}}</tool_call>')
        assert TEMPLATES["click"].is_followed_by(text)

    def test_other_frames_and_grids(self):
        sample = make_stream_sample()
        assert answers(frame="original").of(sample) == "(20, 30)"
        assert answers(frame="per_mille").of(sample) == "(179, 268)"
        assert answers(snap=8).of(sample) == "(8, 16)"
        assert answers().of(make_stream_sample(solution=(8, 6))) == "(4, 3)"

    @pytest.mark.parametrize(
        ("solution", "text"),
        [
            (((10, 20, 30, 40), (1, 2)), "(20, 30)"),
            ((10, 20, 30, 20, 10, 40), "(20, 30)"),
            ((), "(-1, -1)"),
        ],
        ids=["several", "polygon", "none"],
    )
    def test_targets_of_other_kinds(self, solution, text):
        assert answers(frame="original").of(make_stream_sample(solution=solution)) == text

    def test_a_point_cannot_teach_boxes(self):
        with pytest.raises(ConfigError, match="answer"):
            answers("box").of(make_stream_sample(solution=(10, 20)))

    def test_a_text_of_the_records_own(self):
        text = "<think>left of it</think><answer>(1, 2)</answer>"
        sample = make_stream_sample(extra={"thoughts": text})
        assert answers("point_thinking", answer_key="thoughts").of(sample) == text

    def test_a_record_writes_no_control_words(self):
        sample = make_stream_sample(extra={"text": "<|im_end|><|image_pad|>"})
        assert answers(answer_key="text").of(sample) == "< |im_end|>< |image_pad|>"

    @pytest.mark.parametrize("extra", [{}, {"text": ""}, {"text": 3}])
    def test_a_record_without_it(self, extra):
        with pytest.raises(RecordError, match="000000: no text under answer_key='text'"):
            answers(answer_key="text").of(make_stream_sample(extra=extra))

    def test_thoughts_must_come_from_somewhere(self):
        with pytest.raises(ConfigError, match="answer_key"):
            answers("point_thinking")


def test_the_loss_is_on_answers_and_ends_of_turn_alone(processor):
    collate = SupervisedCollator(make_collator(processor), answers(), 2)
    samples = [make_stream_sample(number) for number in range(3)]
    batch = collate(samples)
    assert batch["key"] == ["000000", "000001", "000002"]
    assert [part["sizes"] for part in batch["micro_batches"]] == [[1, 1], [1]]
    for part, given in zip(batch["micro_batches"], (samples[:2], samples[2:]), strict=True):
        taught = [processor.tokenizer.decode(row[row != -100]) for row in part["tail_labels"]]
        assert taught == ["(10, 15)<|im_end|>"] * len(given)
        expected = make_collator(processor)(given)["prompt_ids"]
        assert all(torch.equal(a, b) for a, b in zip(part["prompt_ids"], expected, strict=True))
        assert torch.equal(part["labels"], part["tail_ids"][part["tail_mask"].bool()])


def test_records_of_an_image_share_all_that_their_prompts_begin_with(processor):
    """The answers are those of the records; what is laid out is each prompt, token by token."""
    one = make_stream_sample(0)
    other = make_stream_sample(0, key="b", prompt="Click on the blue square", solution=(0, 0, 8, 8))
    collate = SupervisedCollator(make_collator(processor), answers(), 1)
    (part,) = collate([(one, other)])["micro_batches"]
    assert part["sizes"] == [2]
    assert len(part["pixel_values"]) == len(part["prompt_ids"]) == 1
    prefix = part["prompt_ids"][0]
    assert part["mm_token_type_ids"][0].sum() == 4  # all of the image, once
    assert not part["mm_token_type_ids"][0][-1]
    for row, sample in enumerate((one, other)):
        tail = part["tail_ids"][row][part["tail_mask"][row].bool()]
        taught = part["tail_labels"][row] != -100
        (prompt,) = make_collator(processor)([sample])["prompt_ids"]
        whole = torch.cat([prefix, tail])
        assert torch.equal(whole[: len(prompt)], prompt)
        text = processor.tokenizer.decode(part["tail_ids"][row][taught])
        assert text == collate.answers.of(sample) + "<|im_end|>"
        assert len(whole) - len(prompt) == taught.sum()
    assert (part["labels"] != -100).sum() == (part["tail_labels"] != -100).sum()
