"""Makes a tiny from-scratch policy with a real architecture; downloads nothing.

    python launch/tiny_policy.py --json records.json --out out/tiny --max-coordinate 112 --snap 8

Its vocabulary is trained in memory on the records' prompts and on every answer "(x, y)" up to
max_coordinate, so that each coordinate becomes one token.
"""

import argparse
import sys
from pathlib import Path

from grpo_stream.errors import GrpoStreamError
from grpo_stream.flags import with_dashes
from grpo_stream.train.models.tiny import TINY_FAMILIES, make_tiny_policy, read_prompts, task_texts


def main(argv: list[str]) -> int:
    """Runs the script; returns the process's exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, nargs="+", required=True, help="raw records")
    parser.add_argument("--out", type=Path, required=True, help="folder of the policy")
    parser.add_argument("--max-coordinate", type=int, default=112, help="in pixels, exclusive")
    parser.add_argument("--snap", type=int, default=8, help="answers are multiples of this")
    parser.add_argument("--family", choices=TINY_FAMILIES, default="qwen2_5_vl", help="model_type")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    args = parser.parse_args(with_dashes(argv))
    try:
        texts = task_texts(read_prompts(args.json), args.max_coordinate, args.snap)
        make_tiny_policy(args.out, texts, seed=args.seed, family=args.family)
    except GrpoStreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"a tiny policy is in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
