"""The balancing loss of a mixture of experts, the same in whichever way groups are computed.

The loss (Switch Transformer, arXiv 2101.03961) is made of how often each expert is chosen and how
probable it is, over all tokens of a micro-batch. Where a prompt is computed once for its G
completions, each of its tokens counts G times, as in G rows of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from grpo_stream.train.models.base_model import base_model


class RouterRecord:
    """What a model's routers have said of the tokens of a micro-batch.

    Args:
        model: A mixture of experts (transformers 5.23), wrapped or not.
    """

    def __init__(self, model: Any) -> None:
        self._model = base_model(model)
        self._logits: list[tuple[torch.Tensor, ...]] = []
        self._weights: list[torch.Tensor] = []

    def loss(self) -> torch.Tensor:
        """The balancing loss over all calls, as trl (1.16) has it of plain rows."""
        text = self._model.config.get_text_config()
        layers = tuple(torch.cat(parts) for parts in zip(*self._logits, strict=True))
        sizes, weights = (text.num_experts, text.num_experts_per_tok), torch.cat(self._weights)
        loss: torch.Tensor = load_balancing_loss_func(layers, *sizes, weights)
        return loss

    @contextmanager
    def _kept(self, weights: torch.Tensor) -> Iterator[dict[str, Any]]:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            *others, last = output.router_logits
            # A prompt's last layer has no other use than its keys and values. With checkpointing,
            # ZeRO-3 (DeepSpeed 0.19) needs each layer's backward to begin at the layer's end: what
            # is computed again behind the place where it begins is given up too early.
            self._logits.append((*others, last + 0 * output.last_hidden_state[..., :1].sum()))
            self._weights.append(weights.flatten().float())

        # trl's head (1.16) hands on the loss of its own call alone, and no logits.
        handle = self._model.base_model.register_forward_hook(keep)
        try:
            yield {"output_router_logits": True}
        finally:
            handle.remove()


@contextmanager
def kept_in(record: RouterRecord | None, weights: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Keeps the router logits of the model's call within it.

    Args:
        record: Where; None: nothing is asked for.
        weights: How often each token counts, in the shape of the call's ``input_ids``.

    Yields:
        What the model is to be called with besides.
    """
    if record is None:
        yield {}
        return
    with record._kept(weights) as inputs:  # noqa: SLF001 - of this file
        yield inputs
