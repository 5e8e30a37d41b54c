"""Every error that this project raises on purpose.

A message names what was found, what was expected and what to do. Model output is data, never an
error: see ``grpo_stream.grounding.answers``. No message shows a secret of a URL, or sends a control
character to a terminal.
"""

from grpo_stream.printable import printable


class GrpoStreamError(Exception):
    """Base of all errors raised on purpose."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigError(GrpoStreamError, ValueError):
    """A setting cannot work; raised before anything is loaded.

    Args:
        field: Name of the setting as the user writes it.
        value: The value that was found.
        expected: What would work, in words, with at least one value that does.
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        expected = printable(expected)
        super().__init__(f"{field}={value!r}: {expected}")
        self.field = field
        self.value = printable(value) if isinstance(value, str) else value
        self.expected = expected

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.expected)


class _CausedError(GrpoStreamError):
    """An error with a short fixed word (``cause``) for counting and a sentence for people."""

    def __init__(self, cause: str, detail: str) -> None:
        detail = printable(detail)
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail

    def __reduce__(self) -> tuple[type["_CausedError"], tuple[str, str]]:
        return type(self), (self.cause, self.detail)


class ImageError(_CausedError):
    """Bytes that are no usable image."""


class RecordError(_CausedError):
    """A raw record that cannot become a sample."""


class StoreError(_CausedError):
    """A folder, file or object that cannot be read or written."""

    retry_after_seconds = 0.0
    """How long the server asked to be left alone."""


class ManifestError(GrpoStreamError):
    """A data set whose manifest is missing, of another version or inconsistent."""


class ShardFormatError(_CausedError):
    """A shard or index whose bytes are not what the format says."""


class CursorError(GrpoStreamError):
    """A saved position that does not belong to this data set or these settings."""


class CheckpointError(GrpoStreamError):
    """A checkpoint that is not whole, or that could not be written."""


class BadSamplesError(GrpoStreamError):
    """More samples failed than the stated tolerance."""


class BadStepsError(GrpoStreamError):
    """More steps than the stated tolerance had a gradient that is not finite."""


class RewardError(GrpoStreamError):
    """A reward function returned what cannot be trained on."""


class WorkerDiedError(GrpoStreamError):
    """A worker process ended without a word: killed from outside, or for want of memory."""
