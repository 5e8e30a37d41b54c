"""Writes the model of a checkpoint as plain safetensors that ``from_pretrained`` loads.

    python launch/export.py --checkpoint out/checkpoint-500 --to models/pointer

Takes whole weights, ZeRO-3 shards, and LoRA adapters, which it merges (docs/checkpoints.md).
"""

import argparse
import sys
from pathlib import Path

from grpo_stream.errors import GrpoStreamError
from grpo_stream.flags import with_dashes
from grpo_stream.train.checkpoints.export import export

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: list[str]) -> int:
    """Runs the script; returns the process's exit code (0 done, 2 nothing was written)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder checkpoint-N")
    parser.add_argument("--to", type=Path, required=True, help="new or empty folder")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (as they are)")
    args = parser.parse_args(with_dashes(argv))
    try:
        source = export(args.checkpoint, args.to, args.dtype)
    except GrpoStreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.to}: {source}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
