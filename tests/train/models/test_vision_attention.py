"""The vision tower in few calls gives what transformers' own gives."""

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    modeling_flash_attention_utils,
)

from grpo_stream.errors import ConfigError
from grpo_stream.train.models import vision_attention
from grpo_stream.train.models.tiny import TINY_FAMILIES, make_tiny_policy
from grpo_stream.train.models.vision_attention import (
    WINDOWS,
    LinearPatches,
    batch_windows,
    check_vision_attention,
)

GRIDS = [[1, 12, 20], [1, 4, 20], [1, 12, 20]]  # in patches; windows of several lengths


FAMILIES = (
    "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v",
    "glm46v",
)  # fmt: skip
"""Those whose tower attends within windows, or within images that are in one row."""


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make_tiny_policy(folder, ["click on it"], family=request.param)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    return AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")


@pytest.fixture
def num_calls(monkeypatch):
    """Attention calls of both ways."""
    counted = [0]
    own = torch.nn.functional.scaled_dot_product_attention

    def attend(*args, **kwargs):
        counted[0] += 1
        return own(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(vision_attention, "scaled_dot_product_attention", attend)
    return counted


def encode(model, num_calls, grids=GRIDS):
    """Features, the gradient of all weights of the tower, attention calls."""
    tower, grid = model.get_encoder("image"), torch.tensor(grids)
    config = model.config.vision_config
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(int(grid.prod(dim=1).sum()), width, generator=generator).to(tower.dtype)
    num_calls[0] = 0
    features = tower(pixels, grid).pooler_output
    signs = torch.linspace(-1, 1, features.numel()).view_as(features)
    weights = [one for one in tower.parameters() if one.requires_grad]
    gradients = torch.autograd.grad((features * signs).sum(), weights, allow_unused=True)
    found = torch.cat([one.flatten() for one in gradients if one is not None])
    return features.detach(), found, num_calls[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_equals_transformers_own(model, num_calls, checkpointing):
    expected, gradient, before = encode(model, num_calls)
    batched = copy.deepcopy(model).train()
    assert batch_windows(batched) == WINDOWS
    if checkpointing:
        batched.gradient_checkpointing_enable({"use_reentrant": False})
    found, own, after = encode(batched, num_calls)
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)
    assert (own - gradient).norm() < 1e-5 * gradient.norm()
    depth = model.config.vision_config.depth
    assert after <= depth * (4 if model.config.model_type == "qwen2_5_vl" else 2) * (
        2 if checkpointing else 1
    )
    assert after < before * (2 if checkpointing else 1)


@pytest.mark.parametrize("family", sorted(set(TINY_FAMILIES) - set(FAMILIES)))
def test_other_families_attend_to_whole_images_by_themselves(family, tmp_path):
    make_tiny_policy(tmp_path, ["click on it"], family=family)
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    assert batch_windows(model) is None


@pytest.fixture
def flash_attn(monkeypatch):
    """A stand-in for the package: what its function for windows was called with.

    It attends window by window, in float32, and takes what the package takes: 16 bits, shape
    (tokens, heads, width), bounds of int32.
    """
    calls = []

    def varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        deterministic=False,
    ):
        assert {one.dtype for one in (q, k, v)} <= {torch.bfloat16, torch.float16}
        assert {one.stride(-1) for one in (q, k, v)} == {1}
        assert q.shape == k.shape == v.shape
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert cu_seqlens_q.is_contiguous()
        lengths = cu_seqlens_q.diff()
        assert int(max_seqlen_q) == int(max_seqlen_k) == int(lengths.max())
        assert int(cu_seqlens_q[0]) == 0
        assert int(cu_seqlens_q[-1]) == len(q)
        assert (dropout_p, causal, window_size) == (0.0, False, (-1, -1))
        calls.append(lengths.tolist())
        windows = zip(*(one.float().split(lengths.tolist()) for one in (q, k, v)), strict=True)
        found = []
        for query, key, value in windows:
            weights = torch.einsum("qhd,khd->hqk", query, key) * softmax_scale
            found.append(torch.einsum("hqk,khd->qhd", weights.softmax(dim=-1), value))
        return torch.cat(found).to(q.dtype)

    package: Any = ModuleType("flash_attn")
    padding: Any = ModuleType("flash_attn.bert_padding")
    package.flash_attn_varlen_func = varlen
    package.flash_attn_func = package.flash_attn_with_kvcache = lambda **_: pytest.fail(
        "no windows"
    )
    padding.pad_input = padding.unpad_input = None
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    utils = modeling_flash_attention_utils
    monkeypatch.setattr(utils, "is_flash_attn_2_available", lambda *_: True)
    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_pad_fn", "_unpad_fn",
                 "_flash_with_kvcache_fn", "_process_flash_kwargs_fn",
                 "_process_with_kvcache_kwargs_fn"):  # fmt: skip
        monkeypatch.setattr(utils, name, None)
    return calls


def test_flash_attention_in_the_tower_alone(model, num_calls, flash_attn):
    """One call a block, for all windows of all images, in 16 bits; as its eager attention."""
    models = {name: copy.deepcopy(model).bfloat16() for name in ("flash_attention_2", "eager")}
    outputs = {}
    for name, one in models.items():
        assert batch_windows(one, name) == name
        outputs[name] = encode(one, num_calls)[0].float()
    assert len(flash_attn) == model.config.vision_config.depth
    num_tokens = sum(rows * columns for _, rows, columns in GRIDS)
    assert all(sum(lengths) == num_tokens for lengths in flash_attn)
    if model.config.model_type == "qwen2_5_vl":
        assert len({len(lengths) for lengths in flash_attn}) == 2  # windows, and whole images
    assert num_calls[0] == 0
    error = (outputs["flash_attention_2"] - outputs["eager"]).norm() / outputs["eager"].norm()
    assert error < 0.01
    assert models["flash_attention_2"].config.text_config._attn_implementation == "sdpa"


def test_another_image_is_attended_by_its_own_windows(model, num_calls):
    batched = copy.deepcopy(model)
    batch_windows(batched)
    for grids in ([[1, 8, 8]], GRIDS, [[1, 8, 8]], [[1, 16, 4], [1, 4, 4]]):
        found, _, _ = encode(batched, num_calls, grids)
        expected, _, _ = encode(model, num_calls, grids)
        assert torch.allclose(found, expected, atol=1e-5, rtol=0)


def test_the_text_model_and_weights_names_are_left_alone(model):
    batched = copy.deepcopy(model)
    batch_windows(batched)
    assert batched.config.text_config._attn_implementation == "sdpa"
    assert list(batched.state_dict()) == list(model.state_dict())
    assert type(copy.deepcopy(batched).get_encoder("image").patch_embed.proj) is LinearPatches
    assert "flash" not in str(batched.config.to_dict())


def test_an_attention_of_transformers(model):
    named = copy.deepcopy(model)
    assert batch_windows(named, "eager") == "eager"
    assert named.config.vision_config._attn_implementation == "eager"
    assert batch_windows(named) is None  # somebody has chosen
    with pytest.raises(ConfigError, match=r"vision_attn_implementation='flash_attention_2'.*auto"):
        batch_windows(named, "flash_attention_2")  # its package is not here


@pytest.mark.parametrize(
    ("wanted", "packages", "words"),
    [
        ("auto", (), None),
        ("eager", (), None),
        ("kernels-community/flash-attn2", (), None),
        ("flash_attention_2", ("flash_attn",), None),
        ("flash_attention_2", ("kernels",), None),
        ("flash_attention_2", (), "needs the package flash_attn .*use auto"),
        ("flash_attention_3", ("flash_attn",), "needs the package flash_attn_interface"),
        ("flash2", ("flash_attn",), "must be one of auto, eager, flash_attention_2"),
    ],
)
def test_names_are_checked_before_a_model_is_there(monkeypatch, wanted, packages, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in packages or None)
    if words is None:
        check_vision_attention(wanted)
        return
    with pytest.raises(ConfigError, match=words) as caught:
        check_vision_attention(wanted)
    assert caught.value.field == "vision_attn_implementation"


def test_a_kernel_over_several_patches_stays_a_convolution():
    torch.manual_seed(0)
    patches = torch.nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4))
    images = torch.randn(2, 3, 4, 8, 8)
    expected = patches(images)
    patches.__class__ = LinearPatches
    assert torch.equal(patches(images), expected)
