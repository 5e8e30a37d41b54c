"""A line of commands in which whatever is up to date is skipped: quickstart and pretraining."""

import hashlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ("grpo_stream", "tools", "launch", "ds_configs", "data", "benchmarks", "requirements.lock")

PYTHON = [sys.executable]
BUILD = [*PYTHON, "-m", "tools.shard_builder", "build", "--overwrite"]


@dataclass(frozen=True)
class Phase:
    """One step of the line: commands, and the file that they leave when all went well."""

    name: str
    commands: list[list[str]]
    result: Path
    num_threads: int = 1


def run_phases(line: Iterable[Phase], out: Path) -> dict[str, float] | None:
    """Runs what is not up to date; the seconds of each phase, None if one failed.

    Args:
        line: Each phase builds on those before it.
        out: The stamps of finished phases are in its folder ``phases``.
    """
    # A batch system's SIGTERM must end the running phase too, as an interrupt does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    fingerprint = code_fingerprint()
    seconds: dict[str, float] = {}
    for phase in line:
        words = json.dumps(phase.commands)
        fingerprint = hashlib.sha256(f"{fingerprint} {words}".encode()).hexdigest()
        stamp = out / "phases" / f"{phase.name}.json"
        known = json.loads(stamp.read_text()) if stamp.is_file() else {}
        if known.get("fingerprint") == fingerprint and phase.result.exists():
            seconds[phase.name] = known["seconds"]
            print(f"== {phase.name}: up to date")
            continue
        stamp.unlink(missing_ok=True)
        print(f"== {phase.name}", flush=True)
        started = time.monotonic()
        if not all(run(words, phase.num_threads) for words in phase.commands):
            return None
        if not phase.result.exists():
            # The DeepSpeed launcher can end with 0 though its ranks are gone.
            print(f"error: {phase.name} ended without {phase.result}", file=sys.stderr)
            return None
        seconds[phase.name] = time.monotonic() - started
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(json.dumps({"fingerprint": fingerprint, "seconds": seconds[phase.name]}))
    return seconds


def run(words: list[str], num_threads: int) -> bool:
    """Runs a command in a process group of its own; whether it succeeded.

    An interrupt ends the whole group: DeepSpeed's ranks outlive a launcher that is killed alone.
    """
    shown = shlex.join(word.replace(f"{ROOT}/", "") for word in words)
    print(f"$ {shown}", flush=True)
    environment = {
        # Several ranks and readers share the cores; without this every rank takes all of them.
        "OMP_NUM_THREADS": str(num_threads),
        # Threads that wait by spinning halve the speed as soon as anything else wants a core.
        "GOMP_SPINCOUNT": "1000",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONWARNINGS": "ignore",
        "TORCH_EXTENSIONS_DIR": os.environ.get(
            "TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")
        ),
    }
    process = subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, **environment}, start_new_session=True
    )
    try:
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        raise
    if code:
        print(f"error: exit code {code}: {shown}", file=sys.stderr)
    return code == 0


def scenes(out: Path, splits: Mapping[str, tuple[str, int, int]], seed: int) -> Phase:
    """Draws sets of scenes into ``out/raw``.

    Args:
        out: Of the whole line.
        splits: Name -> split of launch/make_scenes.py, number of scenes, and offset of its seed.
        seed: Of the whole line.
    """
    commands = [
        command(
            [*PYTHON, "-m", "launch.make_scenes"],
            out=out / "raw" / name,
            split=split,
            num_scenes=num_scenes,
            seed=10 * seed + offset,
        )
        for name, (split, num_scenes, offset) in splits.items()
    ]
    return Phase("scenes", commands, out / "raw" / [*splits][-1] / "records.json")


def build(out: Path, name: str) -> list[str]:
    """Makes shards of such a set, in ``out/shards``."""
    raw = out / "raw" / name
    return command(
        [*BUILD, str(raw / "records.json")],
        images_root=raw,
        out=out / "shards" / name,
        group_by="image",
    )


def command(words: list[str], **flags: object) -> list[str]:
    """A command line: ``words``, then every flag with its value."""
    values = ((f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items())
    return [*words, *(word for pair in values for word in pair)]


def code_fingerprint() -> str:
    """Changes when any file that the phases run or read does."""
    digest = hashlib.sha256(platform.python_version().encode())
    for name in CODE:
        path = ROOT / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\n".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
