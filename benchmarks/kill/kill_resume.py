"""Kills a training run again and again, and compares it with one that nobody disturbed.

A tiny policy is trained on generated shapes, or on the committed screenshots, once to the end. Then
the same command is started, killed with SIGKILL (first while it saves, then anywhere), started
again, and so on; whenever a run has reached its end, the next one begins. Each must have seen the
same samples at the same global steps, logged the same values, and hold the same weights, bit for
bit.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any

from benchmarks.command_line import Commands, new_command
from grpo_stream.train.checkpoints.whole_checkpoint import MARKER_NAME
from launch.make_shapes import write_set

_ROOT = Path(__file__).resolve().parents[2]
_SCREENSHOTS = _ROOT / "data/screenshots"
_NUM_RECORDS = 24
_MAX_SCREENSHOT_PIXELS = 128 * 32 * 32
_CHECKPOINT = "checkpoint-"
ZERO3 = _ROOT / "ds_configs/zero3_cpu.json"
_TIMED = ("time/", "speed/", "health/", "stream/", "step_time", "train_")
"""Logged values that depend on the clock, or on how far was read ahead."""
_SETTINGS: dict[str, Any] = {
    "resume_from_checkpoint": "auto",
    "save_steps": 1,
    "save_total_limit": 2,
    "logging_steps": 2,
    # 4 micro-steps and 2 global steps for each generation batch: every second save is within one.
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_iterations": 2,
    "num_generations": 2,
    "max_completion_length": 4,
    "learning_rate": 1e-3,
    "beta": 0.1,
    "sync_ref_model": "true",
    "ref_model_sync_steps": 1,
    "gradient_checkpointing": "false",
    "report_to": "none",
    "reward_funcs": "benchmarks.kill.kill_run:noting_reward",
    "disable_tqdm": "true",
}


def add_command(commands: Commands) -> None:
    """Adds ``kill_resume`` to the command line."""
    command = new_command(
        commands,
        "kill_resume",
        "a run that is killed and started again, beside one that is not",
        __doc__,
    )
    add = command.add_argument
    add("--num-kills", type=int, default=20, help="(%(default)s)")
    add("--num-ranks", type=int, default=1, help="more than one: ZeRO-3 (%(default)s)")
    add("--num-steps", type=int, default=8, help="global steps of a run (%(default)s)")
    add("--family", default="qwen2_5_vl", help="of the policy, a model_type (%(default)s)")
    add("--screenshots", action="store_true", help="in place of generated shapes")
    add("--mixed-images", action="store_true", help="records of one, two and no images in turn")
    add("--seed", type=int, default=0, help="of the moments (%(default)s)")
    add("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the moments and what differed."""
    with tempfile.TemporaryDirectory() as folder, rank_server() as server:
        figures = measure(
            server,
            Path(folder),
            args.num_kills,
            args.num_ranks,
            num_steps=args.num_steps,
            seed=args.seed,
            family=args.family,
            takes_screenshots=args.screenshots,
            mixes_images=args.mixed_images,
        )
    if args.json:
        print(json.dumps(figures))
    else:
        for what in figures["kills"]:
            print(f"  killed at {what}")
        print(
            f"{len(figures['kills'])} kills, {figures['num_resumed']} starts from a checkpoint, "
            f"{figures['num_partial']} partial ones passed over, {figures['num_runs']} runs to "
            f"the end in {figures['seconds']:.0f} s; "
            f"differences: {figures['differences'] or 'none'}"
        )
    if figures["differences"]:
        raise SystemExit(1)


def measure(
    server: "subprocess.Popen[str]",
    folder: Path,
    num_kills: int,
    num_ranks: int,
    *,
    num_steps: int = 6,
    seed: int = 0,
    family: str = "qwen2_5_vl",
    takes_screenshots: bool = False,
    mixes_images: bool = False,
) -> dict[str, Any]:
    """Kills and compares.

    Args:
        server: See :func:`rank_server`.
        folder: Gets everything.
        num_kills: Of all runs together.
        num_ranks: World size; with more than one ZeRO-3 over gloo.
        num_steps: Global steps of a run.
        seed: Of the moments.
        family: Of the policy.
        takes_screenshots: The images are of ``data/screenshots``.
        mixes_images: Records have one, two and no images in turn.

    Returns:
        ``kills``: what was about to happen at each; ``num_partial``: how often a partial checkpoint
        was passed over; ``num_resumed``: starts from a whole one; ``num_runs``: runs that were
        killed, and reached their end; ``differences``: what of them was not as in the undisturbed
        run; ``seconds``.
    """
    started = time.monotonic()
    rng = random.Random(seed)  # noqa: S311 - moments, no secrets
    settings = prepare(
        folder, family, takes_screenshots=takes_screenshots, mixes_images=mixes_images
    )
    settings["max_steps"] = num_steps
    if num_ranks > 1:
        settings["deepspeed"] = ZERO3
    whole = Run(server, folder / "whole", num_ranks, settings)
    whole.start()
    kills: list[str] = []
    differences: list[str] = []
    num_partial = num_resumed = num_runs = 0
    while len(kills) < num_kills:
        num_runs += 1
        killed = Run(server, folder / f"killed_{num_runs}", num_ranks, settings)
        has_ended = False
        while not has_ended:
            kill = None
            if not kills:
                kill = _kill_in_a_save(rng, whole.moments())
            elif len(kills) < num_kills:
                kill = _kill_anywhere(rng, whole.moments())
            has_ended = killed.start(kill)
            if not has_ended:
                kills.append(killed.last_kill())
        differences += [f"run {num_runs}: {what}" for what in whole.differences(killed)]
        num_partial += killed.num_in_log("passed over: ")
        num_resumed += killed.num_in_log("begins from ")
    return {
        "kills": kills,
        "num_partial": num_partial,
        "num_resumed": num_resumed,
        "num_runs": num_runs,
        "differences": differences,
        "seconds": time.monotonic() - started,
    }


def _kill_in_a_save(rng: random.Random, moments: list[list[str]]) -> dict[str, Any]:
    """While a checkpoint is not whole yet, and an earlier one is."""
    rank = rng.randrange(len(moments))
    folders = [what.split(" ")[-1].partition(os.sep)[0] for what in moments[rank]]
    saved = [name for name in dict.fromkeys(folders) if name.startswith(_CHECKPOINT)]
    folder = rng.choice(saved[1:])
    own = [what for what, its in zip(moments[rank], folders, strict=True) if its == folder]
    own = list(takewhile(lambda what: MARKER_NAME not in what, own))
    return {"rank": rank, "within": folder, "moment": rng.randint(2, len(own)), "seconds": 0.0}


def _kill_anywhere(rng: random.Random, moments: list[list[str]]) -> dict[str, Any]:
    rank = rng.randrange(len(moments))
    seconds = rng.choice((0.0, rng.uniform(0, 0.2)))
    most = max(1, len(moments[rank]) // 2)  # a start gets some steps further
    return {"rank": rank, "moment": rng.randint(1, most), "seconds": seconds}


@dataclass
class Run:
    """One output folder and what was noted of its ranks."""

    server: "subprocess.Popen[str]"
    folder: Path
    num_ranks: int
    settings: dict[str, Any]

    @property
    def out(self) -> Path:
        """Its output folder."""
        return self.folder / "out"

    def start(self, kill: dict[str, Any] | None = None) -> bool:
        """Starts the command; whether it came to its end rather than being killed."""
        self.folder.mkdir(exist_ok=True)
        words = {**self.settings, "output_dir": self.out}
        job = {
            "argv": [str(word) for name, value in words.items() for word in (f"--{name}", value)],
            "out": str(self.out),
            "notes": str(self.folder),
            "num_ranks": self.num_ranks,
            "port": _free_port(),
            "kill": kill,
        }
        if self.server.stdin is None or self.server.stdout is None:
            raise RuntimeError("the server has no pipes")
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        reply = self.server.stdout.readline()
        codes = json.loads(reply)["codes"] if reply else ["the server has died"]
        if any(codes) and not (kill and codes[kill["rank"]] == -9):
            logs = "\n".join(path.read_text()[-3000:] for path in self.folder.glob("log_*.txt"))
            raise RuntimeError(f"a rank failed by itself, exit codes {codes}:\n{logs}")
        return not any(codes)

    def last_kill(self) -> str:
        """What was about to happen at the last kill."""
        return (self.folder / "killed.txt").read_text()

    def moments(self) -> list[list[str]]:
        """What each rank was about to do, once it has come to its end."""
        paths = [self.folder / f"moments_{rank}.txt" for rank in range(self.num_ranks)]
        return [path.read_text().splitlines() for path in paths]

    def num_in_log(self, words: str) -> int:
        """How often the first rank has said ``words`` in all starts."""
        return (self.folder / "log_0.txt").read_text().count(words)

    def differences(self, other: "Run") -> list[str]:
        """What is not the same in both, in words."""
        found = []
        if self.samples() != other.samples():
            found.append("other samples")
        nothing: dict[str, float] = {}
        for one, its in zip_longest(self.logged(), other.logged(), fillvalue=nothing):
            names = [name for name in one | its if one.get(name) != its.get(name)]
            found += [f"{name} {one.get(name)} became {its.get(name)}" for name in names]
        if self.weights() != other.weights():
            found.append("other weights")
        return found

    def samples(self) -> list[dict[int, list[str]]]:
        """Per rank: global step -> keys scored there; what was done again counts once."""
        found = []
        for rank in range(self.num_ranks):
            lines = (self.folder / f"samples_{rank}.jsonl").read_text().splitlines()
            notes = [json.loads(line) for line in lines if line.endswith("}")]
            found.append({note["global_step"]: note["keys"] for note in notes})
        return found

    def logged(self) -> list[dict[str, float]]:
        """What does not depend on the clock."""
        state = json.loads((self.out / "trainer_state.json").read_text())
        entries = [entry for entry in state["log_history"] if "loss" in entry]
        return [{k: v for k, v in one.items() if not k.startswith(_TIMED)} for one in entries]

    def weights(self) -> list[bytes]:
        """The files of the final model."""
        return [path.read_bytes() for path in sorted(self.out.glob("*.safetensors"))]


def prepare(
    folder: Path,
    family: str = "qwen2_5_vl",
    *,
    takes_screenshots: bool = False,
    mixes_images: bool = False,
) -> dict[str, Any]:
    """Makes data and policy; the settings of a run on them, by the names of their flags."""
    from grpo_stream.train.models.tiny import make_tiny_policy, read_prompts  # noqa: PLC0415 - torch

    if takes_screenshots:
        records, root = _write_screenshots(folder / "records.json"), _SCREENSHOTS
    else:
        records = write_set(folder / "shapes", _NUM_RECORDS, seed=0, quiet=True)
        root = records.parent
    texts = [*read_prompts([records]), "(1, 2) 34567890"]
    if mixes_images:
        _mix_images(records)
    policy = make_tiny_policy(folder / "tiny", texts, family=family)
    data: dict[str, Any] = {"model_name_or_path": policy, "json": records, "images_root": root}
    if takes_screenshots:
        data["max_pixels"] = _MAX_SCREENSHOT_PIXELS
    return _SETTINGS | data


def _write_screenshots(path: Path) -> Path:
    """Records of the committed screenshots, of all their sizes."""
    records = json.loads((_SCREENSHOTS / "records.json").read_text())
    path.write_text(json.dumps(records[:: len(records) // _NUM_RECORDS][:_NUM_RECORDS]))
    return path


def _mix_images(path: Path) -> None:
    """Of three records in turn the second gets the image of the third, too, which loses it."""
    records = json.loads(path.read_text())
    for number in range(1, len(records) - 1, 3):
        two, none = records[number], records[number + 1]
        two["image"] = [none["image"], two["image"]]
        two["solution_images"] = [1]
        none.update(image=[], solution=[])
    for record in records:
        del record["width"], record["height"]
    path.write_text(json.dumps(records))


@contextmanager
def rank_server() -> Iterator["subprocess.Popen[str]"]:
    """The process that forks ranks (:mod:`benchmarks.kill.kill_run`); it ends with the context."""
    environment = os.environ | {
        "PYTHONPATH": str(_ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.kill.kill_run"],
        cwd=_ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield server
    finally:
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
