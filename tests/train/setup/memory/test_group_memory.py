"""What is counted without values against the tensors that real models keep."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText

from grpo_stream.errors import ConfigError
from grpo_stream.families import FAMILIES, PREFIX_LMS
from grpo_stream.train.models.tiny import TINY_FAMILIES, tiny_config, train_tokenizer
from grpo_stream.train.prefix.forked_cache import new_cache, repeated
from grpo_stream.train.setup.memory import group_memory as module
from grpo_stream.train.setup.memory.group_memory import Batch, group_memory
from grpo_stream.train.setup.memory.model_sizes import MetaModel
from tests.train.models.test_given_families import CONFIGS, given_config
from tests.train.setup.small_configs import MODEL_TYPES, small_config

BATCH = Batch(prompt_tokens=30, image_tokens=16, completion_tokens=6, num_generations=3)
ROWS, LENGTH = 3, 36


@pytest.fixture
def plain(monkeypatch):
    """Every family in trl's layout, those that are packed today among them."""
    monkeypatch.setattr(module, "expected_layout", lambda _: "plain")


def kept_by(modules, run):
    """Bytes that autograd keeps while each of the modules runs, weights apart."""
    weights = {p.untyped_storage().data_ptr() for one in modules for p in one.parameters()}
    kept: list[dict[int, torch.UntypedStorage]] = [{} for _ in modules]
    now: list[int] = []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if now and storage.data_ptr() not in weights:
            kept[now[-1]][storage.data_ptr()] = storage
        return tensor

    for number, one in enumerate(modules):
        one.register_forward_pre_hook(lambda *_, number=number: now.append(number))
        one.register_forward_hook(lambda *_: now.clear())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return [sum(storage.nbytes() for storage in found.values()) for found in kept]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("family", MODEL_TYPES)
def test_layers_and_caches_of_any_family(family):
    config = small_config(family)
    # The kernels of experts are for bf16 alone.
    dtype = torch.bfloat16 if family == "qwen3_vl_moe" else torch.float32
    real = AutoModelForImageTextToText.from_config(config, dtype=dtype).train()
    found = group_memory(MetaModel(config), BATCH, dtype.itemsize)
    decoder = real.get_decoder()
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[0, :3] = 0
    given = {"input_ids": torch.full((ROWS, LENGTH), 5), "attention_mask": mask}
    given["position_ids"] = torch.arange(LENGTH).expand(ROWS, -1)
    kept = kept_by(list(decoder.layers), lambda: decoder(**given, use_cache=False))
    # Rotary angles and mask are shared by all layers, and are in the real figures of each.
    assert found.layers == pytest.approx(kept, rel=0.03)
    assert found.layout == "plain"
    assert set(found.layer_inputs) == {dtype.itemsize * ROWS * LENGTH * 64}
    with torch.no_grad():
        cache = decoder(**given, use_cache=True).past_key_values
    states = [value for layer in cache.layers for value in vars(layer).values()]
    states += [value for one in states if isinstance(one, dict) for value in one.values()]
    tensors = [one for one in states if torch.is_tensor(one)]
    # Sliding windows hold a counter besides.
    assert found.cache == pytest.approx(sum(tensor.nbytes for tensor in tensors), rel=0.01)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5", "gemma3"])
def test_a_forked_group_has_its_prompt_once(family, monkeypatch):
    config = small_config(family)
    monkeypatch.setattr(module, "expected_layout", lambda _: "forked")
    found = group_memory.__wrapped__(MetaModel(config), BATCH, 4)
    decoder = AutoModelForImageTextToText.from_config(config).train().get_decoder()
    past = new_cache(config)

    def run():
        prompt = {"input_ids": torch.full((1, 29), 5), "past_key_values": past}
        decoder(position_ids=torch.arange(29)[None], **prompt)
        completions = {"input_ids": torch.full((3, 6), 5), "past_key_values": repeated(past, 3)}
        decoder(position_ids=torch.arange(29, 35).expand(3, -1), **completions)

    kept = kept_by(list(decoder.layers), run)
    halves = zip(found.layers[: len(kept)], found.layers[len(kept) :], strict=True)
    assert [sum(own) for own in halves] == pytest.approx(kept, rel=0.05)
    prompts, completions = found.layer_inputs[: len(kept)], found.layer_inputs[len(kept) :]
    assert set(completions) == {4 * 3 * 6 * 64}
    assert min(prompts) > 4 * 29 * 64


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_blocks_of_a_tower(family):
    config = small_config(family)
    tower = AutoModelForImageTextToText.from_config(config).train().get_encoder(modality="image")
    model = MetaModel(config)
    images = torch.zeros(ROWS, 3, 56, 56, requires_grad=True)
    kept = kept_by(list(tower.encoder.layers), lambda: tower(images))
    found = group_memory(model, BATCH, 4)
    extra = 17 / 16 if family == "llava" else 1  # CLIP's token for the class
    assert found.blocks == pytest.approx([size / extra for size in kept], rel=0.03)
    assert found.block_input == 4 * ROWS * 16 * 32
    three = group_memory(model, replace(BATCH, images_per_prompt=3), 4)
    assert three.blocks == tuple(3 * size for size in found.blocks)


@pytest.mark.slow(reason="a model of each of twenty families")
def test_every_family_is_counted():
    configs = {f: tiny_config(train_tokenizer(["a"], family=f), f) for f in TINY_FAMILIES}
    for family in CONFIGS:
        configs[family] = given_config(family)
    assert set(configs) >= set(FAMILIES)
    for family, config in configs.items():
        found = group_memory(MetaModel(config), BATCH, 2)
        row = FAMILIES.get(family)
        way = "forked" if row is None else "packed" if row.is_packed else "forked"
        assert found.layout == ("plain" if family in PREFIX_LMS else way)
        assert min(*found.layers, *found.layer_inputs, found.cache, found.prefill) > 0, family


def test_a_packed_group_has_its_prompt_once(monkeypatch):
    model = MetaModel(small_config("qwen2_5_vl"))
    packed = group_memory(model, BATCH, 4)
    monkeypatch.setattr(module, "expected_layout", lambda _: "plain")
    plain = group_memory.__wrapped__(model, BATCH, 4)
    assert (packed.layout, plain.layout) == ("packed", "plain")
    assert packed.layer_inputs[0] * ROWS * LENGTH == plain.layer_inputs[0] * (29 + 3 * 6)
    assert packed.cache * ROWS * LENGTH == plain.cache * (30 + 3 * 6)
    assert packed.prefill * ROWS == plain.prefill
    assert packed.blocks[0] * ROWS == plain.blocks[0]


def test_a_block_that_cannot_run_alone_is_estimated_by_its_width(monkeypatch):
    config = small_config("qwen2_5_vl")
    monkeypatch.setattr(module, "_block_bytes", lambda *_: 0)
    found = group_memory(MetaModel(config), BATCH, 4)
    a_token = found.layers[0] / (29 + 3 * 6)
    assert found.blocks[0] == pytest.approx(4 * 16 * a_token * 32 / 64, rel=0.01)


def test_layers_that_need_values_are_named():
    with pytest.raises(ConfigError, match="'qwen3_vl_moe': has layers that cannot be run without"):
        group_memory(MetaModel(small_config("qwen3_vl_moe")), BATCH, 4)
