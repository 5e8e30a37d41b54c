"""A plugin of vLLM by which its CPU backend runs Gated DeltaNet layers as they are (vLLM 0.30).

Its kernels are of bfloat16, of heads 64 wide or more, and read the convolution's weight packed. It
is packed once, when the model is loaded, in the place of the original: new weights would be read
as packed ones. So it is packed at each call, and other types than bfloat16 are computed by
transformers' recurrence, token by token.
"""

from functools import wraps
from typing import Any, get_type_hints

import torch
from torch.nn import functional


def register() -> None:
    """Called by vLLM in each of its processes before a model is loaded."""
    from vllm import _custom_ops
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    for name in ("causal_conv1d_fwd_cpu", "causal_conv1d_update_cpu"):
        setattr(_custom_ops, name, _packing(getattr(_custom_ops, name)))

    kernels = gdn_attention.cpu_gdn_attention_core

    def core(mixed_qkv: Any, b: Any, a: Any, core_attn_out: Any, layer_name: Any) -> None:
        if mixed_qkv.dtype == torch.bfloat16:
            kernels(mixed_qkv, b, a, core_attn_out, layer_name)
            return
        context = gdn_attention.get_forward_context()
        layer = context.no_compile_layers[gdn_attention._resolve_layer_name(layer_name)]
        if context.attn_metadata is None:  # vLLM measures its memory
            return
        _recur(layer, context.attn_metadata[layer.prefix], mixed_qkv, b, a, core_attn_out)

    # The schema of an operator is read from them.
    core.__annotations__ = get_type_hints(kernels) | {"return": None}
    gdn_attention.cpu_gdn_attention_core = core


def _packing(convolution: Any) -> Any:
    @wraps(convolution)
    def pack_at_each_call(*, weight: torch.Tensor, **others: Any) -> torch.Tensor:
        from vllm._custom_ops import causal_conv1d_weight_pack

        packed = causal_conv1d_weight_pack(weight.flatten(1).contiguous())
        found: torch.Tensor = convolution(weight=packed, **others)
        return found

    return pack_at_each_call


def _recur(
    layer: Any,
    metadata: Any,
    mixed_qkv: torch.Tensor,
    b: torch.Tensor,
    a: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """Requests one after the other, each from the states in its slot and back into it.

    Args:
        layer: Its ``kv_cache`` has the last inputs of the convolution and the recurrent states.
        metadata: Where requests begin, and their slots.
        mixed_qkv: Queries, keys and values before the convolution, shape (tokens, channels).
        b: Before the sigmoid, shape (tokens, heads of values).
        a: Before the softplus, the same shape.
        output: Written; shape (tokens, heads of values, width).
    """
    from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    past_inputs = gdn_attention._conv_buffer_view(layer)
    past_states = gdn_attention._ssm_state_view(layer)
    decay = -layer.A_log.float().exp() * functional.softplus(a.float() + layer.dt_bias)
    starts = metadata.non_spec_query_start_loc.tolist()
    for number, slot in enumerate(
        metadata.non_spec_state_indices_tensor.tolist()[: len(starts) - 1]
    ):
        own = slice(starts[number], starts[number + 1])
        if number >= metadata.num_decodes and not metadata.has_initial_state[number]:
            past_inputs[slot].zero_()
            past_states[slot].zero_()
        inputs = torch.cat([past_inputs[slot], mixed_qkv[own].T], dim=1)
        past_inputs[slot] = inputs[:, -past_inputs.size(2) :]
        convolved = functional.conv1d(
            inputs, layer.conv1d.weight.flatten(1)[:, None], layer.conv1d.bias, groups=len(inputs)
        )
        query, key, value = layer.rearrange_mixed_qkv(functional.silu(convolved).T)
        output[own], past_states[slot] = (
            found[0]
            for found in torch_recurrent_gated_delta_rule(
                query,
                key,
                value,
                g=decay[None, own],
                beta=b[None, own].sigmoid(),
                initial_state=past_states[slot][None],
                output_final_state=True,
                use_qk_l2norm_in_kernel=True,
            )
        )
