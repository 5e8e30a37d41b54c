"""One loader at work in a process of its own: what it is to do, and what was measured."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from grpo_stream.boxes import Size
from grpo_stream.images import Pixels, ResizeRule, decode, resize

Batch = dict[str, list[Any]]
"""``key``: str; ``image``: torch uint8, shape (height, width, 3), or the encoded bytes where the
job is raw; ``meta``: the parsed JSON."""


@dataclass(frozen=True)
class Job:
    """What a loader is to do. Every loader gets the same one but for its name."""

    contestant: str
    shards: str
    """Folder or URL of the shards."""
    copies: str = ""
    """Folder with the peers' own copies of the shards."""
    num_workers: int = 2
    """Threads, or processes: how many samples are decoded at a time."""
    is_raw: bool = False
    """Whether images are delivered as they are stored."""
    max_pixels: int | None = None
    """Area in pixels that images are resized to at most; None for as they are stored."""
    batch_size: int = 8
    num_warm_up: int = 64
    """Samples before the clock starts."""
    num_samples: int = 512
    """Samples that are timed; of each turn."""
    num_turns: int = 0
    """How often it will be told to work; 0: it works once, untold."""
    num_batches_before: int = 0
    """Batches to read before the state is saved in the file ``state``."""
    state: str = ""
    """File with the state to resume from; of this loader itself."""
    step_seconds: float = 0
    """Work of the main thread on the CPU after each batch."""
    step_side: int = 256
    """Rows and columns of the matrices that a step multiplies: small ones are much Python."""

    cache: str = ""
    """Folder in which this project's loader keeps whole shards; none if empty."""
    fetch_ahead_bytes: int | None = None
    """Of this project's loader; None for its default."""

    @property
    def rule(self) -> ResizeRule | None:
        """How images are resized."""
        return None if self.max_pixels is None else ResizeRule(max_pixels=self.max_pixels)

    def pixels(self, data: bytes) -> Pixels:
        """An image decoded and resized: the same code for all loaders."""
        pixels = decode(data)
        if self.rule is None:
            return pixels
        return resize(pixels, self.rule.target(Size(pixels.shape[1], pixels.shape[0])))

    def image(self, data: bytes) -> Any:
        """What a batch holds of an image: see :data:`Batch`."""
        if self.is_raw:
            return bytes(data)
        import torch  # noqa: PLC0415 - the bare loop, which starts many processes, needs none

        return torch.from_numpy(self.pixels(data))


@dataclass(frozen=True)
class Measured:
    """What a job took; CPU is that of all of its processes."""

    num_samples: int
    seconds: float
    cpu_seconds: float
    first_batch_seconds: float
    """From the start of opening the data, everything imported, to the first batch; CPU apart."""
    keys: tuple[str, ...] = ()
    """Of the first batch."""
    step_slowdown: float = 1.0
    """How many times longer the main thread's steps took than with no loader at work."""

    @property
    def per_second(self) -> float:
        """Samples per second."""
        return self.num_samples / self.seconds

    @property
    def per_cpu_second(self) -> float:
        """Samples per second of CPU."""
        return self.num_samples / self.cpu_seconds


def command_of(job: Job) -> list[str]:
    """The command line that runs a job."""
    return [sys.executable, "-m", "benchmarks.loaders.timed_run", json.dumps(asdict(job))]


def environment_of(further: Mapping[str, str] | None) -> dict[str, str]:
    """The environment that a job runs in."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(further or {})}


def run_apart(job: Job, environment: Mapping[str, str] | None = None) -> Measured:
    """Runs a job in a new process of Python.

    Raises:
        RuntimeError: it failed; the end of what it said is in the message.
    """
    done = subprocess.run(
        command_of(job),
        capture_output=True,
        text=True,
        check=False,
        env=environment_of(environment),
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"measured"')]
    if done.returncode or not lines:
        raise RuntimeError(f"{job.contestant}: {done.stderr[-2000:]}")
    return Measured(**json.loads(lines[-1])["measured"])
