import json
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
)

from grpo_stream.errors import ConfigError
from grpo_stream.train.models.policy import (
    Qwen2_5_VLForConditionalGenerationWithLogits,
    check_inputs,
    forward_keeping_logits,
    input_names,
    load_policy,
)
from grpo_stream.train.models.tiny import RECIPES, tiny_config, train_tokenizer
from grpo_stream.train.models.tiny_families import OWN_RECIPES, own_processor
from grpo_stream.train.prefix.backbone import accepted_media
from tests.train.support import TASK_TEXTS, make_collator, make_groups, make_stream_sample

LOGITS = torch.arange(2 * 7 * 3.0).reshape(2, 7, 3)
KEEP = {
    "all": (0, LOGITS),
    "last": (1, LOGITS[:, -1:]),
    "five": (5, LOGITS[:, -5:]),
    "as many as there are": (7, LOGITS),
    "more than there are": (9, LOGITS),
    "index": (torch.tensor([0, 2, 6]), LOGITS[:, [0, 2, 6]]),
}


def knows(input_ids, logits_to_keep=0):
    """As transformers does it."""
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    return SimpleNamespace(logits=LOGITS[:, kept])


def ignores(input_ids, logits_to_keep=0, **kwargs):
    return SimpleNamespace(logits=LOGITS)


def does_not_know(input_ids):
    return SimpleNamespace(logits=LOGITS)


def takes_anything(input_ids, **kwargs):
    assert not kwargs
    return SimpleNamespace(logits=LOGITS)


@pytest.mark.parametrize("forward", [knows, ignores, does_not_know, takes_anything])
@pytest.mark.parametrize(("keep", "expected"), KEEP.values(), ids=KEEP)
def test_logits_to_keep(forward, keep, expected):
    output = forward_keeping_logits(forward, input_ids=None, logits_to_keep=keep)
    assert torch.equal(output.logits, expected)


def test_output_without_logits():
    output = forward_keeping_logits(lambda **_: SimpleNamespace(logits=None), logits_to_keep=3)
    assert output.logits is None


@pytest.fixture(scope="module")
def pair(tiny_folder):
    """The same weights in the real class and in ours."""
    return tuple(
        architecture.from_pretrained(tiny_folder).eval()
        for architecture in (
            Qwen2_5_VLForConditionalGeneration,
            Qwen2_5_VLForConditionalGenerationWithLogits,
        )
    )


@pytest.fixture(scope="module")
def inputs(processor):
    groups = make_groups(processor)
    return {
        "input_ids": groups.prompt_ids[0][None],
        "mm_token_type_ids": groups.mm_token_type_ids[0][None],
        **groups.media[0],
    }


class TestWithLogits:
    def test_loads_every_weight(self, pair):
        weights = [model.state_dict() for model in pair]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    @pytest.mark.parametrize("keep", [0, 1, 5, torch.tensor([3, 7])])
    def test_gives_the_real_models_logits(self, pair, inputs, keep):
        real, ours = pair
        with torch.no_grad():
            expected = real(**inputs, logits_to_keep=keep).logits
            assert torch.equal(ours(**inputs, logits_to_keep=keep).logits, expected)

    def test_passes_everything_on(self, pair, inputs):
        real, ours = pair
        labels = inputs["input_ids"].clone()
        with torch.no_grad():
            expected, output = (
                model(**inputs, labels=labels, output_hidden_states=True, use_cache=True)
                for model in pair
            )
            assert torch.equal(output.loss, expected.loss)
            assert torch.equal(output.hidden_states[-1], expected.hidden_states[-1])
            assert output.past_key_values.get_seq_length() == labels.size(1)
            generated = [
                model.generate(**inputs, max_new_tokens=4, do_sample=False)
                for model in (real, ours)
            ]
        assert torch.equal(*generated)

    def test_is_saved_under_the_real_name(self, pair, tmp_path):
        pair[1].save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
        again = AutoModelForImageTextToText.from_pretrained(tmp_path)
        assert type(again) is Qwen2_5_VLForConditionalGeneration
        assert torch.equal(again.lm_head.weight, pair[0].lm_head.weight)
        embeddings = [model.get_input_embeddings().weight for model in (again, pair[0])]
        assert torch.equal(*embeddings)

    def test_other_ranks_leave_the_config_alone(self, pair, tmp_path):
        pair[1].save_pretrained(tmp_path, is_main_process=False)
        assert not (tmp_path / "config.json").exists()


class TestLoadPolicy:
    def test_takes_the_class_of_the_config(self, tiny_folder):
        assert type(load_policy(tiny_folder)) is Qwen2_5_VLForConditionalGeneration

    @pytest.mark.parametrize("architectures", [["Qwen2ForCausalLM"], ["NoSuchModel"], None])
    def test_refuses_what_takes_no_images(self, tmp_path, architectures):
        Qwen2Config(architectures=architectures).save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=r"no image-and-text model.*Qwen2\.5-VL") as info:
            load_policy(str(tmp_path))
        assert info.value.field == "model_name_or_path"

    @pytest.mark.parametrize("name", ["nowhere", "no/such/model/anywhere"])
    def test_refuses_what_is_not_there(self, tmp_path, name):
        with pytest.raises(ConfigError, match="model_name_or_path"):
            load_policy(tmp_path / name)

    def test_passes_options_on(self, tiny_folder):
        model = load_policy(tiny_folder, dtype=torch.bfloat16, attn_implementation="eager")
        assert model.dtype == torch.bfloat16
        assert model.config._attn_implementation == "eager"


class TestInputs:
    """A keyword that a model would take and ignore is refused."""

    @pytest.mark.parametrize("family", list(RECIPES))
    def test_every_family_takes_all(self, family):
        tokenizer = train_tokenizer(TASK_TEXTS)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(tiny_config(tokenizer, family))
        check_inputs(model, input_names(has_patches=True, is_packed=True))

    @pytest.mark.parametrize("family", list(OWN_RECIPES))
    def test_every_family_takes_what_its_own_processor_makes(self, family):
        tokenizer = train_tokenizer(TASK_TEXTS, family=family)
        processor = own_processor(family, tokenizer, tokenizer.chat_template)
        batch = make_collator(processor)([make_stream_sample(0)])
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(tiny_config(tokenizer, family))
        (media,), types = batch["media"], batch["types_name"]
        assert accepted_media(model, media).keys() == media.keys() - {"num_crops"}
        check_inputs(model, filter(None, [types]))
        with pytest.raises(ConfigError, match="ignore kinds_of_tokens"):
            check_inputs(model, ["kinds_of_tokens"])

    def test_as_before_transformers_5_18(self, tiny_folder, monkeypatch):
        model = load_policy(tiny_folder)
        for module in (model, model.model):
            monkeypatch.setattr(type(module), "forward", forward_before_5_18)
        check_inputs(model, ["pixel_values", "use_cache"])
        with pytest.raises(ConfigError, match=r"ignore mm_encoder_outputs in .*>=5\.18"):
            check_inputs(model, ["pixel_values", "mm_encoder_outputs"])


def forward_before_5_18(self, input_ids=None, pixel_values=None, **kwargs):
    raise NotImplementedError
