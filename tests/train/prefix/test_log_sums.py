"""Two calls without a mask are the call with one, in both passes."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from grpo_stream.train.prefix import log_sums
from grpo_stream.train.prefix.attention import TwoPart
from grpo_stream.train.prefix.log_sums import gives_log_sums, merged_attention
from tests.train.prefix.test_attention import pack

SHAPES = [(3, 6, 7), (3, 2, 7), (3, 2, 7), (1, 2, 50), (1, 2, 50)]  # G or 1, heads, tokens


@pytest.fixture
def inputs():
    numbers = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, 16, generator=numbers).requires_grad_() for shape in SHAPES]


def merged(inputs):
    query, key, value, prefix_key, prefix_value = inputs
    return merged_attention(query, key, value, prefix_key, prefix_value, 0.3)


def masked(inputs):
    query, key, value, prefix_key, prefix_value = inputs
    mask = torch.ones(7, 57, dtype=torch.bool).tril(50)
    keys, values = (
        torch.cat([shared.expand(3, -1, -1, -1), own], dim=2)
        for shared, own in ((prefix_key, key), (prefix_value, value))
    )
    return scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=0.3, enable_gqa=True
    )


def test_equals_one_call_with_a_mask(inputs):
    found, expected = (one(inputs) for one in (merged, masked))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    pairs = [torch.autograd.grad((one * weights).sum(), inputs) for one in (found, expected)]
    for own, other in zip(*pairs, strict=True):
        assert (own - other).norm() < 5e-7 * other.norm()


def test_kernels_that_read_log_sums_by_address(inputs, monkeypatch):
    """As CUDA's flash attention: it gives contiguous ones, and asks backward for no strides."""
    attend, attend_back = log_sums._attend, log_sums._attend_back

    def contiguous(*args, **kwargs):
        call = attend(*args, **kwargs)
        return call._replace(log_sums=call.log_sums.contiguous())

    def by_address(gradient, rows, call, scaling, *, is_causal):
        shape = call.log_sums.shape
        read = torch.as_strided(call.log_sums, shape, torch.empty(shape).stride())
        return attend_back(
            gradient, rows, call._replace(log_sums=read), scaling, is_causal=is_causal
        )

    monkeypatch.setattr(log_sums, "_attend", contiguous)
    monkeypatch.setattr(log_sums, "_attend_back", by_address)
    pairs = [torch.autograd.grad(one(inputs).square().sum(), inputs) for one in (merged, masked)]
    for own, other in zip(*pairs, strict=True):
        assert (own - other).norm() < 5e-7 * other.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_cpu_gives_log_sums(dtype):
    states = torch.zeros(1, 1, 1, 16, dtype=dtype)
    assert gives_log_sums(states, states)
    assert not gives_log_sums(states, states.half())  # under autocast, say
    assert not gives_log_sums(states, states[..., :8])


@pytest.fixture
def tried_anew():
    log_sums._is_exact.cache_clear()
    yield
    log_sums._is_exact.cache_clear()


@pytest.mark.parametrize("fault", ["missing", "log-sums of another base", "no scaling"])
def test_a_kernel_that_cannot_be_merged_is_found_out(fault, monkeypatch, tried_anew):
    """And said, once: completions are then slower."""
    own, told = log_sums._attend, []
    monkeypatch.setattr(log_sums.logger, "warning", lambda *words: told.append(words))

    def attend(query, key, value, scaling, **kwargs):
        if fault == "missing":
            raise NotImplementedError
        call = own(query, key, value, 1.0 if fault == "no scaling" else scaling, **kwargs)
        return call._replace(log_sums=call.log_sums * (2.0 if "base" in fault else 1.0))

    monkeypatch.setattr(log_sums, "_attend", attend)
    states = torch.zeros(1, 1, 1, 16)
    assert [gives_log_sums(states, states) for _ in range(2)] == [False, False]
    ((words, *_),) = told
    assert "completions attend through a mask" in words


def run(layout: TwoPart, states):
    weights = torch.linspace(-1, 1, states[0].numel()).view_as(states[0])
    (layout.attend(0, states[0], states[1], states[2], 0.3, 0.0) * weights).sum().backward()
    return [one.grad for one in states]


@pytest.mark.parametrize("is_merged", [True, False])
def test_completions_of_ragged_groups_in_checkpointed_layers(is_merged, monkeypatch, tried_anew):
    """The first try of a kernel leaves nothing for the layer's own recomputation."""
    layout = pack([9, 5], [[4, 1, 7], [2, 2]], "two_part").shared_prefix
    assert layout is not None
    length = 9 - 1 + 12 + 5 - 1 + 4
    numbers = torch.Generator().manual_seed(0)
    plain = [torch.randn(1, heads, length, 16, generator=numbers) for heads in (6, 2, 2)]
    found, expected = ([one.clone().requires_grad_() for one in plain] for _ in range(2))
    if not is_merged:
        monkeypatch.setattr("grpo_stream.train.prefix.attention.gives_log_sums", lambda *_: False)
    output = checkpoint(layout.attend, 0, *found, 0.3, 0.0, use_reentrant=False)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    (output * weights).sum().backward()
    monkeypatch.setattr("grpo_stream.train.prefix.attention.gives_log_sums", lambda *_: False)
    for own, other in zip((one.grad for one in found), run(layout, expected), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)
