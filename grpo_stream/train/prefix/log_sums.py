"""Attention to a shared prefix and to one's own tokens: two calls without a mask, merged.

Each call gives its output and the logarithm of the sum of its exponentials, by which two softmaxes
over parts become one over the whole. So no mask exists, and the prefix's keys are not copied for
each completion. The kernels' own backward passes take the merged output and log-sums as they are:
what they need of softmax is the weight of each product, which is that of the whole.

Shapes as in :mod:`grpo_stream.train.prefix.attention`.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

logger = logging.get_logger("grpo_stream.train")

_ATEN = torch.ops.aten
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALVES = (torch.float16, torch.bfloat16)


class _Call(NamedTuple):
    """What a kernel gave, and what its backward pass wants back besides."""

    output: torch.Tensor
    log_sums: torch.Tensor
    """float32 (float64), shape (B, H, L)."""
    others: tuple[Any, ...]


class _Merged(torch.autograd.Function):
    """Attention of G completions, of equal length, to one prefix and causally to themselves."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        prefix_key: torch.Tensor,
        prefix_value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """See :func:`merged_attention`."""
        by_prefix = _below_the_prefix(query, prefix_key.size(1))
        shared = _attend(by_prefix, prefix_key, prefix_value, scaling, is_causal=False)
        repeated = [_for_each_query_head(one, query) for one in (key, value)]
        own = _attend(query, repeated[0], repeated[1], scaling, is_causal=True)
        to_prefix = _by_completion(shared.log_sums[..., None], query)[..., 0]
        # CUDA's backward kernel reads them by address, as if contiguous (torch, flash_api.cpp,
        # mha_bwd); a sum has its first operand's order, here that of the prefix's call.
        log_sums = torch.logaddexp(to_prefix, own.log_sums).contiguous()
        from_prefix = _by_completion(shared.output, query)
        output = from_prefix * (to_prefix - log_sums).exp()[..., None]
        output = output + own.output * (own.log_sums - log_sums).exp()[..., None]
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, prefix_key, prefix_value, output, log_sums)
        ctx.shared, ctx.own, ctx.scaling = shared.others, own.others, scaling
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Gradients of all five tensors."""
        query, key, value, prefix_key, prefix_value, output, log_sums = ctx.saved_tensors
        num_kv_heads = prefix_key.size(1)
        by_prefix = [
            _below_the_prefix(one, num_kv_heads)
            for one in (gradients[0], query, output, log_sums[..., None])
        ]
        call = _Call(by_prefix[2], by_prefix[3][..., 0], ctx.shared)
        rows, scaling = (by_prefix[1], prefix_key, prefix_value), ctx.scaling
        to_prefix, *of_prefix = _attend_back(by_prefix[0], rows, call, scaling, is_causal=False)
        call, gradient = _Call(output, log_sums, ctx.own), gradients[0].contiguous()
        repeated = [_for_each_query_head(one, query) for one in (key, value)]
        inputs = (query, repeated[0], repeated[1])
        to_own, *of_own = _attend_back(gradient, inputs, call, scaling, is_causal=True)
        of_own = [one.unflatten(1, (num_kv_heads, -1)).sum(dim=2) for one in of_own]
        return _by_completion(to_prefix, query) + to_own, *of_own, *of_prefix, None


def merged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_key: torch.Tensor,
    prefix_value: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Attention of completions to the prefix that they share, and to themselves.

    Args:
        query: Shape (G, H, C, D).
        key: Shape (G, K, C, D).
        value: The same shape.
        prefix_key: Shape (1, K, P, D), P of at least 1.
        prefix_value: The same shape.
        scaling: Of the products.

    Returns:
        Shape (G, H, C, D).
    """
    output: torch.Tensor = _Merged.apply(query, key, value, prefix_key, prefix_value, scaling)
    return output


def gives_log_sums(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether a kernel for such tensors gives log-sums that can be merged.

    It is tried once for each device, type and width: output and gradients of a small group must be
    those of the masked form.

    Args:
        query: Any shape (..., D).
        value: The same.
    """
    if query.dtype != value.dtype or query.size(-1) != value.size(-1):
        return False
    return _is_exact(query.device, query.dtype, query.size(-1))


@functools.cache
def _is_exact(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    # In a thread of its own, as what autocast and checkpointed layers do to gradients is of a
    # thread: a layer would count what is kept here among what it has to compute again.
    with ThreadPoolExecutor(1) as thread:
        is_exact = thread.submit(_try_kernel, device, dtype, width).result()
    if not is_exact and (device.type == "cpu" or dtype in _HALVES):
        logger.warning(
            "completions attend through a mask, which is slower: attention with log-sums is "
            "missing or wrong on %s for %s, heads of %d",
            device,
            dtype,
            width,
        )
    return is_exact


def _try_kernel(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    numbers = torch.Generator().manual_seed(0)

    def states(*shape: int) -> torch.Tensor:
        own = torch.randn(*shape, width, generator=numbers, dtype=torch.float64)
        return own.to(device, dtype).requires_grad_()

    inputs = [states(*shape) for shape in ((2, 2, 3), (2, 1, 3), (2, 1, 3), (1, 1, 5), (1, 1, 5))]
    query, key, value, prefix_key, prefix_value = inputs
    mask = torch.ones(3, 8, dtype=torch.bool, device=device).tril(5)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query,
        torch.cat([prefix_key.expand(2, -1, -1, -1), key], dim=2),
        torch.cat([prefix_value.expand(2, -1, -1, -1), value], dim=2),
        attn_mask=mask,
        scale=0.5,
        enable_gqa=True,
    )
    try:
        found = merged_attention(query, key, value, prefix_key, prefix_value, 0.5)
        both = [
            (one, *torch.autograd.grad((one.float() ** 2).sum(), inputs))
            for one in (found, expected)
        ]
    except (RuntimeError, NotImplementedError):
        return False
    allowed = _TOLERANCE.get(dtype, 0.05)
    return all(
        bool((one - other).abs().max() <= allowed * (1 + other.abs().max()))
        for one, other in zip(*both, strict=True)
    )


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, *, is_causal: bool
) -> _Call:
    """One call with its log-sums, by torch's own flash attention (2.8 to 2.13)."""
    if query.device.type == "cpu":
        kernel = _ATEN._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
        output, log_sums = kernel(query, key, value, 0.0, is_causal, scale=scaling)
        return _Call(output, log_sums, ())
    if query.device.type == "cuda" and query.dtype in _HALVES:
        kernel = _ATEN._scaled_dot_product_flash_attention  # noqa: SLF001
        output, log_sums, *others = kernel(query, key, value, 0.0, is_causal, False, scale=scaling)
        return _Call(output, log_sums, tuple(others[:6]))
    raise NotImplementedError(f"{query.device.type}, {query.dtype}")


def _attend_back(
    gradient: torch.Tensor,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    call: _Call,
    scaling: float,
    *,
    is_causal: bool,
) -> list[torch.Tensor]:
    """Gradients of query, key and value."""
    results = (call.output, call.log_sums)
    if gradient.device.type == "cpu":
        kernel = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001
        return list(kernel(gradient, *inputs, *results, 0.0, is_causal, scale=scaling))
    kernel = _ATEN._scaled_dot_product_flash_attention_backward  # noqa: SLF001
    *bounds, seed, offset = call.others
    return list(
        kernel(gradient, *inputs, *results, *bounds, 0.0, is_causal, seed, offset, scale=scaling)
    )


def _for_each_query_head(states: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """(G, K, C, D) -> (G, H, C, D)."""
    return states.repeat_interleave(query.size(1) // states.size(1), dim=1)


def _below_the_prefix(states: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """(G, H, C, D) -> (1, K, H / K * G * C, D): all that reads one head of the prefix's keys."""
    number, heads, *rest = states.shape
    split = states.reshape(number, num_kv_heads, heads // num_kv_heads, *rest)
    return split.permute(1, 2, 0, 3, 4).reshape(1, num_kv_heads, -1, states.size(-1))


def _by_completion(states: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """The way back of :func:`_below_the_prefix`."""
    number, heads, length = query.shape[:3]
    num_kv_heads, width = states.size(1), states.size(-1)
    split = states.reshape(num_kv_heads, heads // num_kv_heads, number, length, width)
    return split.permute(2, 0, 1, 3, 4).reshape(number, heads, length, width)
