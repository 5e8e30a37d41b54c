"""Compiled tokens are eager ones; what cannot be compiled goes on with eager operations."""

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

from grpo_stream.train.prefix.sampling import decode_step, decoder, group_cache
from grpo_stream.train.prefix.sampling.decoder import Decoder
from grpo_stream.train.prefix.sampling.generation import generate_groups
from grpo_stream.train.prefix.sampling.sampling_difference import recorded
from tests.train.prefix.sampling.test_generation import MIXED, generation_config
from tests.train.support import make_groups

SAMPLED = {"do_sample": True, "top_k": 0}


def sample(model, groups, config, mode="eager", backend="eager"):
    """With one seed; the decoder comes back, too."""
    chosen = Decoder(mode, backend)
    torch.manual_seed(0)
    return generate_groups(model, groups, config, config.pad_token_id, chosen), chosen


@pytest.fixture(autouse=True)
def _no_graphs_of_others():
    torch._dynamo.reset()


def check_equal(model, processor, backend, sampling):
    groups = make_groups(processor, MIXED, 3)
    config = generation_config(processor, **sampling)
    expected, _ = sample(model, groups, config)
    found, chosen = sample(model, groups, config, "compiled", backend)
    assert chosen.is_compiled, chosen.fallback
    assert torch.equal(found, expected)
    assert len({tuple(row) for row in found.tolist()}) > 1


def test_the_graph_samples_eager_tokens(model, processor):
    check_equal(model, processor, "eager", SAMPLED)


@pytest.mark.slow(reason="torch.compile makes kernels")
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "LoRA", "autocast"])
def test_kernels_sample_eager_tokens(model, processor, kind, sampling):
    if kind == "bfloat16":
        model = model.bfloat16()
    if kind == "LoRA":
        lora = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
        model = get_peft_model(model, lora).eval()
    if kind == "autocast":
        accelerator = Accelerator(mixed_precision="bf16", cpu=True)
        model = accelerator.unwrap_model(accelerator.prepare_model(model, evaluation_mode=True))
    check_equal(model, processor, "inductor", sampling)


def test_lengths_share_a_graph_and_rooms_grow(model, processor, monkeypatch):
    monkeypatch.setattr(group_cache, "_FIRST_ROOM", 2)
    counters = torch._dynamo.utils.counters
    counters.clear()
    config = generation_config(processor, **SAMPLED, min_new_tokens=8)
    chosen = Decoder("compiled", "eager")
    for sizes in (MIXED[:2], MIXED[2:], ((84, 84), (140, 140))):
        groups = make_groups(processor, sizes, 2)
        expected, _ = sample(model, groups, config)
        torch.manual_seed(0)
        found = generate_groups(model, groups, config, config.pad_token_id, chosen)
        assert torch.equal(found, expected)
    assert chosen.is_compiled
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def breaking(*_):
    torch._dynamo.graph_break()


def wrong(model, *inputs):
    logits = model_logits(model, *inputs)
    return logits + torch.compiler.is_compiling()


model_logits = decoder._logits


@pytest.mark.parametrize(
    ("function", "reason"), [(breaking, "Unsupported: "), (wrong, "logits differ from eager ones")]
)
def test_what_fails_goes_on_with_eager_operations(model, processor, monkeypatch, function, reason):
    groups = make_groups(processor, MIXED, 3)
    config = generation_config(processor, **SAMPLED)
    expected, _ = sample(model, groups, config)
    monkeypatch.setattr(decoder, "_logits", function)
    chosen = Decoder("compiled", "eager")
    if function is breaking:  # the eager call must work
        monkeypatch.setattr(decoder, "_logits", model_logits)
    torch.manual_seed(0)
    found = generate_groups(model, groups, config, config.pad_token_id, chosen)
    assert torch.equal(found, expected)
    assert not chosen.is_compiled
    assert str(chosen.fallback).startswith(reason)


def test_ends_that_are_seen_later_change_no_token(model, processor, monkeypatch):
    """As on a GPU, which is not waited for."""
    groups = make_groups(processor, MIXED, 3)
    ends = [token for token in range(len(processor.tokenizer)) if token % 5]
    config = generation_config(processor, **SAMPLED, eos_token_id=ends)
    with recorded(model, 1.0) as at_once:
        expected, _ = sample(model, groups, config)
    monkeypatch.setattr(decode_step, "_TOKENS_BEHIND", {"cpu": 2})
    with recorded(model, 1.0) as later:
        found, _ = sample(model, groups, config)
    assert torch.equal(later.read(found), at_once.read(expected))
    assert expected.size(1) < config.max_new_tokens
    assert torch.equal(found, expected)
