"""What a user names as the model: a folder, also of a LoRA adapter, or an id of the hub."""

import json
from pathlib import Path

from grpo_stream.errors import ConfigError

EXAMPLE = "Qwen/Qwen2.5-VL-3B-Instruct"
"""An id of the hub."""

ADAPTER_NAME = "adapter_config.json"
"""File of a folder that holds a LoRA adapter."""


def check_model_path(model_id: str | Path) -> None:
    """Refuses what can be no id of the hub, and is no folder.

    Raises:
        ConfigError: saying so; libraries would speak of how an id is written.
    """
    text = str(model_id)
    is_path = text.startswith(("/", ".", "~")) or text.count("/") > 1
    if is_path and not Path(text).is_dir():
        found = "is no folder" if Path(text).exists() else "does not exist"
        expected = f"{found}; give a folder or a hub id, for example {EXAMPLE}"
        raise ConfigError("model_name_or_path", text, expected)


def base_model_of(model_id: str | Path) -> str | None:
    """The base model of a LoRA adapter's folder; None for anything else.

    Raises:
        ConfigError: the adapter names no base, or one that has gone.
    """
    path = Path(model_id, ADAPTER_NAME)
    if not path.is_file():
        return None
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    try:
        if not base:
            raise ConfigError("model_name_or_path", base, "must be a folder or a hub id")
        check_model_path(base)
    except ConfigError as error:
        expected = f"is the base of this adapter and {error.expected}; write it into {path}"
        raise ConfigError("base_model_name_or_path", base, expected) from error
    return str(base)


def cannot_load(model_id: str | Path, what: str, error: Exception) -> ConfigError:
    """The error of a folder or id from which something cannot be loaded.

    Args:
        model_id: As the user wrote it.
        what: In words, for example ``cannot be loaded``.
        error: Why; its first line is told.
    """
    where = "" if Path(model_id).is_dir() else "does not exist here, and on the hub it "
    reason = str(error).strip().partition("\n")[0]
    expected = f"{where}{what} ({reason}); give a folder or a hub id, for example {EXAMPLE}"
    return ConfigError("model_name_or_path", str(model_id), expected)
