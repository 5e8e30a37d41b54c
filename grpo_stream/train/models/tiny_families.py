"""Tiny policies of families that are not of Qwen-VL's kind: sizes and processors of their own."""

from dataclasses import dataclass, field, replace
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast

from grpo_stream.train.models.processor import without_video

IMAGE_SIZE = 56
"""Of a tile, in pixels."""
_WIDTH = 64
_PATCH = 14
_NUM_PATCHES = (IMAGE_SIZE // _PATCH) ** 2
_TEXT = {
    "hidden_size": _WIDTH,
    "intermediate_size": 2 * _WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,  # the narrowest that vLLM has on the CPU
    "max_position_embeddings": 8192,
    "initializer_range": 0.08,
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": _PATCH,
}
_CLIP = _TOWER | {"model_type": "clip_vision_model"}
_SIGLIP = _TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}
_IMAGE, _BEGIN, _END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
_SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
_PINPOINTS = [[IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE]]


@dataclass(frozen=True)
class OwnRecipe:
    """What is a family's own in a tiny policy with a processor of its own."""

    processor: str
    """Its class in transformers."""
    image_processor: str
    video_processor: str | None = None
    """The class of its video half, which is named in saved files."""
    video: dict[str, Any] = field(default_factory=dict)
    """Settings of that half, beside those of images."""
    text: dict[str, Any] = field(default_factory=dict)
    """Of the text model's configuration, beside the common sizes."""
    tower: dict[str, Any] = field(default_factory=dict)
    """Of the vision tower's."""
    config: dict[str, Any] = field(default_factory=dict)
    """Of the whole model's."""
    ids: dict[str, str] = field(default_factory=dict)
    """Of the whole model's: field -> the token whose id it is."""
    images: dict[str, Any] = field(default_factory=dict)
    """Settings of the image processor."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the processor."""
    named_tokens: dict[str, str] = field(default_factory=dict)
    """What the processor asks the tokenizer for: attribute -> token."""
    words: tuple[str, ...] = ()
    """Tokens of its own that are text, not control words."""
    image_token: str = _IMAGE
    """What stands for an image in a text."""


_IDEFICS_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
_IDEFICS = OwnRecipe(
    # SmolVLM's own processor does the same, but asks for the package num2words, for videos.
    processor="Idefics3Processor",
    image_processor="Idefics3ImageProcessorPil",
    text={"model_type": "llama"},
    tower=_TOWER,
    config={"scale_factor": 2},
    ids={"image_token_id": "<image>"},
    images={
        "size": {"longest_edge": 2 * IMAGE_SIZE},
        "max_image_size": {"longest_edge": IMAGE_SIZE},
    },
    options={"image_seq_len": _NUM_PATCHES // 4},
    image_token="<image>",
)
_LLAVA = OwnRecipe(
    processor="LlavaProcessor",
    image_processor="CLIPImageProcessorPil",
    text={"model_type": "llama"},
    tower=_CLIP,
    config={"image_seq_length": _NUM_PATCHES},
    ids={"image_token_index": _IMAGE},
    images={"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": _SQUARE},
    options={
        "patch_size": _PATCH,
        "vision_feature_select_strategy": "default",
        "image_token": _IMAGE,
        "num_additional_image_tokens": 1,
    },
)
# As in the real ones, half of a head is turned, and mrope_section sums to half of that.
_GLM_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}
_GLM_VIDEO = {"size": {"shortest_edge": 112 * 112, "longest_edge": 112 * 112 * 16}}
_GLM = OwnRecipe(
    processor="Glm4vProcessor",
    image_processor="Glm4vImageProcessorPil",
    video_processor="Glm4vVideoProcessor",
    video=_GLM_VIDEO,
    text={"rope_parameters": _GLM_ROPE, "attention_bias": True},
    tower={
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 64,
        "out_hidden_size": _WIDTH,
        "image_size": IMAGE_SIZE,
    },
    ids={
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    },
    named_tokens={"image_token": "<|image|>", "video_token": "<|video|>"},
    image_token="<|begin_of_image|><|image|><|end_of_image|>",
)

OWN_RECIPES: dict[str, OwnRecipe] = {
    "glm4v": _GLM,
    "glm46v": replace(
        _GLM,
        processor="Glm46VProcessor",
        image_processor="Glm46VImageProcessorPil",
        video_processor="Glm46VVideoProcessor",
        text=_GLM.text | {"model_type": "glm4v_text"},
        tower=_GLM.tower | {"model_type": "glm4v_vision"},
    ),
    "gemma3": OwnRecipe(
        processor="Gemma3Processor",
        image_processor="Gemma3ImageProcessorPil",
        text={
            "query_pre_attn_scalar": 16,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        tower=_SIGLIP,
        config={"mm_tokens_per_image": 4},
        ids={"boi_token_index": _BEGIN, "eoi_token_index": _END, "image_token_index": _IMAGE},
        images={"size": _SQUARE},
        options={"image_seq_length": 4},
        named_tokens={"boi_token": _BEGIN, "eoi_token": _END, "image_token": _IMAGE},
        # As in the real one, whose processor puts two behind and before each image.
        words=("\n", "\n\n", "\n\n\n", "\n\n\n\n"),
        image_token=_BEGIN,
    ),
    "internvl": OwnRecipe(
        processor="InternVLProcessor",
        image_processor="GotOcr2ImageProcessorPil",
        video_processor="InternVLVideoProcessor",
        text={"model_type": "qwen2"},
        tower=_TOWER | {"image_size": [IMAGE_SIZE] * 2, "patch_size": [_PATCH] * 2},
        config={"image_seq_length": _NUM_PATCHES // 4},
        ids={"image_token_id": _IMAGE},
        images={"size": _SQUARE, "crop_to_patches": True, "min_patches": 1, "max_patches": 3},
        options={"image_seq_length": _NUM_PATCHES // 4},
        named_tokens={
            "start_image_token": _BEGIN,
            "end_image_token": _END,
            "context_image_token": _IMAGE,
            "video_token": "<|video_pad|>",
        },
    ),
    "paligemma": OwnRecipe(
        processor="PaliGemmaProcessor",
        image_processor="SiglipImageProcessorPil",
        text={"model_type": "gemma"},
        tower=_SIGLIP,
        config={"projection_dim": _WIDTH},
        ids={"image_token_index": "<image>"},
        images={"size": _SQUARE, "image_seq_length": _NUM_PATCHES},
        named_tokens={"bos_token": "<|object_ref_start|>"},
        image_token="<image>",
    ),
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "llava_onevision": OwnRecipe(
        processor="LlavaOnevisionProcessor",
        image_processor="LlavaOnevisionImageProcessorPil",
        video_processor="LlavaOnevisionVideoProcessor",
        text={"model_type": "qwen2"},
        tower=_SIGLIP,
        config={"image_grid_pinpoints": _PINPOINTS, "vision_aspect_ratio": "anyres_max_9"},
        ids={"image_token_index": _IMAGE, "video_token_index": "<|video_pad|>"},
        images={"size": _SQUARE, "image_grid_pinpoints": _PINPOINTS},
        options={
            "num_image_tokens": _NUM_PATCHES,
            "vision_feature_select_strategy": "full",
            "image_token": _IMAGE,
            "video_token": "<|video_pad|>",
        },
    ),
    "llava": _LLAVA,
    "llava_next": OwnRecipe(
        processor="LlavaNextProcessor",
        image_processor="LlavaNextImageProcessorPil",
        text={"model_type": "llama"},
        tower=_CLIP,
        config={"image_seq_length": _NUM_PATCHES, "image_grid_pinpoints": _PINPOINTS},
        ids={"image_token_index": _IMAGE},
        images={
            "size": {"shortest_edge": IMAGE_SIZE},
            "crop_size": _SQUARE,
            "image_grid_pinpoints": _PINPOINTS,
        },
        options={
            "patch_size": _PATCH,
            "vision_feature_select_strategy": "default",
            "image_token": _IMAGE,
            "num_additional_image_tokens": 1,
        },
    ),
}
"""``config.model_type`` -> how a tiny policy of it is made."""


def special_tokens(recipe: OwnRecipe) -> tuple[str, ...]:
    """Tokens that the family has beside those of every tiny policy."""
    if recipe.processor == "Idefics3Processor":
        return _IDEFICS_TOKENS
    if recipe.video is _GLM_VIDEO:
        return tuple(recipe.ids.values())
    return () if recipe.image_token.startswith("<|") else (recipe.image_token,)


def own_config(family: str, tokenizer: PreTrainedTokenizerFast, ends: dict[str, Any]) -> Any:
    """The configuration of a tiny policy.

    Args:
        family: One of :data:`OWN_RECIPES`.
        tokenizer: Its own.
        ends: What all text models are told of the tokenizer.
    """
    recipe = OWN_RECIPES[family]
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in recipe.ids.items()}
    return transformers.AutoConfig.for_model(
        family,
        text_config=_TEXT | ends | recipe.text,
        vision_config=recipe.tower,
        tie_word_embeddings=False,
        **recipe.config,
        **ids,
    )


def own_processor(family: str, tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Any:
    """The processor of a tiny policy, as the family's own class makes it.

    Args:
        family: One of :data:`OWN_RECIPES`.
        tokenizer: Its own; is told the names of its image tokens.
        chat_template: With ``<image>`` where an image is to be.
    """
    recipe = OWN_RECIPES[family]
    kind = without_video(getattr(transformers, recipe.processor))
    images = getattr(transformers, recipe.image_processor)(**recipe.images)
    processor = kind(images, tokenizer, chat_template=chat_template, **recipe.options)
    if recipe.video_processor is not None:
        named = {"video_processor_type": recipe.video_processor}
        processor.video_settings = recipe.images | recipe.video | named
    return processor
