"""Settings from YAML files: plain values alone, and mistakes as one line with their place."""

import re
from pathlib import Path
from typing import Any

from grpo_stream.errors import ConfigError

_STANDARD_TAG = "tag:yaml.org,2002:"
_UNKNOWN_TAG = re.compile(r"could not determine a constructor for the tag '(.+)'")


def read_yaml(field: str, path: Path, hint: str) -> Any:
    """What a YAML file holds: mappings, lists, texts, numbers, dates, true, false and null.

    Args:
        field: The setting that names the file, for errors.
        path: The file.
        hint: What works, for errors.

    Raises:
        ConfigError: the file cannot be read, is no YAML, holds a tag that is not YAML's own or the
            same key twice; names the line.
        ImportError: there is no PyYAML.
    """
    import yaml  # noqa: PLC0415 - few need it

    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeError) as error:
        raise ConfigError(field, str(path), f"cannot be read ({error}); {hint}") from error
    except yaml.YAMLError as error:
        raise ConfigError(field, str(path), _mistake(error, hint)) from error
    # What YAML's own tags are made of fails as it likes: a date of month 99, a nest of a million.
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(field, str(path), f"holds no value ({words}); {hint}") from error
    lines: dict[str, int] = {}
    for node, _ in root.value if isinstance(root, yaml.MappingNode) else ():
        line = node.start_mark.line + 1
        if node.value in lines:
            expected = f"line {line} sets {node.value} again, after line {lines[node.value]}"
            raise ConfigError(field, str(path), f"{expected}; keep one of them")
        lines[node.value] = line
    return content


def _mistake(error: Any, hint: str) -> str:
    """A ``yaml.YAMLError`` as one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = "" if mark is None else f"line {mark.line + 1}"
    if tag := _UNKNOWN_TAG.match(problem or ""):
        shown = tag[1].replace(_STANDARD_TAG, "!!")
        return f"{place} has the tag {shown}, and tags are not read; write the value itself; {hint}"
    words = " ".join(f"{getattr(error, 'context', None) or ''} {problem or error}".split())
    return f"is no YAML ({words}{', ' * bool(place)}{place}); {hint}"
