import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration

from grpo_stream.errors import ConfigError
from grpo_stream.train.models.tiny import (
    SPECIAL_TOKENS,
    make_tiny_policy,
    read_prompts,
    task_texts,
    tiny_config,
    train_tokenizer,
)
from tests.train.support import TASK_TEXTS

TOKENIZER = train_tokenizer(TASK_TEXTS)


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", [*(str(number) for number in range(112)), ", "])
def test_pieces_of_every_answer_are_one_token(text):
    assert len(ids_of(text)) == 1


def test_an_answer_is_six_tokens_with_its_end():
    assert len(ids_of("(12, 107)<|im_end|>")) == 6


@given(st.text(max_size=60))
@settings(max_examples=200)
def test_any_text_round_trips(text):
    assert TOKENIZER.decode(ids_of(text)) == text


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_are_one_token(token):
    assert ids_of(token) == [TOKENIZER.convert_tokens_to_ids(token)]


def test_the_chat_format_is_qwens():
    conversation = [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]},
    ]
    text = TOKENIZER.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nShort.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Where?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_tiny_qwen3_vl_says_how_its_positions_are_laid_out():
    """transformers knows it without; an engine that reads it there gave other log-probabilities."""
    assert tiny_config(TOKENIZER, "qwen3_vl").text_config.rope_parameters["mrope_interleaved"]
    plain = tiny_config(TOKENIZER, "qwen2_5_vl").text_config.rope_parameters
    assert "mrope_interleaved" not in plain


def test_the_policy_has_the_real_architecture(tiny_folder):
    assert AutoConfig.from_pretrained(tiny_folder).model_type == "qwen2_5_vl"
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    # The vocabulary of these texts is smaller than the full set's.
    vocabulary = 2 * 128 * (420 - model.config.get_text_config().vocab_size)
    assert num_weights + vocabulary == pytest.approx(956_000, rel=0.01)
    assert model.generation_config.eos_token_id == TOKENIZER.eos_token_id


def test_weights_depend_on_the_seed_alone(tmp_path, tiny_folder):
    def weights(folder):
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    same = weights(make_tiny_policy(tmp_path / "same", TASK_TEXTS))
    other = weights(make_tiny_policy(tmp_path / "other", TASK_TEXTS, seed=1))
    assert torch.equal(weights(tiny_folder), same)
    assert not torch.equal(same, other)


class TestTexts:
    def test_every_coordinate_occurs(self):
        texts = task_texts(["Click"], 112, snap=8)
        assert texts[0] == "Click"
        tokenizer = train_tokenizer(texts)
        lengths = {
            len(tokenizer(str(n), add_special_tokens=False)["input_ids"]) for n in range(112)
        }
        assert lengths == {1}
        assert len(texts) == 1 + 112 * 14

    def test_prompts_once_each_in_order(self, tmp_path):
        first, second = tmp_path / "a.json", tmp_path / "b.jsonl"
        first.write_text(json.dumps([{"prompt": "b"}, {"prompt": "a"}, {"prompt": 3}, "no"]))
        second.write_text('{"prompt": "a"}\n{"prompt": "c"}\n')
        assert read_prompts([first, second]) == ["b", "a", "c"]

    def test_no_prompts(self, tmp_path):
        path = tmp_path / "a.json"
        path.write_text('[{"text": "a"}]')
        with pytest.raises(ConfigError, match="no record with a prompt"):
            read_prompts([path])
        with pytest.raises(ConfigError, match="is no file"):
            read_prompts([tmp_path / "missing.json"])
