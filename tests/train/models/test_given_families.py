"""Families whose image processors need torchvision: from given pixel tensors.

Configurations are small, weights random, architectures real. trl's own trainer runs the processor
itself, so a step of it cannot be compared without torchvision.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from trl.trainer.utils import add_fused_lm_head

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.prefix.sampling.decoder import Decoder
from grpo_stream.train.prefix.ways import FORKED, PLAIN
from tests.train.models.test_families import rows_alone, vector
from tests.train.prefix.test_packing import LENGTHS, gradients, make_completions

pytestmark = pytest.mark.slow(reason="models of five families, computed in three ways")

IMAGE, BEGIN, END = 500, 501, 502
TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 511,
    "pad_token_id": 0,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "patch_size": 4,
}
HYBRID: dict[str, Any] = {
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1],
                        "partial_rotary_factor": 0.5},
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
SLIDING = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
CONFIGS: dict[str, tuple[dict[str, Any], ...]] = {
    "mistral3": (
        {"model_type": "mistral"},
        {"model_type": "pixtral", "image_size": 32, "head_dim": 16},
        {"image_token_index": IMAGE, "spatial_merge_size": 2},
    ),
    "gemma4": (
        {"layer_types": SLIDING, "sliding_window": 8, "hidden_size_per_layer_input": 16,
         "vocab_size_per_layer_input": 512, "global_head_dim": 16, "num_kv_shared_layers": 0,
         "use_bidirectional_attention": "vision"},
        {"head_dim": 16, "pooling_kernel_size": 2, "position_embedding_size": 16},
        {"image_token_id": IMAGE, "boi_token_id": BEGIN, "eoi_token_id": END, "audio_config": None,
         "video_token_id": 503, "audio_token_id": 504},
    ),
    "lfm2_vl": (
        {"model_type": "lfm2", "layer_types": ["conv", "full_attention", "conv", "conv"],
         "conv_L_cache": 3, "block_ff_dim": 64, "block_auto_adjust_ff_dim": False},
        {"model_type": "siglip2_vision_model", "num_patches": 64, "vision_use_head": False},
        {"image_token_id": IMAGE, "projector_hidden_size": 64},
    ),
    "kimi_k25": (
        {"model_type": "deepseek_v3", "num_key_value_heads": 4, "q_lora_rank": 32,
         "kv_lora_rank": 16, "qk_rope_head_dim": 8, "head_dim": 8, "qk_nope_head_dim": 16,
         "v_head_dim": 16,
         "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
         "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_shared_experts": 1},
        {"pos_emb_height": 8, "pos_emb_width": 8},
        {"image_token_id": IMAGE, "video_token_id": 503, "projection_hidden_size": 32},
    ),
    "minicpmv4_7": (
        {"model_type": "qwen3_5_text", **HYBRID},
        {"image_size": 32, "insert_layer_id": 0},
        {"image_token_id": IMAGE, "video_token_id": 503, "image_start_id": BEGIN,
         "image_end_id": END, "slice_start_id": 505, "slice_end_id": 506, "newline_id": 507,
         "insert_layer_id": 0, "image_size": 32},
    ),
}  # fmt: skip
NUM_TOKENS = {"mistral3": 16, "gemma4": 16, "lfm2_vl": 16, "kimi_k25": 16, "minicpmv4_7": 4}
"""Of an image of 8x8 patches of 4x4 pixels."""


def media_of(family, pixels):
    """What the family's processor makes of an image of 32x32 pixels, shape (1, 3, 32, 32)."""
    patches = pixels.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(64, 3, 4, 4)
    if family == "mistral3":
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[32, 32]])}
    if family == "kimi_k25":
        return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 8, 8]])}
    if family == "minicpmv4_7":
        joined = patches.permute(1, 2, 0, 3).reshape(1, 3, 4, 256)
        return {"pixel_values": joined, "target_sizes": torch.tensor([[8, 8]])}
    flat = patches.permute(0, 2, 3, 1).reshape(1, 64, 48)
    if family == "lfm2_vl":
        shapes = {"spatial_shapes": torch.tensor([[8, 8]])}
        return {"pixel_values": flat, "pixel_attention_mask": torch.ones(1, 64).long(), **shapes}
    places = torch.stack([torch.arange(64) % 8, torch.arange(64) // 8], dim=1)[None]
    return {"pixel_values": flat, "image_position_ids": places}


@pytest.fixture(scope="module", params=CONFIGS)
def family(request):
    return request.param


def given_config(family):
    text, tower, whole = CONFIGS[family]
    parts = {"text_config": TEXT | text, "vision_config": TOWER | tower}
    return AutoConfig.for_model(family, **parts, **whole, tie_word_embeddings=False)


@pytest.fixture
def model(family):
    config = given_config(family)
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():  # wide, so that image and context are felt
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.06)
    add_fused_lm_head(made, outputs=("log_probs", "entropy"))
    return made.eval()


@pytest.fixture
def groups(family):
    generator = torch.Generator().manual_seed(1)
    prompts, types, media = [], [], []
    for length in (9, 14):
        words = torch.randint(20, 400, (length,), generator=generator)
        image = torch.tensor([BEGIN, *[IMAGE] * NUM_TOKENS[family], END])
        prompts.append(torch.cat([words[:3], image, words[3:]]))
        types.append((prompts[-1] == IMAGE).long())
        media.append(media_of(family, torch.rand(1, 3, 32, 32, generator=generator)))
    has_types = family in ("gemma4", "minicpmv4_7")
    name = "mm_token_type_ids" if has_types else None
    return PromptGroups(prompts, types, media, [4, 4], types_name=name)


def test_answers_behind_a_forked_prompt(model, groups):
    """Log-probabilities, entropies and gradients are those of each completion alone."""
    ids, mask = make_completions(groups, list(LENGTHS))
    expected = rows_alone(model, groups, ids, mask)
    expected_gradients = gradients(model, expected[0])
    total = vector(expected_gradients).norm()
    others = replace(groups, media=[{**own, "pixel_values": 1 - own["pixel_values"]}
                                    for own in groups.media])  # fmt: skip
    assert (rows_alone(model, others, ids, mask)[0] - expected[0]).abs().max() > 1e-3
    for way, is_checkpointed in ((PLAIN, False), (FORKED, False), (FORKED, True)):
        model.train()
        if is_checkpointed:
            model.activation_checkpointing_enable()
        found = way.score(model, groups, ids, mask, compute_entropy=True)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        found_gradients = gradients(model, found[0])
        assert (vector(found_gradients) - vector(expected_gradients)).norm() < 3e-5 * total


def test_greedy_tokens(model, groups):
    config = model.generation_config
    config.update(max_new_tokens=6, do_sample=False, eos_token_id=511, pad_token_id=0)
    plain, forked = (way.sample(model, groups, config, 0) for way in (PLAIN, FORKED))
    assert torch.equal(plain, forked)
    torch._dynamo.reset()
    graph = Decoder("compiled", "eager")
    assert torch.equal(FORKED.sample(model, groups, config, 0, graph), plain)
    assert graph.is_compiled, graph.fallback
