"""Says where every rank of a run stands, and who is silent since when.

    python launch/health.py out/qwen2_5_vl_7b
    python launch/health.py out/qwen2_5_vl_7b --silent-after 300 --all

Reads the files that the ranks leave in OUT/heartbeat, so it works beside a run that hangs or has
ended, from any machine that sees the folder. Ends with 0 if all ranks spoke lately or have ended
their training, else with 1.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from grpo_stream.flags import with_dashes
from grpo_stream.train.observe.heartbeat import ENDED, missing_ranks, read_beats, table

_MAX_LINES = 20


def main(argv: Sequence[str]) -> int:
    """Prints the lines; returns the process's exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", help="of the run")
    parser.add_argument("--silent-after", type=float, default=300.0, help="seconds (%(default)s)")
    parser.add_argument("--all", action="store_true", help="not only the 20 most silent ranks")
    args = parser.parse_args(with_dashes(argv))
    beats, now = read_beats(args.output_dir), time.time()
    if not beats:
        print(f"no heartbeats in {args.output_dir}: no rank has begun to train there")
        return 1
    lines = table(beats, now).splitlines()
    print("\n".join(lines if args.all else lines[: _MAX_LINES + 1]))
    running = [beat for beat in beats if beat.stage != ENDED]
    silent = [beat for beat in running if now - beat.time > args.silent_after]
    missing = missing_ranks(beats)
    steps = sorted(beat.global_step for beat in beats)
    print(
        f"{len(beats)} ranks at global steps {steps[0]} to {steps[-1]}; {len(silent)} silent for "
        f"more than {args.silent_after:g} s; {len(missing)} never heard of {missing[:8] or ''}"
    )
    return 1 if silent or missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
