"""The further variables of a model's own chat template: how they are given, which it knows."""

import json
from collections.abc import Mapping
from typing import Any

from transformers.utils.chat_template_utils import _get_template_variables

from grpo_stream.errors import ConfigError

KWARGS_HELP = (
    "Further variables of the model's chat template, as a mapping or as JSON, for example "
    "'{\"enable_thinking\": false}'."
)
_THINKING = "enable_thinking"  # of Qwen3.5's and many others' templates
_FIELD = "chat_template_kwargs"


def chat_template_variables(given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """The setting ``chat_template_kwargs``, as a mapping of a YAML file or as JSON of a flag.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise _wrong(given) from None
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise _wrong(given)
    return {str(name): value for name, value in given.items()}


def chat_template_notes(processor: Any, given: Mapping[str, Any]) -> list[str]:
    """What should be known of a model's chat template and the variables that it is given.

    Args:
        processor: The model's.
        given: ``chat_template_kwargs``.
    """
    known = known_variables(processor)
    notes = [
        f"{_FIELD}: the model's chat template knows no {name}, which has no effect"
        for name in given
        if name not in known
    ]
    if _THINKING in known and _THINKING not in given:
        notes.append(
            f"the model's chat template knows {_THINKING}, which is not set: many such models then "
            f"reason at length before they answer; {_FIELD}={{{_THINKING}: false}} spares it"
        )
    return notes


def known_variables(processor: Any) -> frozenset[str]:
    """Names that the processor's chat template asks for."""
    template = getattr(processor, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    names: frozenset[str] = _get_template_variables(template)
    return names


def _wrong(value: object) -> ConfigError:
    example = '{"enable_thinking": false}'
    return ConfigError(_FIELD, value, f"must be a mapping, as JSON for example {example}")
