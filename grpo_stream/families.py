"""What a model family is: all that the project knows of one by its name, in one table.

What a family's own files say (sizes of its layers and patches, means of pixels, chat format) is
read from them and not repeated here. So a family without a row works, too: its processor encodes
each prompt, its groups are computed in trl's layout, and its answer frame must be set.

A new family is a row here; for tests, its recipe under the same key in
``grpo_stream/train/models/tiny.py``, and its figures in ``tests/train/models/test_families.py``;
where its image processor needs torchvision, in ``test_given_families.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from grpo_stream.boxes import Frame


@dataclass(frozen=True)
class QwenProcessor:
    """A processor that resizes by ``smart_resize`` and cuts patches, as Qwen-VL's do.

    Its work is done on the device (``train/models/patches.py``), and without torchvision
    (``ImageTextProcessor``).
    """

    name: str
    """Its class in transformers."""
    video_processor: str
    """The class of its video half, which is named in saved files."""
    resize_multiple: int
    """Sides of an image are multiples of this many pixels: patch_size x merge_size."""


@dataclass(frozen=True)
class Family:
    """One row of :data:`FAMILIES`."""

    answer_frame: Frame
    """What it was trained to answer in; where it has no habit of its own, what it is asked for."""
    processor: QwenProcessor | None = None
    """None for any other kind: it encodes each prompt by itself (``processor_only.py``)."""
    is_packed: bool = False
    """Whether its text layers attend fully, so that a group may be tried as one packed row."""
    is_prefix_lm: bool = False
    """Whether its prompt sees itself in both directions: token types are 0 in the prompt and 1
    behind it, and a prompt without its last token would be another one."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Built-in prompt templates, and those that it is asked with in their place."""
    vision_tokens: tuple[str, ...] = ()
    """Never sampled: a completion with one of them would ask for an image that is not there."""


_QWEN = Family(
    answer_frame="per_mille",
    is_packed=True,
    vision_tokens=("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
)
_QWEN3 = replace(
    _QWEN, processor=QwenProcessor("Qwen3VLProcessor", "Qwen3VLVideoProcessor", resize_multiple=32)
)

FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": replace(
        _QWEN,
        answer_frame="model",
        processor=QwenProcessor("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor", resize_multiple=28),
    ),
    "qwen2_vl": replace(
        _QWEN,
        processor=QwenProcessor("Qwen2VLProcessor", "Qwen2VLVideoProcessor", resize_multiple=28),
        # It writes boxes as two corners, and has seen no computer_use tool.
        templates={
            "box": "box_pairs",
            "box_thinking": "box_pairs_thinking",
            "click": "point",
            "click_thinking": "point_thinking",
        },
    ),
    # Features of the tower go to several layers of the text model ("deepstack").
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": replace(_QWEN3, is_packed=False),
    # Three of four layers are a linear attention, whose state a packed row would mix.
    "qwen3_5": replace(_QWEN3, is_packed=False),
    "qwen3_5_moe": replace(_QWEN3, is_packed=False),
    **dict.fromkeys(
        (
            "glm4v",
            "glm46v",
            "internvl",
            "gemma3",
            "smolvlm",
            "idefics3",
            "gemma4",
            "lfm2_vl",
            "kimi_k25",
            "minicpmv4_7",
            "llava_next",
            "llava_onevision",
            "mistral3",
        ),
        Family(answer_frame="per_mille"),
    ),
    "paligemma": Family(answer_frame="per_mille", is_prefix_lm=True),
}
"""transformers' ``config.model_type`` -> the family."""

NO_VLLM: dict[str, str] = {
    **dict.fromkeys(
        ("llava", "llava_next", "llava_onevision", "mistral3"),
        "vLLM 0.30 asks transformers for PixtralRotaryEmbedding, which is gone in 5.23",
    ),
    # Its stand-in for such families takes transformers' own classes, and changes them for good.
    **dict.fromkeys(
        ("glm46v", "kimi_k25", "minicpmv4_7"),
        "vLLM 0.30 has no model by the name of transformers' class",
    ),
    "paligemma": "its prompt sees itself in both directions, and in vLLM 0.30 an image alone does",
}
"""Families that vLLM cannot sample for, with a row or without -> why."""

PREFIX_LMS = frozenset(model_type for model_type, row in FAMILIES.items() if row.is_prefix_lm)
"""Those whose prompt sees itself in both directions."""

QWEN_PROCESSORS = {row.processor.name: row.processor for row in FAMILIES.values() if row.processor}
"""The processors of the table by their class's name."""

VISION_TOKENS = tuple(
    dict.fromkeys(token for family in FAMILIES.values() for token in family.vision_tokens)
)
"""Those of all families, for a tokenizer whose family has no row, too: it knows some or none."""
