"""Two ranks under ZeRO-3: who holds how much of a model while it is loaded, and in training."""

import json

import pytest
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from grpo_stream.train.setup.memory.memory_estimate import Zero, state_memory
from grpo_stream.train.setup.memory.model_sizes import MetaModel
from tests.multiprocess.ranks import NUM_RANKS, run_ranks

pytestmark = pytest.mark.multiprocess


def make_config(num_layers):
    text = {
        "num_hidden_layers": num_layers,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 4000,
        "layer_types": ["full_attention"] * num_layers,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [8, 12, 12],
            "rope_theta": 1e6,
        },
        "pad_token_id": 0,
    }
    vision = {"depth": 1, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4}
    vision["out_hidden_size"] = 512
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=3999)


@pytest.fixture(scope="module")
def config():
    return make_config(8)


@pytest.fixture(scope="module")
def seen(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    for name, one in (("model", config), ("small", make_config(1))):
        Qwen2_5_VLForConditionalGeneration(one).save_pretrained(folder / name)
    run_ranks(lambda _: ["tests.multiprocess.start_probe", folder], timeout=240)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(NUM_RANKS)]


def test_only_rank_0_reads_the_weights(config, seen):
    whole = 4 * MetaModel(config).num_weights
    assert seen[0]["file_bytes"] > 0.3 * whole  # of what one look in ten milliseconds sees
    assert seen[1]["file_bytes"] < 0.1 * whole


def test_states_are_those_of_the_estimate(config, seen):
    num_weights = MetaModel(config).num_weights
    expected = state_memory(num_weights, Zero(2, element_bytes=4))
    for one in seen:
        assert one["num_weights"] == pytest.approx(num_weights / 2, rel=1e-3)
        assert one["tensor_bytes"] == pytest.approx(expected.states, rel=0.05)
        assert expected.states == 20 * -(-num_weights // 2)
