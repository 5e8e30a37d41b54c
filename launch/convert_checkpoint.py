"""Makes a checkpoint of DeepSpeed ready for another number of ranks.

    python launch/convert_checkpoint.py --checkpoint out/checkpoint-500

Adds DeepSpeed's universal form inside of the checkpoint. A run with as many ranks as wrote it does
not look at it; one with more or fewer resumes from it (docs/checkpoints.md).
"""

import argparse
import sys
from pathlib import Path

from grpo_stream.errors import GrpoStreamError
from grpo_stream.flags import with_dashes
from grpo_stream.train.checkpoints.universal import make_universal


def main(argv: list[str]) -> int:
    """Runs the script; returns the process's exit code (0 done, 2 not such a checkpoint)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder checkpoint-N")
    parser.add_argument(
        "--num-processes",
        type=int,
        default=1,
        help="that convert at a time; each holds one rank's share in memory (%(default)s)",
    )
    args = parser.parse_args(with_dashes(argv))
    try:
        made = make_universal(args.checkpoint, num_processes=args.num_processes)
    except GrpoStreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{made}: resume from {args.checkpoint} with any number of ranks")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
