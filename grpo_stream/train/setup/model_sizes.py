"""Sizes of the Qwen2.5-VL models, and how many weights follow from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_stream.errors import ConfigError

_PATCH_VALUES = 3 * 2 * 14 * 14
"""Channels, frames, and pixels of a patch."""
_MERGED = 4
"""Patches of one visual token."""


@dataclass(frozen=True)
class VisionShape:
    """The vision tower; the names are those of transformers' ``Qwen2_5_VLVisionConfig``."""

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16


@dataclass(frozen=True)
class ModelShape:
    """The language model and its vision tower; names as in ``Qwen2_5_VLTextConfig``."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    vision: VisionShape = VisionShape()

    @property
    def kv_size(self) -> int:
        """Elements of a token's keys in a layer, and of its values."""
        return self.hidden_size // self.num_attention_heads * self.num_key_value_heads

    @property
    def layer_weights(self) -> int:
        """Of one decoder layer: q, k, v with biases, o; gate, up, down; two norms."""
        hidden, kv = self.hidden_size, self.kv_size
        attention = 2 * hidden * hidden + hidden + 2 * (hidden * kv + kv)
        return attention + 3 * hidden * self.intermediate_size + 2 * hidden

    @property
    def embedding_weights(self) -> int:
        """Of the table of tokens; the head has as many, its own or the same."""
        return self.vocab_size * self.hidden_size

    @property
    def vision_weights(self) -> int:
        """Of patch embedding, blocks and merger."""
        hidden, inner = self.vision.hidden_size, self.vision.intermediate_size
        attention = 4 * hidden * hidden + 4 * hidden
        block = attention + 3 * hidden * inner + 2 * inner + hidden + 2 * hidden
        wide = _MERGED * hidden
        merger = hidden + wide * wide + wide + wide * self.hidden_size + self.hidden_size
        return _PATCH_VALUES * hidden + self.vision.depth * block + merger

    @property
    def num_weights(self) -> int:
        """N, of the whole model."""
        tables = self.embedding_weights * (1 if self.tie_word_embeddings else 2)
        text = self.num_hidden_layers * self.layer_weights + self.hidden_size
        return tables + text + self.vision_weights

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ModelShape":
        """Reads the ``config.json`` of a Qwen2.5-VL model, in the hub's form or transformers 5's.

        Raises:
            ConfigError: it is of another model family.
        """
        text = config.get("text_config", config)
        try:
            tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
            tower = VisionShape(**{name: config["vision_config"][name] for name in _VISION_NAMES})
            return cls(**{n: text[n] for n in _TEXT_NAMES}, tie_word_embeddings=tied, vision=tower)
        except KeyError as error:
            expected = f"lacks {error}; must be a Qwen2.5-VL model's, or one of {', '.join(SHAPES)}"
            raise ConfigError("model", config.get("model_type"), expected) from error


_TEXT_NAMES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
_VISION_NAMES = ("depth", "hidden_size", "intermediate_size", "num_heads")

SHAPES = {
    "3B": ModelShape(36, 2048, 11008, 16, 2, 151936, tie_word_embeddings=True),
    "7B": ModelShape(28, 3584, 18944, 28, 4, 152064, tie_word_embeddings=False),
    "32B": ModelShape(64, 5120, 27648, 40, 8, 152064, False, VisionShape(intermediate_size=3456)),
    "72B": ModelShape(80, 8192, 29568, 64, 8, 152064, False, VisionShape(intermediate_size=3456)),
}
"""Qwen2.5-VL by the size in its name.

Source: ``config.json`` of ``Qwen/Qwen2.5-VL-{3B,7B,32B,72B}-Instruct`` on the Hugging Face hub; the
weights that follow are as many as the hub counts (3,754,622,976 of the 3B model, and so on).
"""


def find_shape(model: str) -> ModelShape:
    """The shape of ``3B``, ``Qwen/Qwen2.5-VL-3B-Instruct``, or of a model in a folder.

    Raises:
        ConfigError: it is none of them.
    """
    path = Path(model) / "config.json"
    if path.is_file():
        return ModelShape.from_config(json.loads(path.read_text(encoding="utf-8")))
    for name, shape in SHAPES.items():
        if model.upper() == name or f"QWEN2.5-VL-{name}" in model.upper():
            return shape
    expected = f"must be one of {', '.join(SHAPES)}, or a folder with a config.json"
    raise ConfigError("model", model, expected)
