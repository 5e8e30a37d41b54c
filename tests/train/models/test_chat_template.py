"""Further variables of a model's chat template: read, and said where they have no effect."""

import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.train.models.chat_template import (
    chat_template_notes,
    chat_template_variables,
    known_variables,
)
from grpo_stream.train.models.processor import load_processor
from tests.train.support import make_collator, make_stream_sample

# As Qwen3.5's: without the variable its answer begins with open thoughts.
THINKING = (
    "{% if add_generation_prompt %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)


class TemplateOnly:
    def __init__(self, chat_template):
        self.chat_template = chat_template


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ("{}", {}),
        ('{"enable_thinking": false}', {"enable_thinking": False}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
    ],
)
def test_a_mapping_or_json(given, expected):
    assert chat_template_variables(given) == expected


@pytest.mark.parametrize("given", ["enable_thinking=false", "[1]", "5", "{", 7])
def test_anything_else_is_named(given):
    with pytest.raises(ConfigError, match=r"chat_template_kwargs.*enable_thinking.*false"):
        chat_template_variables(given)


def test_what_has_no_effect_is_said():
    knows, does_not = TemplateOnly(THINKING), TemplateOnly("{{ messages }}")
    assert known_variables(knows) >= {"enable_thinking"}
    assert chat_template_notes(knows, {"enable_thinking": False}) == []
    (note,) = chat_template_notes(does_not, {"enable_thinking": False})
    assert "knows no enable_thinking, which has no effect" in note
    assert chat_template_notes(does_not, {}) == []
    (note,) = chat_template_notes(knows, {})
    assert "chat_template_kwargs={enable_thinking: false} spares it" in note
    assert known_variables(TemplateOnly({"default": THINKING})) == known_variables(knows)
    assert known_variables(TemplateOnly(None)) == frozenset()


def test_the_variable_reaches_a_prompts_tokens(tiny_folder):
    processor = load_processor(tiny_folder)
    processor.chat_template += THINKING
    samples, tokenizer = [make_stream_sample()], processor.tokenizer
    texts = []
    for variables in ({}, {"enable_thinking": False}):
        batch = make_collator(processor, chat_template_kwargs=variables)(samples)
        texts.append(tokenizer.decode(batch["prompt_ids"][0]))
    assert texts[0].endswith("assistant\n<think>\n")
    assert texts[1].endswith("assistant\n<think>\n\n</think>\n\n")
