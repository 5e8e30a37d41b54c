"""Reads damaged files of every kind: each must give its result or its one error, and soon.

A finding is printed with the words that repeat it; any finding ends with exit code 1.
"""

import argparse
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass

from benchmarks.command_line import Commands, new_command
from benchmarks.fuzz.mutations import mutated
from benchmarks.fuzz.targets import Target, make_targets

_SLOW_SECONDS = 5.0
_MAX_FINDINGS = 5  # of a target; the next ones are seldom of another kind


@dataclass(frozen=True)
class Finding:
    """A damaged file that did what none may."""

    target: str
    run: int
    what: str


def add_command(commands: Commands) -> None:
    """Adds ``fuzz`` to the command line."""
    command = new_command(commands, "fuzz", "damaged files of every kind", __doc__)
    add = command.add_argument
    add("--target", help="one kind alone, as in image; all of them by default")
    add("--runs", type=int, default=20_000, help="damaged files of each kind (%(default)s)")
    add("--seed", type=int, default=0, help="of all that is random (%(default)s)")
    add("--start", type=int, default=0, help="first run, to repeat a finding (%(default)s)")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints a line for each kind, and every finding."""
    targets = make_targets()
    names = [args.target] if args.target else list(targets)
    num_findings = 0
    for name in names:
        started = time.perf_counter()
        runs = range(args.start, args.start + args.runs)
        findings, outcomes = fuzz(name, targets[name], runs, args.seed)
        seconds = time.perf_counter() - started
        print(f"{name}: {len(runs)} runs in {seconds:.1f} s: {dict(outcomes.most_common())}")
        for one in findings:
            repeat = f"--target {name} --seed {args.seed} --start {one.run} --runs 1"
            print(f"FOUND {repeat}\n{one.what}")
        num_findings += len(findings)
    if num_findings:
        sys.exit(1)


def fuzz(name: str, target: Target, runs: range, seed: int) -> tuple[list[Finding], Counter[str]]:
    """Findings, and how often each outcome came.

    Args:
        name: The target's.
        target: What to read.
        runs: Numbers of the runs; a run depends on its number and the seed alone.
        seed: Of all that is random.
    """
    findings: list[Finding] = []
    outcomes = Counter[str]()
    for number in runs:
        data = mutated(target.seeds, random.Random(f"{seed} {name} {number}"))  # noqa: S311
        started = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own, of damaged EXIF
                target.check(data)
            outcomes["read"] += 1
        except target.errors as error:
            outcomes[getattr(error, "cause", type(error).__name__)] += 1
        except Exception:  # noqa: BLE001 - the finding
            findings.append(Finding(name, number, traceback.format_exc()))
        seconds = time.perf_counter() - started
        if seconds > _SLOW_SECONDS:
            findings.append(Finding(name, number, f"took {seconds:.1f} s"))
        if len(findings) >= _MAX_FINDINGS:
            break
    return findings, outcomes
