"""What a rank's memory holds under ZeRO-3, term by term, computed from shapes alone.

Letters: N weights of the model, R ranks, e bytes of a weight or activation (2 in bf16, 4 in fp32),
H hidden size, I inner size of the MLP, K kv size (elements of a token's keys), V vocabulary;
P tokens of a prompt, of which V_i are visual, G completions of C tokens; L = P - 1 + G * C tokens
of a packed group (``prefix.py``). Saved tensors are those of transformers 5.23's Qwen2.5-VL with
``sdpa``; ``tests/train/setup/test_memory_estimate.py`` counts them.

Not in it: the CUDA context and NCCL's buffers (1 to 2 GB), and what the allocator cannot use for
being in pieces.
"""

from dataclasses import asdict, dataclass

from grpo_stream.train.setup.model_sizes import ModelShape

_PATCHES_PER_TOKEN = 4
_FP32 = 4
_OPTIMIZER_BYTES = 12
_HEAD_TOKENS, _HEAD_COLUMNS = 4096, 32768  # a tile of trl 1.16's kernels/chunked_logprob.py


@dataclass(frozen=True)
class Batch:
    """What a rank samples and scores."""

    prompt_tokens: int = 1300
    """P."""
    image_tokens: int = 1280
    """V_i."""
    completion_tokens: int = 64
    """C, all as long as they may be."""
    num_generations: int = 8
    """G."""
    groups_per_micro_step: int = 1
    """Prompts of a micro-step: per_device_train_batch_size / G."""
    prompts_per_rollout: int = 4
    """Of one rank: per_device_train_batch_size * steps_per_generation / G."""

    @property
    def packed_tokens(self) -> int:
        """L."""
        return self.prompt_tokens - 1 + self.num_generations * self.completion_tokens


@dataclass(frozen=True)
class Zero:
    """How ZeRO-3 cuts the model."""

    num_ranks: int
    """R."""
    offload_optimizer: bool = False
    offload_param: bool = False
    element_bytes: int = 2
    """e; 4 is training in float32."""
    max_live_weights: int = 10**9
    """``stage3_max_live_parameters``."""
    sub_group_weights: int = 10**9
    """``sub_group_size``."""
    gather_for_generation: bool = True
    """trl's ``ds3_gather_for_generation``."""
    gradient_checkpointing: bool = True
    with_reference: bool = False
    """A reference model beside the policy, as with ``beta`` above 0."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes; on the device of one rank, but for the last two."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    head: int
    optimizer_step: int
    rollout_weights: int
    kv_cache: int
    rollout_work: int
    host_weights: int
    host_optimizer: int

    @property
    def states(self) -> int:
        """What is there all the time."""
        return self.weights + self.gradients + self.optimizer

    @property
    def update_peak(self) -> int:
        """While a micro-step runs backward."""
        return self.states + self.gathered + self.activations + self.head

    @property
    def rollout_peak(self) -> int:
        """While completions are sampled."""
        return self.states + self.rollout_weights + self.kv_cache + self.rollout_work

    @property
    def peak(self) -> int:
        """The most of all phases."""
        return max(self.update_peak, self.rollout_peak, self.states + self.optimizer_step)

    @property
    def host(self) -> int:
        """Host memory of this rank's share."""
        return self.host_weights + self.host_optimizer

    def to_dict(self) -> dict[str, int]:
        """Terms and sums by name."""
        sums = ("states", "update_peak", "rollout_peak", "peak", "host")
        return asdict(self) | {name: getattr(self, name) for name in sums}


def estimate(shape: ModelShape, zero: Zero, batch: Batch) -> MemoryEstimate:
    """All terms.

    * weights: e N / R, and as much again for a reference model; gradients: e N / R
    * optimizer: 12 N / R: DeepSpeed's own float32 weights and Adam's two moments. Measured with
      deepspeed 0.19.8: 16 bytes a weight in bf16, 20 in float32, in all. DeepSpeed's estimator
      says 18.
    * gathered: e min(N, ``stage3_max_live_parameters``): layers on their way and kept for backward
    * optimizer_step: 4 min(N / R, ``sub_group_size``): a tile's gradients in float32
    * rollout_weights: e N where the whole model is gathered for sampling, else as ``gathered``
    * kv_cache: 2 e layers K (prompts (P + G C)); the prefix of a group is kept once
    * rollout_work: prefill's widest layer, e P (4 I + 4 H) a prompt, or sampling's logits in e and
      twice in float32, V (e + 8) a completion; whichever is more

    activations: :func:`activation_bytes`; head: :func:`head_bytes`.
    """
    share = -(-shape.num_weights // zero.num_ranks)
    e, prompts = zero.element_bytes, batch.prompts_per_rollout
    weights = e * share * (2 if zero.with_reference else 1)
    optimizer = _OPTIMIZER_BYTES * share
    gathered = e * min(shape.num_weights, zero.max_live_weights)
    cached = prompts * (batch.prompt_tokens + batch.num_generations * batch.completion_tokens)
    prefill = e * batch.prompt_tokens * 4 * (shape.intermediate_size + shape.hidden_size)
    sampling = shape.vocab_size * (e + 2 * _FP32) * batch.num_generations
    return MemoryEstimate(
        weights=0 if zero.offload_param else weights,
        gradients=0 if zero.offload_optimizer else e * share,
        optimizer=0 if zero.offload_optimizer else optimizer,
        gathered=gathered,
        activations=activation_bytes(shape, zero, batch),
        head=head_bytes(shape, zero, batch),
        optimizer_step=0 if zero.offload_optimizer else _FP32 * min(share, zero.sub_group_weights),
        rollout_weights=e * shape.num_weights if zero.gather_for_generation else gathered,
        kv_cache=2 * e * shape.num_hidden_layers * shape.kv_size * cached,
        rollout_work=prompts * max(prefill, sampling),
        host_weights=weights if zero.offload_param else 0,
        host_optimizer=e * share + optimizer if zero.offload_optimizer else 0,
    )


def activation_bytes(shape: ModelShape, zero: Zero, batch: Batch) -> int:
    """What forward keeps for backward in the layers, for the groups of a micro-step.

    Without gradient checkpointing all of every layer and vision block. With it the input of each,
    e H a token and e h a patch, and once more the layer or block that is being computed again.
    """
    tokens = batch.groups_per_micro_step * batch.packed_tokens
    patches = batch.groups_per_micro_step * batch.image_tokens * _PATCHES_PER_TOKEN
    layer = layer_bytes(shape, zero.element_bytes, batch) * batch.groups_per_micro_step
    block = patches * patch_bytes(shape, zero.element_bytes)
    layers, blocks = shape.num_hidden_layers, shape.vision.depth
    if not zero.gradient_checkpointing:
        return layers * layer + blocks * block
    inputs = layers * tokens * shape.hidden_size + blocks * patches * shape.vision.hidden_size
    return zero.element_bytes * inputs + max(layer, block)


def layer_bytes(shape: ModelShape, element_bytes: int, batch: Batch) -> int:
    """What a decoder layer keeps of one packed group.

    A token: the float32 input of both norms, 8 H, and their scales, 8; what they give before and
    after their weights, and the output's input, 5 e H; queries, keys and values, e (H + 2 K);
    softmax's sums, 4 heads; the MLP's gate, its activation, up and their product, 4 e I.

    Two-part attention (``attention.py``) keeps besides, of the completions, queries, e H G C, and
    keys and values with the prefix before each, 2 e K G (P + C); and its parts' outputs, e H L.
    """
    e, hidden, kv = element_bytes, shape.hidden_size, shape.kv_size
    norms = 2 * _FP32 * hidden + 2 * _FP32 + 5 * e * hidden
    attention = e * (hidden + 2 * kv) + _FP32 * shape.num_attention_heads
    token = norms + attention + 4 * e * shape.intermediate_size
    num_own = batch.num_generations * batch.completion_tokens
    seen = batch.num_generations * batch.prompt_tokens + num_own
    parts = e * (hidden * num_own + 2 * kv * seen + hidden * batch.packed_tokens)
    return token * batch.packed_tokens + parts


def patch_bytes(shape: ModelShape, element_bytes: int) -> int:
    """What a block of the vision tower keeps of a patch; h and i are its sizes.

    As :func:`layer_bytes`: 8 h + 8 + 5 e h for the norms; rotated queries and keys, the projection
    that values are a part of, and the windows' outputs, 6 e h, with 4 heads; 4 e i for the MLP.
    """
    e, tower = element_bytes, shape.vision
    norms = 2 * _FP32 * tower.hidden_size + 2 * _FP32 + 5 * e * tower.hidden_size
    attention = 6 * e * tower.hidden_size + _FP32 * tower.num_heads
    return norms + attention + 4 * e * tower.intermediate_size


def head_bytes(shape: ModelShape, zero: Zero, batch: Batch) -> int:
    """The head's backward: no logits of all tokens, but its gradient is whole and in float32.

    A tile of logits, e min(tokens, 4096) min(V, 32768); the gradient, 4 V H, and its cast, e V H.
    """
    scored = batch.groups_per_micro_step * batch.num_generations * batch.completion_tokens
    columns = min(shape.vocab_size, _HEAD_COLUMNS)
    tile = zero.element_bytes * min(scored, _HEAD_TOKENS) * columns
    return tile + (_FP32 + zero.element_bytes) * shape.embedding_weights
