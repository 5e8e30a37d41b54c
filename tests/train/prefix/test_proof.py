"""What a model has to show before a way is taken for its groups."""

import logging
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from transformers.utils import logging as transformers_logging

from grpo_stream.errors import ConfigError
from grpo_stream.train.prefix.proof import proven_way
from grpo_stream.train.prefix.ways import FORKED, PLAIN, Packed, PrefixWay, ways_to_try
from tests.train.support import make_groups

PACKED: PrefixWay = Packed("two_part", 0)


class Wrong:
    """Gives the right numbers but for a little."""

    name = "wrong"

    def __init__(self, *, shift=0.0, scale=1.0, error=None):
        self.shift, self.scale, self.error = shift, scale, error

    def prepare(self, _model, groups, _autocast):
        return groups

    def score(self, *args, **kwargs):
        if self.error:
            raise self.error
        log_probs, _ = PLAIN.score(*args, **kwargs)
        # A factor of the gradient that the values do not show.
        return self.shift + log_probs.detach() + self.scale * (log_probs - log_probs.detach()), None


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def warnings(monkeypatch, caplog):
    monkeypatch.setattr(transformers_logging.get_logger("grpo_stream.train"), "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


def test_the_first_that_proves_itself_is_taken(model, processor, accelerator, warnings):
    groups = make_groups(processor, ((56, 56), (112, 84)), 4)
    assert proven_way([PACKED, FORKED, PLAIN], model, groups, accelerator) is PACKED
    assert proven_way([FORKED, PLAIN], model, groups, accelerator) is FORKED
    assert not warnings.messages


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Wrong(shift=0.01), "not wrong, log-probabilities differ from those of plain rows by 0.01"),
        (Wrong(scale=1.1), "the gradient by 0.1 of its length (allowed 0.001; noise"),
        (Wrong(shift=torch.nan), "log-probabilities differ from those of plain rows by nan"),
        (Wrong(error=ValueError("no cache")), "it cannot be computed: ValueError: no cache"),
    ],
)
def test_what_differs_is_not_taken(model, processor, accelerator, warnings, wrong, words):
    groups = make_groups(processor)
    assert proven_way([wrong, FORKED, PLAIN], model, groups, accelerator) is FORKED
    assert any("groups are forked" in line and words in line for line in warnings.messages)
    with pytest.raises(ConfigError, match="use 'auto'"):
        proven_way([wrong], model, groups, accelerator)


@pytest.mark.parametrize("way", [PACKED, Wrong(error=ValueError("no cache"))])
def test_no_weight_is_left_in_use(model, processor, accelerator, way):
    """As DeepSpeed counts it under ZeRO-3: a sync with an engine would fail on one that is."""
    weights = list(model.parameters())
    for weight in weights:
        weight.ds_active_sub_modules = {7}
    proven_way([way, PLAIN], model, make_groups(processor), accelerator)
    assert not any(weight.ds_active_sub_modules for weight in weights)


def test_the_run_is_left_as_it_was(model, processor, accelerator):
    model.train().activation_checkpointing_enable()
    modules = {name: module.training for name, module in model.named_modules()}
    random = torch.get_rng_state()
    proven_way([FORKED, PLAIN], model, make_groups(processor), accelerator)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name: module.training for name, module in model.named_modules()} == modules


def test_the_worst_rank_decides_for_all(model, processor, accelerator, monkeypatch):
    def with_another(figures):
        return torch.cat([figures, torch.full_like(figures, 0.0), worse])

    monkeypatch.setattr(accelerator, "gather", with_another)
    groups = make_groups(processor)
    for distance, noise, expected in ((0.0, 0.0, FORKED), (0.1, 0.0, PLAIN), (0.1, 0.05, FORKED)):
        worse = torch.tensor([[distance, 0.0, noise, 0.0]])
        assert proven_way([FORKED, PLAIN], model, groups, accelerator) is expected


def test_a_frozen_model_has_no_gradient_to_compare(model, processor, accelerator):
    model.requires_grad_(requires_grad=False)
    assert proven_way([FORKED, PLAIN], model, make_groups(processor), accelerator) is FORKED


def test_ways_by_setting(model):
    def names(wanted, config=model.config):
        ways, _ = ways_to_try(
            config, wanted, attention=None, packed_attention="two_part", pad_token_id=0
        )
        return [way.name for way in ways]

    assert names("auto") == ["packed", "forked", "plain"]
    assert names("on") == ["packed", "forked"]
    assert names("forked") == ["forked"]
    assert names("off") == ["plain"]


def test_places_that_do_not_match_the_images(model, processor, accelerator):
    (groups,) = make_groups(processor).each()
    (ids,), (types,) = groups.prompt_ids, groups.mm_token_type_ids
    kept = torch.arange(len(ids)) != int((ids == model.config.image_token_id).nonzero()[0])
    wrong = replace(groups, prompt_ids=[ids[kept]], mm_token_type_ids=[types[kept]])
    with pytest.raises(ConfigError, match=r"cannot compute a prompt as its processor encodes it"):
        proven_way([FORKED, PLAIN], model, wrong, accelerator)


def test_a_prompt_of_few_words(model, processor, accelerator):
    (groups,) = make_groups(processor).each()
    short = replace(groups, prompt_ids=[groups.prompt_ids[0][-3:]],
                    mm_token_type_ids=[groups.mm_token_type_ids[0][-3:]], media=[{}])  # fmt: skip
    assert proven_way([FORKED, PLAIN], model, short, accelerator) is FORKED
