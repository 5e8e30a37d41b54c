"""What ``shard-builder build`` and ``finish`` print: lines for people, or JSON."""

import json
import sys
from typing import Any

from shard_builder.build.build_result import BuildResult
from shard_builder.build.output.reject_lists import REJECTS_NAME, WARNINGS_NAME
from shard_builder.build.progress import ProgressMode
from shard_builder.parts.run_part import PartResult

_NUM_NAMED = 20


def print_result(
    result: BuildResult, mode: ProgressMode, out: str, *, is_dry_run: bool = False
) -> None:
    """Prints what a build did.

    Args:
        result: Of the build.
        mode: ``json`` prints an object, ``quiet`` next to nothing.
        out: The data set's place.
        is_dry_run: Nothing was written.
    """
    if mode == "json":
        print(json.dumps(_facts(result, out)))
    elif mode == "bar":
        print("\n".join(_summary(result, out, is_dry_run=is_dry_run)))
    if result.warning is not None and mode != "json":
        print(result.warning, file=sys.stderr if mode == "quiet" else sys.stdout)


def print_part(result: PartResult, mode: ProgressMode, out: str) -> None:
    """Prints what a part did; args as for :func:`print_result`."""
    if mode == "json":
        facts = {
            "part": result.part.name,
            "num_chunks": result.num_chunks,
            "num_records": result.num_records,
            "num_rejects": result.num_rejects,
            "missing_parts": list(result.missing_parts),
            "finished": None if result.finished is None else _facts(result.finished, out),
        }
        print(json.dumps(facts))
        return
    if mode == "bar":
        print("\n".join(_part_lines(result)))
    if result.finished is not None:
        print_result(result.finished, mode, out)


def _part_lines(result: PartResult) -> list[str]:
    name, finished = result.part.name, result.finished
    if finished is not None and not finished.is_new:
        return [f"part {name}: nothing to do"]
    if result.part.number == 0:
        return [f"plan: {result.num_chunks} chunks for {result.part.num_parts} parts"]
    if result.is_finished_elsewhere:
        return [f"part {name}: another process has finished the data set, or is at it"]
    num_samples = result.num_records - result.num_rejects
    what = f"{num_samples} samples of {result.num_records} records, {result.num_chunks} chunks"
    lines = [f"part {name}: {what}"]
    lines += [f"  {line}" for line in result.first_rejects]
    if result.missing_parts:
        named = ", ".join(map(str, result.missing_parts[:_NUM_NAMED]))
        more = len(result.missing_parts) - _NUM_NAMED
        lines.append(f"still missing: parts {named}{f' and {more} more' if more > 0 else ''}")
    return lines


def _facts(result: BuildResult, out: str) -> dict[str, Any]:
    return {
        "out": out,
        "is_new": result.is_new,
        "num_records": result.num_records,
        "num_samples": result.num_samples,
        "rejects": result.rejects,
        "warnings": result.warnings,
        "readings": list(result.readings),
        "warning": result.warning,
        "sets": {
            split: {
                "digest": manifest.digest,
                **manifest.totals,
                "num_shards": len(manifest.shards),
            }
            for split, manifest in result.manifests.items()
        },
    }


def _summary(result: BuildResult, out: str, *, is_dry_run: bool) -> list[str]:
    lines = [f"{result.num_samples} samples of {result.num_records} records"]
    lines += result.reading_lines
    for what, counts in (("rejected", result.rejects), ("warnings", result.warnings)):
        if counts:
            listed = ", ".join(f"{cause} {count}" for cause, count in counts.items())
            lines.append(f"{what}: {sum(counts.values())} ({listed})")
    lines += [f"  {line}" for line in result.first_rejects]
    for split, manifest in result.manifests.items():
        folder = f"{out.rstrip('/')}/{split}" if split else out
        num_samples = f"{manifest.num_samples} samples, " if split else ""
        num_mib = manifest.totals["num_bytes"] / 2**20
        lists = [
            name
            for name, total in ((REJECTS_NAME, "num_rejects"), (WARNINGS_NAME, "num_warnings"))
            if manifest.totals[total]
        ]
        see = f"; see {' and '.join(lists)} there" if lists else ""
        lines.append(
            f"{num_samples}{len(manifest.shards)} shards, {num_mib:.1f} MiB in {folder}{see}"
        )
    if is_dry_run:
        lines.append("dry run: nothing was written")
    elif not result.is_new:
        lines.append("was there already, built from the same inputs with the same settings")
    return lines
