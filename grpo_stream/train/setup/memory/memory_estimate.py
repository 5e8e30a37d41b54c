"""What a rank's memory holds under ZeRO-3, term by term, computed from a model's configuration.

Letters: N weights of the model, R ranks, e bytes of a weight or activation (2 in bf16, 4 in fp32),
H hidden size, V vocabulary; G completions of C tokens a prompt. What depends on the architecture is
counted on a model without memory (:mod:`~grpo_stream.train.setup.memory.group_memory`); what
ZeRO-3, the optimizer and trl's head add is the same for all and is computed here.

Not in it: the CUDA context and NCCL's buffers (1 to 2 GB), and what the allocator cannot use for
being in pieces.
"""

from dataclasses import asdict, dataclass

from grpo_stream.train.setup.memory.group_memory import Batch, group_memory
from grpo_stream.train.setup.memory.model_sizes import MetaModel

_FP32 = 4
_OPTIMIZER_BYTES = 12
_HEAD_TOKENS, _HEAD_COLUMNS = 4096, 32768  # a tile of trl 1.16's kernels/chunked_logprob.py


@dataclass(frozen=True)
class Zero:
    """How ZeRO-3 cuts the model."""

    num_ranks: int
    """R."""
    offload_optimizer: bool = False
    offload_param: bool = False
    element_bytes: int = 2
    """e; 4 is training in float32."""
    gradient_bytes: int | None = None
    """Of a gradient that is summed over micro-steps: 4 with ``grad_accum_dtype`` fp32; None: e."""
    max_live_weights: int = 10**9
    """``stage3_max_live_parameters``."""
    sub_group_weights: int = 10**9
    """``sub_group_size``."""
    gather_for_generation: bool = True
    """trl's ``ds3_gather_for_generation``."""
    gradient_checkpointing: bool = True
    with_reference: bool = False
    """A reference model beside the policy, as with ``beta`` above 0."""
    engine_bytes: int = 0
    """Of the device that a colocated engine has; 0: the policy samples by itself."""
    does_engine_sleep: bool = False
    """Whether it has them while completions are sampled alone: vLLM's sleep mode."""


@dataclass(frozen=True)
class StateMemory:
    """Bytes that are there all the time; on the device of one rank, but for the last two."""

    weights: int
    gradients: int
    optimizer: int
    host_weights: int
    host_optimizer: int

    @property
    def states(self) -> int:
        """On the device."""
        return self.weights + self.gradients + self.optimizer

    @property
    def host(self) -> int:
        """Host memory of this rank's share."""
        return self.host_weights + self.host_optimizer


@dataclass(frozen=True)
class MemoryEstimate(StateMemory):
    """And what comes and goes, on the device of one rank."""

    gathered: int
    activations: int
    head: int
    optimizer_step: int
    rollout_weights: int
    kv_cache: int
    rollout_work: int
    vllm_engine: int
    vllm_freed: int
    """Of it, while nothing is sampled."""

    @property
    def update_peak(self) -> int:
        """While a micro-step runs backward."""
        return self._between_rollouts + self.gathered + self.activations + self.head

    @property
    def rollout_peak(self) -> int:
        """While completions are sampled."""
        work = self.rollout_weights + self.kv_cache + self.rollout_work
        return self.states + self.vllm_engine + work

    @property
    def peak(self) -> int:
        """The most of all phases."""
        step = self._between_rollouts + self.optimizer_step
        return max(self.update_peak, self.rollout_peak, step)

    @property
    def _between_rollouts(self) -> int:
        return self.states + self.vllm_engine - self.vllm_freed

    def to_dict(self) -> dict[str, int]:
        """Terms and sums by name."""
        sums = ("states", "update_peak", "rollout_peak", "peak", "host")
        return asdict(self) | {name: getattr(self, name) for name in sums}


def state_memory(num_weights: int, zero: Zero) -> StateMemory:
    """What N weights take, and what training them does.

    * weights: e N / R, and as much again for a reference model; gradients: e N / R, or 4 N / R
    * optimizer: 12 N / R: DeepSpeed's own float32 weights and Adam's two moments. Measured with
      deepspeed 0.19.8: 16 bytes a weight in bf16, 20 in float32, in all. DeepSpeed's estimator
      says 18.
    """
    share = -(-num_weights // zero.num_ranks)
    e = zero.element_bytes
    weights = e * share * (2 if zero.with_reference else 1)
    gradients = share * (zero.gradient_bytes or e)
    optimizer = _OPTIMIZER_BYTES * share
    return StateMemory(
        weights=0 if zero.offload_param else weights,
        gradients=0 if zero.offload_optimizer else gradients,
        optimizer=0 if zero.offload_optimizer else optimizer,
        host_weights=weights if zero.offload_param else 0,
        host_optimizer=gradients + optimizer if zero.offload_optimizer else 0,
    )


def estimate(model: MetaModel, zero: Zero, batch: Batch) -> MemoryEstimate:
    """All terms.

    * gathered: e min(N, ``stage3_max_live_parameters``): layers on their way and kept for backward;
      at least the largest
    * activations: :func:`activation_bytes`; head: :func:`head_bytes`
    * optimizer_step: 4 min(N / R, ``sub_group_size``): a tile's gradients in float32
    * rollout_weights: e N where the whole model is gathered for sampling, else as ``gathered``
    * kv_cache: of all completions of the rollout's prompts; a packed group keeps its prefix once
    * rollout_work: prefill's widest moment for each prompt, or sampling's logits in e and twice in
      float32, V (e + 8) a completion; whichever is more
    * vllm_engine: what it was given; it has cache and work of sampling in it, and trl hands it the
      weights one gathered parameter after the other
    * vllm_freed: all of it where it sleeps (level 2, vLLM 0.30): weights and cache are discarded.
      What its CUDA graphs and its context hold is not given back, and is not counted

    Raises:
        ConfigError: see :func:`~grpo_stream.train.setup.memory.group_memory.group_memory`.
    """
    e, prompts, num_weights = zero.element_bytes, batch.prompts_per_rollout, model.num_weights
    group = group_memory(model, batch, e)
    share = -(-num_weights // zero.num_ranks)
    gathered = e * max(min(num_weights, zero.max_live_weights), model.largest_module_weights)
    rollout_weights = e * num_weights if zero.gather_for_generation else gathered
    if zero.engine_bytes:
        rollout_weights = e * model.largest_module_weights
    sampling = model.head.size(0) * (e + 2 * _FP32) * batch.num_generations
    return MemoryEstimate(
        **asdict(state_memory(num_weights, zero)),
        gathered=gathered,
        activations=activation_bytes(model, zero, batch),
        head=head_bytes(model, zero, batch),
        optimizer_step=0 if zero.offload_optimizer else _FP32 * min(share, zero.sub_group_weights),
        rollout_weights=rollout_weights,
        kv_cache=0 if zero.engine_bytes else prompts * group.cache,
        rollout_work=0 if zero.engine_bytes else prompts * max(group.prefill, sampling),
        vllm_engine=zero.engine_bytes,
        vllm_freed=zero.engine_bytes if zero.does_engine_sleep else 0,
    )


def activation_bytes(model: MetaModel, zero: Zero, batch: Batch) -> int:
    """What forward keeps for backward in the layers, for the groups of a micro-step.

    Without gradient checkpointing all of every layer and vision block. With it the input of each,
    and once more the layer or block that is being computed again.
    """
    group = group_memory(model, batch, zero.element_bytes)
    kept = [*group.layers, *group.blocks]
    if not zero.gradient_checkpointing:
        return batch.groups_per_micro_step * sum(kept)
    inputs = sum(group.layer_inputs) + len(group.blocks) * group.block_input
    return batch.groups_per_micro_step * (inputs + max(kept))


def head_bytes(model: MetaModel, zero: Zero, batch: Batch) -> int:
    """The head's backward: no logits of all tokens, but its gradient is whole and in float32.

    A tile of logits, e min(tokens, 4096) min(V, 32768); the gradient, 4 V H, and its cast, e V H.
    """
    scored = batch.groups_per_micro_step * batch.num_generations * batch.completion_tokens
    columns = min(model.head.size(0), _HEAD_COLUMNS)
    tile = zero.element_bytes * min(scored, _HEAD_TOKENS) * columns
    return tile + (_FP32 + zero.element_bytes) * model.head.numel()
