"""Measures a build in two parts by number of records: time, size and memory of its plan and end.

The images are few and tiny, so that what grows with the number of records shows. Bytes a record and
records a second say what 10^8 of them take (docs/building_at_scale.md).
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks.build.memory import peak_bytes, write_raw
from benchmarks.command_line import Commands, new_command

_NUM_PARTS = 2


def add_command(commands: Commands) -> None:
    """Adds ``parts`` to the command line."""
    command = new_command(commands, "parts", "a build in parts: plan and end by size", __doc__)
    add = command.add_argument
    add("--num-records", type=int, nargs="+", default=[100_000], help="sizes (%(default)s)")
    add("--samples-per-shard", type=int, default=1000, help="(%(default)s)")
    add("--shuffle", action="store_true", help="shuffle the records")
    add("--plan-only", action="store_true", help="leave out the build and its end")
    add("--folder", type=Path, help="for the files; a temporary one if not given")
    add("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the figures of each size."""
    figures = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as temp:
        for num_records in tqdm(args.num_records, "sizes", disable=args.json):
            folder = Path(temp) / str(num_records)
            figures[num_records] = _measure(args, folder, num_records)
            shutil.rmtree(folder)
    if args.json:
        print(json.dumps(figures))
        return
    for num_records, values in figures.items():
        print(f"{num_records} records")
        for name, value in values.items():
            print(f"  {name:<28}{value:>14,.1f}")


def _measure(args: argparse.Namespace, folder: Path, num_records: int) -> dict[str, float]:
    write_raw(folder, num_records, 0, ["jsonl"])
    out = folder / "out"
    words = ["build", str(folder / "records.jsonl"), "--images-root", str(folder)]
    words += ["--out", str(out), "--check", "header", "--workers", "1"]
    words += ["--samples-per-shard", str(args.samples_per_shard)]
    words += ["--shuffle-seed", "0"] if args.shuffle else []
    input_bytes = (folder / "records.jsonl").stat().st_size
    seconds, peak = _timed([*words, "--part", f"plan/{_NUM_PARTS}"])
    plan_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    found = {
        "plan: seconds": seconds,
        "plan: records a second": num_records / seconds,
        "plan: MB of memory": peak / 1e6,
        "plan: bytes a record": plan_bytes / num_records,
        "input: bytes a record": input_bytes / num_records,
    }
    if args.plan_only:
        return found
    build_seconds, _ = _timed([*words, "--part", f"1/{_NUM_PARTS}"])
    # Without one result of the first part, the second one does not finish the data set.
    result = out / "_build/all-000000.json"
    aside = result.rename(folder / "aside.json")
    _timed([*words, "--part", f"2/{_NUM_PARTS}"])
    aside.rename(result)
    num_bytes = sum(path.stat().st_size for path in result.parent.glob("all-*.json"))
    seconds, peak = _timed(["finish", "--out", str(out)])
    return found | {
        "results: bytes a record": num_bytes / num_records,
        "part: records a second": num_records / _NUM_PARTS / build_seconds,
        "end: seconds": seconds,
        "end: records a second": num_records / seconds,
        "end: MB of memory": peak / 1e6,
    }


def _timed(words: list[str]) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a command of the builder."""
    start = time.perf_counter()
    peak = peak_bytes([*words, "--quiet"])
    return time.perf_counter() - start, peak
