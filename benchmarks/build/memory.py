"""Measures the memory of a build of N records and of 20 N, whose images are few and tiny.

What grows with the number of records shows as bytes a record. Every build is a process of its
own; its memory is the sum, over all of its processes, of the most that each one ever held
(``VmHWM``, so Linux only). One record in a hundred is rejected, and one repeats another's question.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from benchmarks.command_line import Commands, new_command
from grpo_stream.image_encoding import encode_png

_NUM_IMAGES = 16
_IMAGE_SIZE = 64
_FACTOR = 20
_SECONDS_BETWEEN_LOOKS = 0.01


@dataclass(frozen=True)
class Build:
    """How one build is called."""

    input_name: str
    shuffle: bool
    workers: int

    def __str__(self) -> str:
        return f"{self.input_name}{', shuffled' if self.shuffle else ''}, {self.workers}"

    @property
    def flags(self) -> list[str]:
        """Of the command line."""
        flags = ["--workers", str(self.workers)]
        return [*flags, "--shuffle-seed", "0"] if self.shuffle else flags


def add_command(commands: Commands) -> None:
    """Adds ``memory`` to the command line."""
    command = new_command(
        commands, "memory", "the shard builder's memory, by number of records", __doc__
    )
    add = command.add_argument
    add("--num-records", type=int, default=5000, help=f"N; then {_FACTOR} times (%(default)s)")
    add("--numbers", type=int, default=0, help="that each record carries along (%(default)s)")
    add("--samples-per-shard", type=int, default=500, help="(%(default)s)")
    add("--inputs", nargs="+", choices=("json", "jsonl"), default=["json", "jsonl"])
    add("--shuffle", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    add("--workers", nargs="+", type=int, default=[1, 2], help="one build for each (1 2)")
    add("--folder", type=Path, help="for the files; a temporary one if not given")
    add("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints megabytes for each size, and bytes a record."""
    sizes = (args.num_records, _FACTOR * args.num_records)
    builds = [
        Build(f"records.{suffix}", shuffle == "yes", workers)
        for suffix, shuffle, workers in itertools.product(args.inputs, args.shuffle, args.workers)
    ]
    peaks: dict[str, list[int]] = {str(build): [] for build in builds}
    with tempfile.TemporaryDirectory(dir=args.folder) as temp:
        for num_records in sizes:
            folder = Path(temp) / str(num_records)
            write_raw(folder, num_records, args.numbers, args.inputs)
            for build in tqdm(builds, f"{num_records} records", disable=args.json):
                words = ["build", str(folder / build.input_name), "--images-root", str(folder)]
                words += build.flags
                words += ["--out", str(folder / "out"), "--quiet"]
                words += ["--samples-per-shard", str(args.samples_per_shard)]
                peaks[str(build)].append(peak_bytes(words))
                shutil.rmtree(folder / "out")
    figures: dict[str, Any] = {
        "builds": {name: _figures(sizes, *peaks[name]) for name in peaks},
        "settings": {
            name: str(value) for name, value in vars(args).items() if name not in ("run", "json")
        },
    }
    if args.json:
        print(json.dumps(figures))
        return
    print(f"{'MB':<32}" + "".join(f"{size:>12}" for size in sizes) + "   bytes a record")
    for name, values in figures["builds"].items():
        print(f"{name:<32}" + "".join(f"{value:>12}" for value in values.values()))


def _figures(sizes: tuple[int, int], few: int, many: int) -> dict[str, float]:
    return {
        f"mb_{sizes[0]}": round(few / 1e6, 1),
        f"mb_{sizes[1]}": round(many / 1e6, 1),
        "bytes_per_record": round((many - few) / (sizes[1] - sizes[0]), 1),
    }


def write_raw(folder: Path, num_records: int, num_numbers: int, suffixes: Sequence[str]) -> None:
    """Writes ``records.json`` and ``records.jsonl``, or one of them, and 16 tiny images.

    Args:
        folder: Is made.
        num_records: In each file.
        num_numbers: That each record carries along.
        suffixes: ``json``, ``jsonl``.
    """
    folder.mkdir()
    for number in range(_NUM_IMAGES):
        pixels = np.full((_IMAGE_SIZE, _IMAGE_SIZE, 3), number, np.uint8)
        (folder / f"{number:02d}.png").write_bytes(encode_png(pixels))
    if "json" in suffixes:
        with (folder / "records.json").open("w") as file:
            for number, text in enumerate(_records(num_records, num_numbers)):
                file.write(f"{',' if number else '['}\n{text}")
            file.write("\n]\n")
    if "jsonl" in suffixes:
        with (folder / "records.jsonl").open("w") as file:
            file.writelines(f"{text}\n" for text in _records(num_records, num_numbers))


def _records(num_records: int, num_numbers: int) -> Iterator[str]:
    for number in range(num_records):
        asked = number - 50 if number % 100 == 99 else number  # the same image and prompt
        image = "missing" if number % 100 == 42 else f"{asked % _NUM_IMAGES:02d}"
        yield json.dumps(
            {
                "image": f"{image}.png",
                "prompt": f"Click on the button number {asked} of this page",
                "solution": [8, 8, 40, 32],
                "polygon": [number + point / 8 for point in range(num_numbers)],
                "element": {"role": "button", "name": f"Number {number}", "path": "body/div" * 8},
            }
        )


def peak_bytes(words: list[str]) -> int:
    """Runs a command of the builder; the sum of the most memory that each of its processes held.

    Args:
        words: Of the command line, the command first.
    """
    peaks: dict[psutil.Process, int] = {}
    command = [sys.executable, "-m", "tools.shard_builder", *words]
    with subprocess.Popen(command) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            for one in [root, *_children(root)]:
                # The last look counts: for a moment a new process shows its parent's memory.
                peaks[one] = _high_water_bytes(one.pid) or peaks.get(one, 0)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return sum(peaks.values())


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _high_water_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    kilobytes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(kilobytes[0]) if kilobytes else 0  # a zombie has none
