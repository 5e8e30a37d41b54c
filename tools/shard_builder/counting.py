"""The progress of commands that are told of samples, not of records."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from shard_builder.build.progress import Progress, ProgressMode, show_progress


@contextmanager
def counting(
    mode: ProgressMode, phase: str, total: int | None
) -> Iterator[Callable[[int, int], None]]:
    """Gives a function that is told of samples and bytes that were just done, from any thread.

    Args:
        mode: How to show it.
        phase: What is going on.
        total: Samples in all, where that is known.
    """
    lock = threading.Lock()
    done = Progress(phase, total)

    with show_progress(mode) as tell:

        def count(num_samples: int, num_bytes: int) -> None:
            nonlocal done
            with lock:
                done = replace(
                    done,
                    num_records=done.num_records + num_samples,
                    num_image_bytes=done.num_image_bytes + num_bytes,
                )
                tell(done)

        yield count
