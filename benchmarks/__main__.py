"""``python -m benchmarks COMMAND``: what the stream and the builder do, in numbers."""

import argparse
import sys
from collections.abc import Sequence

from grpo_stream.errors import GrpoStreamError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code (0 done, 2 settings that cannot work)."""
    # Here, because the builder's worker processes import this module again.
    from benchmarks.build import build, memory, parts, upload  # noqa: PLC0415
    from benchmarks.fuzz import fuzz  # noqa: PLC0415
    from benchmarks.gpu import decode, gpu_check, launches  # noqa: PLC0415
    from benchmarks.kill import kill_resume  # noqa: PLC0415
    from benchmarks.loaders import (  # noqa: PLC0415
        byte_counts,
        first_batch,
        loader,
        order,
        workers,
    )
    from benchmarks.scale import plan_size, scale  # noqa: PLC0415
    from benchmarks.step import growth, step  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (order, loader, first_batch, byte_counts, workers, plan_size):
        module.add_command(commands)
    for module in (build, upload, memory, parts, step, growth, scale, kill_resume, fuzz):
        module.add_command(commands)
    for module in (launches, decode, gpu_check):
        module.add_command(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except GrpoStreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
