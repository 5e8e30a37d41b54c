"""The whole line on one small machine: raw JSON, shards, cold start, ZeRO-3 GRPO, report.

    make quickstart            or, in an installed environment:  python launch/quickstart.py

Every phase is a command that a user could type; it is printed before it runs. A phase whose
command, code and inputs have not changed since its last success is skipped.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from grpo_stream.flags import with_dashes
from grpo_stream.grounding.evaluation_files import read_run
from grpo_stream.images import ResizeRule
from grpo_stream.report.html_page import write_report
from grpo_stream.report.training_page import TrainingRun, training_report
from grpo_stream.storage.atomic_files import NO_ROOM, no_room_line, write_atomic
from grpo_stream.stream.ordered_reader import read_at
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.stream_sample import StreamSample

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "launch/configs/quickstart.yaml"
CODE = ("grpo_stream", "tools", "launch", "ds_configs", "data", "requirements.lock")

SPLITS = {"cold_start": (9_600, 1), "dev": (200, 2), "train": (2_080, 3), "test": (400, 4)}
"""Split -> number of shapes and offset of its seed; NOTES.md counts the few equal images."""

NUM_PICTURES = 12
NOTES = (
    "Each image holds one shape: this shows localisation, not the understanding of instructions.",
    "Answers are on a grid of 8 pixels, because the cold start teaches them so.",
    f"The pictures are the first {NUM_PICTURES} of the held-out set, not chosen.",
)
PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed", "numpy", "pillow")


@dataclass(frozen=True)
class Phase:
    """One step of the line: commands, and the file that they leave when all went well."""

    name: str
    commands: list[list[str]]
    result: Path
    num_threads: int = 1


def main(argv: Sequence[str]) -> int:
    """Runs what is not up to date; returns the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=ROOT / "out/quickstart", help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and training")
    parser.add_argument(
        "--reward-funcs", "--reward", default="accuracy_reward_coord", help="one (%(default)s)"
    )
    args = parser.parse_args(with_dashes(argv))
    # A batch system's SIGTERM must end the running phase too, as an interrupt does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    fingerprint = _code_fingerprint()
    seconds: dict[str, float] = {}
    num_gpus = _num_gpus()
    if not num_gpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # spares a warning in every process
    for phase in phases(out, args.seed, args.reward_funcs, min(num_gpus, 2) or 2):
        line = json.dumps(phase.commands)
        fingerprint = hashlib.sha256(f"{fingerprint} {line}".encode()).hexdigest()
        stamp = out / "phases" / f"{phase.name}.json"
        known = json.loads(stamp.read_text()) if stamp.is_file() else {}
        if known.get("fingerprint") == fingerprint and phase.result.exists():
            seconds[phase.name] = known["seconds"]
            print(f"== {phase.name}: up to date")
            continue
        stamp.unlink(missing_ok=True)
        print(f"== {phase.name}", flush=True)
        started = time.monotonic()
        for words in phase.commands:
            if not run(words, phase.num_threads):
                return 1
        if not phase.result.exists():
            # The DeepSpeed launcher can end with 0 though its ranks are gone.
            print(f"error: {phase.name} ended without {phase.result}", file=sys.stderr)
            return 1
        seconds[phase.name] = time.monotonic() - started
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(json.dumps({"fingerprint": fingerprint, "seconds": seconds[phase.name]}))
    try:
        report(out, args.seed, args.reward_funcs, seconds)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"error: {no_room_line(error)}; finished phases are kept", file=sys.stderr)
        return 1
    return 0


def phases(out: Path, seed: int, reward: str, num_ranks: int) -> Iterator[Phase]:
    """The line's phases in order."""
    python = [sys.executable]
    raw, shards = out / "raw", out / "shards"
    yield Phase(
        "shapes",
        [
            command(
                [*python, "-m", "launch.make_shapes"],
                out=raw / name,
                num_images=num_images,
                seed=10 * seed + offset,
            )
            for name, (num_images, offset) in SPLITS.items()
        ],
        raw / "test/records.json",
    )
    build = [*python, "-m", "tools.shard_builder", "build", "--overwrite"]
    builds = [
        command(
            [*build, str(raw / name / "records.json")],
            images_root=raw / name,
            out=shards / name,
            samples_per_shard=400,
        )
        for name in SPLITS
    ]
    screenshots = ROOT / "data/screenshots"
    builds += [
        command(
            [*build, str(screenshots / "records.json")],
            images_root=screenshots,
            out=shards / f"screenshots_{name}",
            where=f"split={name}",
        )
        for name in ("train", "test")
    ]
    yield Phase("shards", builds, shards / "screenshots_test/manifest.json")
    tiny, started, trained = out / "tiny", out / "cold_start", out / "grpo"
    make_tiny = command(
        [*python, "launch/tiny_policy.py"],
        json=raw / "cold_start/records.json",
        out=tiny,
        max_coordinate=112,
        snap=8,
        seed=seed,
    )
    yield Phase("tiny policy", [make_tiny], tiny / "model.safetensors")
    cold_start = command(
        [*python, "launch/cold_start.py"],
        model_name_or_path=tiny,
        shards=shards / "cold_start",
        eval_shards=shards / "dev",
        output_dir=started,
        max_completion_length=8,
        seed=seed,
    )
    num_cores = os.cpu_count() or 1
    yield Phase("cold start", [cold_start], started / "model.safetensors", num_cores)
    yield _evaluation("evaluation before", started, shards / "test", out / "before")
    num_completions = 2 * yaml.safe_load(CONFIG.read_text())["per_device_train_batch_size"]
    deepspeed = [str(Path(sys.executable).parent / "deepspeed"), "-q", "--num_gpus", str(num_ranks)]
    grpo = command(
        [*deepspeed, "launch/train.py", "--config", str(CONFIG.relative_to(ROOT))],
        per_device_train_batch_size=num_completions // num_ranks,
        model_name_or_path=started,
        shards=shards / "train",
        output_dir=trained,
        seed=seed,
        reward_funcs=reward,
    )
    yield Phase("grpo", [grpo], trained / "model.safetensors", max(1, num_cores // num_ranks))
    yield _evaluation("evaluation after", trained, shards / "test", out / "after")


def command(words: list[str], **flags: object) -> list[str]:
    """A command line: ``words``, then every flag with its value."""
    values = ((f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items())
    return [*words, *(word for pair in values for word in pair)]


def _evaluation(name: str, model: Path, shards: Path, report: Path) -> Phase:
    evaluate = command(
        [sys.executable, "launch/evaluate.py", "--overwrite"],
        model=model,
        prompt_template="plain",
        shards=shards,
        batch_size=100,
        max_completion_length=8,
        report=report,
    )
    return Phase(name, [evaluate], report / "results.json", os.cpu_count() or 1)


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


def report(out: Path, seed: int, reward: str, seconds: dict[str, float]) -> None:
    """Writes report and metrics, and prints the summary."""
    before, after = read_run(out / "before"), read_run(out / "after")
    state = json.loads((out / "grpo/trainer_state.json").read_text())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()
    source = ShardSource(str(out / "shards/test"))
    samples = [
        StreamSample.from_sample(read_at(source, ordinal), ResizeRule())
        for ordinal in range(NUM_PICTURES)
    ]
    settings = yaml.safe_load(CONFIG.read_text()) | {"seed": seed, "reward_funcs": reward}
    page = training_report(
        TrainingRun(
            title="Quickstart: a tiny policy learns where to click",
            lead="A Qwen2.5-VL architecture of about a million random weights, taught the form of "
            "the answer by a short supervised cold start, then trained with GRPO under DeepSpeed "
            "ZeRO-3 to point at the shape in the image. Accuracy is that of greedy answers on "
            "held-out images.",
            before=before.results,
            after=after.results,
            answers=[answer.to_dict() for answer in after.answers],
            log_history=state["log_history"],
            samples=samples,
            settings=settings,
            versions=versions,
            seconds=seconds,
            notes=NOTES,
        )
    )
    path = write_report(page, out / "report")
    accuracy_before, accuracy_after = (
        run.results["figures"]["point_accuracy"]["value"] for run in (before, after)
    )
    metrics = {
        "accuracy_before": accuracy_before,
        "accuracy_after": accuracy_after,
        "num_held_out": len(after.answers),
        "seconds": {name: round(s, 1) for name, s in seconds.items()},
        "seconds_total": round(sum(seconds.values()), 1),
        "seed": seed,
        "reward": reward,
        "versions": versions,
    }
    write_atomic(path.parent / "metrics.json", f"{json.dumps(metrics, indent=1)}\n".encode())
    gain = accuracy_after - accuracy_before
    print(
        f"\nheld-out accuracy {accuracy_before:.3f} -> {accuracy_after:.3f} ({gain:+.3f}) "
        f"on {len(after.answers)} images\n"
        f"wall time {sum(seconds.values()):.0f} s, of it GRPO {seconds['grpo']:.0f} s\n"
        f"report: {path}"
    )


def _num_gpus() -> int:
    probe = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return int(done.stdout)


def _code_fingerprint() -> str:
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
