"""A reward under which a policy that knows nothing has something to learn."""

import zlib
from typing import Any


def some_reward(completions: list[Any], **_: Any) -> list[float]:
    """From 0 to 1 by the text: deterministic, and different within every group."""
    return [zlib.crc32(str(completion).encode()) % 11 / 10 for completion in completions]
