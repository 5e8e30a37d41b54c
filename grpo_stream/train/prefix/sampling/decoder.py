"""How a rollout computes its next tokens: operation by operation, or as one compiled graph.

``decode: compiled`` runs the same call of the model as ``eager``, as one full graph of
``torch.compile``: a break of the graph would be an error. The number of slots is a symbol in it,
so prompts and completions of any length share one compilation; another number of prompts or of
completions is another one. Roundings are those of eager operations. On CUDA the launches of a token
are recorded by CUDA in each rollout and replayed; the tensors of that live as long as the rollout.

The first tokens of a run are computed both ways. Where their logits differ, or where anything
cannot be compiled, the run goes on with eager operations, and the log says why.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from transformers.utils import logging

logger = logging.get_logger("grpo_stream.train")

Logits = Callable[[], torch.Tensor]
"""Computes logits, shape (rows, tokens of each, vocabulary)."""

# The first is compiled, the second is of a warm graph, the third is replayed on CUDA.
_CHECKED_TOKENS = 3
_TOKENS_BEFORE_CAPTURE = 2
# Largest difference of logits, relative to their length; bfloat16 has 8 bits.
_ALLOWED = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


class TokenCache(Protocol):
    """What a rollout keeps between two tokens, in tensors that are written in place."""

    def inputs(self) -> dict[str, Any]:
        """What the model's call takes of it, beside tokens and their positions."""
        ...

    def sized(self) -> Sequence[tuple[torch.Tensor, int]]:
        """Tensors with a size that is a symbol of the graph, and which dimension it is."""
        ...

    def states(self) -> Sequence[torch.Tensor]:
        """Tensors that a call reads and overwrites: the same call again would find others."""
        ...


class Decoder:
    """Computes the next tokens' logits.

    Args:
        mode: ``eager`` or ``compiled``.
        backend: torch.compile's; another than its own shows the graph without making kernels.
    """

    def __init__(self, mode: str = "eager", backend: str = "inductor") -> None:
        self._num_unchecked = _CHECKED_TOKENS
        self._graph: Any = None
        self.fallback: str | None = None
        """Why it is eager although it should be compiled."""
        if mode == "compiled":
            # Without emulation, bfloat16 is rounded less often than scoring rounds it.
            own = {"options": {"emulate_precision_casts": True}} if backend == "inductor" else {}
            self._graph = torch.compile(_logits, fullgraph=True, backend=backend, **own)  # type: ignore[call-overload]

    @property
    def is_compiled(self) -> bool:
        """Whether a graph is in use."""
        return self._graph is not None

    def bind(
        self, model: Any, tokens: torch.Tensor, positions: torch.Tensor, cache: TokenCache
    ) -> Logits:
        """What computes the logits of tokens that are written into these tensors.

        Args:
            model: Unwrapped; LoRA may be around it.
            tokens: int64, shape (rows, tokens of each).
            positions: int64, their shape, or with 3 dimensions of M-RoPE before.
            cache: Of the rollout.
        """
        eager = _Call(_logits, model, tokens, positions, cache)
        if self._graph is None:
            return eager
        if any(weight.numel() == 0 for weight in model.parameters()):
            self.fall_back("weights are partitioned")
            return eager
        for tensor, dim in cache.sized():
            torch._dynamo.mark_dynamic(tensor, dim)  # noqa: SLF001 - its documented name
        # Not the hooks of the model itself: one of DeepSpeed's, which no graph takes, stays there
        # while weights are gathered.
        compiled: Logits = _Call(self._graph, model.forward, tokens, positions, cache)
        if tokens.is_cuda:
            compiled = _Replayed(compiled)
        return lambda: self._checked(compiled, eager, cache)

    def _checked(self, compiled: Logits, eager: Logits, cache: TokenCache) -> torch.Tensor:
        if self._graph is None:
            return eager()
        found = [state.clone() for state in cache.states()] if self._num_unchecked else []
        try:
            logits = compiled()
        except Exception as error:  # noqa: BLE001 - a compiler may raise anything
            self.fall_back(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            return eager()
        if self._num_unchecked:
            self._num_unchecked -= 1
            for state, before in zip(cache.states(), found, strict=True):
                state.copy_(before)
            expected = eager()  # writes the same keys to the same slots
            if not self.accepts(logits, expected, "eager ones"):
                return expected
        return logits

    @property
    def is_unchecked(self) -> bool:
        """Whether the next token is one of the first, which are computed both ways."""
        return self.is_compiled and self._num_unchecked == _CHECKED_TOKENS

    def accepts(self, logits: torch.Tensor, expected: torch.Tensor, those: str) -> bool:
        """Whether logits are what they are expected to be; if not, it is eager from now on.

        Args:
            logits: Of any shape.
            expected: Of the same shape.
            those: What ``expected`` is.
        """
        distance = float((logits - expected).float().norm() / expected.float().norm())
        allowed = _ALLOWED.get(expected.dtype, min(_ALLOWED.values()))
        if distance <= allowed:
            return True
        self.fall_back(
            f"logits differ from {those} by {distance:.2g} of their length (allowed {allowed:.2g})"
        )
        return False

    def fall_back(self, reason: str) -> None:
        """Takes eager operations from now on.

        Args:
            reason: For the log.
        """
        self._graph, self.fallback = None, reason
        logger.warning("decode is eager: %s", reason)


EAGER = Decoder()


class _Call:
    """A function with its arguments."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._function, self._args = function, args

    def __call__(self) -> torch.Tensor:
        found: torch.Tensor = self._function(*self._args)
        return found


class _Replayed:
    """Calls, of which CUDA records one; from then on that is replayed.

    Nothing that it reads or writes may move; it is made anew for other tensors.
    """

    def __init__(self, call: Logits) -> None:
        self._call = call
        self._num_calls = 0
        self._recorded: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    def __call__(self) -> torch.Tensor:
        if self._num_calls < _TOKENS_BEFORE_CAPTURE:
            self._num_calls += 1
            return self._call()
        if self._recorded is None:
            recorded = torch.cuda.CUDAGraph()
            # The stream's threads may ask for pinned memory meanwhile.
            with torch.cuda.graph(recorded, capture_error_mode="thread_local"):
                self._logits = self._call()
            self._recorded = recorded
        self._recorded.replay()
        return self._logits


def _logits(
    forward: Any, tokens: torch.Tensor, positions: torch.Tensor, cache: TokenCache
) -> torch.Tensor:
    logits: torch.Tensor = forward(
        input_ids=tokens, position_ids=positions, use_cache=True, **cache.inputs()
    ).logits
    return logits
