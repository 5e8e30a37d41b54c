"""A LoRA adapter for an engine: merged into its base model in memory, not in files."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from grpo_stream.train.models.expert_weights import as_in_files
from grpo_stream.train.models.model_path import base_model_of
from grpo_stream.train.models.policy import load_policy
from grpo_stream.train.vllm import LoadAll

_FORMAT = "merged_adapter"


@contextmanager
def merged_adapter(adapter: str, dtype: str) -> Iterator[dict[str, Any]]:
    """Settings of ``vllm.LLM`` by which an engine loads an adapter's merged weights.

    They are computed by transformers and peft in this process's memory, on the CPU, as an
    evaluation without an engine does, and are gone afterwards. An engine whose workers are other
    processes does not find them.

    Args:
        adapter: The adapter's folder.
        dtype: Of the weights.

    Written against vLLM 0.30 (``register_model_loader``, ``DefaultModelLoader``).
    """
    from vllm.model_executor import model_loader  # noqa: PLC0415 - an extra

    policies = [load_policy(adapter, dtype=dtype)]

    class MergedWeights(model_loader.DefaultModelLoader):
        """Loads the policy's weights, and finds out, as for files, whether one is missing."""

        def download_model(self, model_config: Any) -> None:
            """There is nothing to fetch."""

        def load_weights(self, model: Any, model_config: Any) -> None:
            """See upstream; each by itself, so that none is passed over."""
            del model_config
            load = LoadAll(model.load_weights)
            loaded: set[str] = set()
            for pair in _weights(policies[0]):
                loaded |= load([pair]) or set()
            self.track_weights_loading(model, loaded)

    model_loader.register_model_loader(_FORMAT)(MergedWeights)
    try:
        yield {"model": base_model_of(adapter), "load_format": _FORMAT}
    finally:
        policies.clear()


def _weights(policy: Any) -> Iterator[tuple[str, torch.Tensor]]:
    named = ((name, weight.detach()) for name, weight in policy.named_parameters())
    return as_in_files(policy.config.model_type, named)
