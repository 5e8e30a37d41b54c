"""What is said of a build that leaves out much: the share, its causes, and the flags that help."""

from collections import Counter
from collections.abc import Collection, Mapping

WARN_SHARE = 0.05
"""A build that leaves out more says so on its last line."""

_NUM_CAUSES = 3
_FLAGS = {
    "several_boxes": "--several keep",
    "several_images": "--several keep",
    "image_missing": "--image-key",
    "image_not_text": "--image-key",
    "prompt_missing": "--prompt-key",
    "prompt_not_text": "--prompt-key",
    "solution_missing": "--solution-key",
    "answer_no_box": "--solution-key",
    "solution_not_list": "--solution-key",
    "solution_length": "--box-format",
    "box_reversed": "--box-format",
    "box_outside": "--box-format",
    "box_mostly_outside": "--box-format",
    "point_outside": "--coords",
    "solution_out_of_range": "--coords",
    "solution_looks_like_unit": "--coords",
    "conversation_missing": "--format",
}
"""Cause of a reject -> the flag that may be missing."""


def share_text(
    num_records: int,
    causes: Mapping[str, int],
    examples: Mapping[str, str],
    given: Collection[str] = (),
) -> str:
    """The share of records that were left out, and of the most frequent causes an example each.

    Args:
        num_records: All that were judged.
        causes: Rejected records by cause.
        examples: By cause, where the first stands and what is wrong with it.
        given: Flags that the user gave; no hint names them.
    """
    num_rejects = sum(causes.values())
    lines = [
        f"{num_rejects} of {num_records} records are left out ({num_rejects / num_records:.0%})"
    ]
    for cause, count in Counter(causes).most_common(_NUM_CAUSES):
        flag = _FLAGS.get(cause, "")
        hint = f" (see {flag})" if flag and flag.split()[0] not in given else ""
        lines.append(f"  {cause} {count}{hint}: for example {examples.get(cause, '')}")
    return "\n".join(lines)


def warning_line(num_records: int, causes: Mapping[str, int]) -> str | None:
    """The last line of a build that leaves out more than :data:`WARN_SHARE`; else None."""
    num_rejects = sum(causes.values())
    if num_records == 0 or num_rejects <= WARN_SHARE * num_records:
        return None
    common = ", ".join(
        f"{cause} {count}" for cause, count in Counter(causes).most_common(_NUM_CAUSES)
    )
    share = num_rejects / num_records
    return f"warning: {num_rejects} of {num_records} records are left out ({share:.0%}): {common}"
