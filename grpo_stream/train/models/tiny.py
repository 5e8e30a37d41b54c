"""A tiny policy with the real architecture and image processing of a family of models.

About a million random weights and a vocabulary trained in memory: enough to learn to point at a
shape on two CPU cores, small enough for tests. No download.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from grpo_stream.errors import ConfigError
from grpo_stream.families import FAMILIES
from grpo_stream.records.formats.json_stream import read_records
from grpo_stream.train.models.expert_weights import as_in_files
from grpo_stream.train.models.processor import ImageTextProcessor
from grpo_stream.train.models.tiny_families import (
    OWN_RECIPES,
    own_config,
    own_processor,
    special_tokens,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

_PYTORCH = {"format": "pt"}
_WIDTH = 128  # of the text model
_TOWER = {"hidden_size": 64, "intermediate_size": 128, "out_hidden_size": _WIDTH}
_NUM_LAYERS = 3
_ROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10.0}
_QWEN3_TOWER = _TOWER | {"num_position_embeddings": 256, "deepstack_visual_indexes": [0, 1]}
# It has no such indexes, and vLLM makes weights for those that it finds.
_QWEN3_5_TOWER = _QWEN3_TOWER | {"deepstack_visual_indexes": []}
_QWEN3_IMAGES = {
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
}
# As in the real ones. transformers always interleaves; vLLM does so where it is written.
_QWEN3_TEXT = {"head_dim": 32, "rope_parameters": {**_ROPE, "mrope_interleaved": True}}
_EXPERTS = {
    "norm_topk_prob": True,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "decoder_sparse_step": 1,
    "router_aux_loss_coef": 0.0,
}
_LINEAR = {
    # Half of a head is turned, in the real ones a quarter; the sections sum to half of that.
    "rope_parameters": {
        **_ROPE,
        "mrope_section": [2, 3, 3],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.5,
    },
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
}
_FULL = {"layer_types": ["full_attention"] * _NUM_LAYERS}


@dataclass(frozen=True)
class Recipe:
    """What is a family's own in a tiny policy."""

    tower: dict[str, Any]
    """Of the vision tower's configuration."""
    text: dict[str, Any]
    """Of the text model's."""
    images: dict[str, Any] = field(default_factory=dict)
    """Settings of the image processor; the size of a patch is the tower's."""


RECIPES: dict[str, Recipe] = {
    "qwen2_5_vl": Recipe(_TOWER | {"fullatt_block_indexes": [1]}, _FULL),
    "qwen2_vl": Recipe({"embed_dim": 64, "hidden_size": _WIDTH, "mlp_ratio": 2}, _FULL),
    "qwen3_vl": Recipe(_QWEN3_TOWER, _QWEN3_TEXT, _QWEN3_IMAGES),
    "qwen3_vl_moe": Recipe(_QWEN3_TOWER, _QWEN3_TEXT | _EXPERTS, _QWEN3_IMAGES),
    "qwen3_5": Recipe(_QWEN3_5_TOWER, _LINEAR, _QWEN3_IMAGES),
    "qwen3_5_moe": Recipe(
        _QWEN3_5_TOWER, _LINEAR | _EXPERTS | {"shared_expert_intermediate_size": 64}, _QWEN3_IMAGES
    ),
}
"""A row of ``grpo_stream.families.FAMILIES`` by its key -> how a tiny policy of it is made."""

TINY_FAMILIES = (*RECIPES, *OWN_RECIPES)
"""Those that a tiny policy can be made of."""

_CHAT_WORDS = ("user\n", "assistant\n", "system\n", ", ")  # parts of every prompt and answer

_IMAGE_PLACE = "<|vision_start|><|image_pad|><|vision_end|>"

# Qwen2.5-VL's turns, without its default system text: a system message stands where one is given.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + _IMAGE_PLACE + ""
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read_prompts(paths: Sequence[Path]) -> list[str]:
    """The prompts of raw records, each once, in order of first appearance.

    Raises:
        ConfigError: a file that is not there, or files without any prompt.
    """
    prompts: dict[str, None] = {}
    for path in paths:
        if not path.is_file():
            raise ConfigError("json", str(path), "is no file; give a JSON array or JSON Lines")
        for record in read_records(path):
            if isinstance(record, dict) and isinstance(record.get("prompt"), str):
                prompts[record["prompt"]] = None
    if not prompts:
        raise ConfigError("json", [str(path) for path in paths], "hold no record with a prompt")
    return list(prompts)


def task_texts(prompts: Iterable[str], max_coordinate: int, snap: int) -> list[str]:
    """What a vocabulary should know: the prompts, and answers with every coordinate.

    Args:
        prompts: Instructions.
        max_coordinate: Largest coordinate in pixels, exclusive.
        snap: A second coordinate takes multiples of this only, which keeps the list short.
    """
    second = range(0, max_coordinate, max(snap, 1))
    answers = [f"({x}, {y})" for x in range(max_coordinate) for y in second]
    return [*prompts, *answers]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 512, family: str = "qwen2_5_vl"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen's special tokens, and a family's, trained on ``texts``.

    Whole numbers up to three digits are kept together, so that each coordinate that occurs in
    ``texts`` becomes one token; any other text still encodes, byte by byte.
    """
    own = OWN_RECIPES.get(family)
    special = [*SPECIAL_TOKENS, *(special_tokens(own) if own else ())]
    tokenizer = Tokenizer(models.BPE())
    # Numbers, then words; what is left, such as ", ", stays together and becomes one token too.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated"),
            pre_tokenizers.Split(Regex(r" ?\p{L}+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *_CHAT_WORDS], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:],
        extra_special_tokens=own.named_tokens if own else {},
        padding_side="left",
    )
    fast.add_tokens([AddedToken(word, normalized=False) for word in (own.words if own else ())])
    image = own.image_token if own else _IMAGE_PLACE
    fast.chat_template = CHAT_TEMPLATE.replace(_IMAGE_PLACE, image)
    return fast


def tiny_config(tokenizer: PreTrainedTokenizerFast, family: str = "qwen2_5_vl") -> PreTrainedConfig:
    """About a million weights (Qwen2.5-VL: 956,000) in a family's real architecture.

    Two values are not scaled-down defaults, and it does not learn without them: weights are drawn
    wide (initializer_range 0.08; at 0.02 the image is ignored), and rope_theta is 10, since the
    rotary angles of a head of 32 would hardly differ between columns at 1,000,000.

    Args:
        tokenizer: Of :func:`train_tokenizer`.
        family: ``config.model_type``, one of :data:`RECIPES`.

    Raises:
        ConfigError: there is no such family.
    """
    if family not in TINY_FAMILIES:
        raise ConfigError("family", family, f"must be one of {', '.join(TINY_FAMILIES)}")
    token_id = tokenizer.convert_tokens_to_ids
    ends = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": token_id("<|im_end|>"),
        "pad_token_id": token_id("<|endoftext|>"),
    }
    if family in OWN_RECIPES:
        return own_config(family, tokenizer, ends)
    vision = {"depth": 2, "num_heads": 4, "initializer_range": 0.08}
    text = ends | {
        "hidden_size": _WIDTH,
        "intermediate_size": 384,
        "num_hidden_layers": _NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rope_parameters": dict(_ROPE),
        "initializer_range": 0.08,
        "tie_word_embeddings": False,
    }
    return AutoConfig.for_model(
        family,
        text_config=text | RECIPES[family].text,
        vision_config=vision | RECIPES[family].tower,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
        initializer_range=0.08,
    )


def make_tiny_policy(
    folder: Path, texts: Iterable[str], *, seed: int = 0, family: str = "qwen2_5_vl"
) -> Path:
    """Writes a tiny policy, model and processor, as ``from_pretrained`` reads them.

    Args:
        folder: Made when it is missing.
        texts: What the vocabulary is trained on: prompts and answers of the task.
        seed: Of the random weights.
        family: See :func:`tiny_config`.

    Returns:
        ``folder``.

    Raises:
        ConfigError: there is no such family.
    """
    tokenizer = train_tokenizer(texts, family=family)
    return write_policy(folder, tiny_config(tokenizer, family), tokenizer, seed=seed)


def write_policy(
    folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0
) -> Path:
    """Draws a policy's weights and writes it, model and processor.

    Args:
        folder: Made when it is missing.
        config: Of :func:`tiny_config`; its sizes may have been changed.
        tokenizer: The same as there.
        seed: Of the random weights.

    Returns:
        ``folder``.
    """
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1 and not weight.any():  # as Gemma 3's projection of images is drawn
            torch.nn.init.normal_(weight, std=0.08)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    if path.is_file():  # transformers keeps its own layout of experts
        save_file(dict(as_in_files(config.model_type, load_file(path).items())), path, _PYTORCH)
    write_processor(folder, config, tokenizer)
    return folder


def write_processor(
    folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Writes a policy's processor.

    Args:
        folder: Exists.
        config: Of a family that a tiny policy can be made of; of any size.
        tokenizer: Of :func:`train_tokenizer`.
    """
    if config.model_type in OWN_RECIPES:
        own_processor(config.model_type, tokenizer, tokenizer.chat_template).save_pretrained(folder)
        return
    images, kind = RECIPES[config.model_type].images, FAMILIES[config.model_type].processor
    assert kind is not None  # noqa: S101 - of Qwen-VL's kind
    ImageTextProcessor(
        Qwen2VLImageProcessorPil(patch_size=config.vision_config.patch_size, **images),
        tokenizer,
        chat_template=tokenizer.chat_template,
        stands_for=kind.name,
    ).save_pretrained(folder)
