"""Work that some ranks do for all: what stops one of them stops all, with the same error."""

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils import gather_object

from grpo_stream.errors import GrpoStreamError

T = TypeVar("T")


def together(work: Callable[[], T], *, does: bool) -> list[T | None]:
    """What ``work`` returns on each rank, None where a rank does not do it. Every rank must call.

    Args:
        work: May raise errors of this project.
        does: Whether this rank does it.

    Raises:
        GrpoStreamError: that of the first rank that failed, on every rank.
    """
    done: T | None = None
    failed: GrpoStreamError | None = None
    try:
        done = work() if does else None
    except GrpoStreamError as error:
        failed = error
    told: list[tuple[T | None, GrpoStreamError | None]] = gather_object([(done, failed)])
    for _, its_error in told:
        if its_error is not None:
            raise its_error
    return [result for result, _ in told]
