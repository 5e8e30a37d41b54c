"""The whole line on one small machine: raw JSON, shards, ZeRO-3 GRPO with its control, report.

    make quickstart            or, in an installed environment:  python -m launch.quickstart

Every phase is a command that a user could type; it is printed before it runs. A phase whose
command, code and inputs have not changed since its last success is skipped.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import yaml

from grpo_stream.flags import with_dashes
from grpo_stream.grounding.evaluation.evaluation_files import read_run
from grpo_stream.images import ResizeRule
from grpo_stream.report.html_page import write_report
from grpo_stream.report.training_page import TrainingRun, part_accuracy, training_report
from grpo_stream.storage.atomic_files import NO_ROOM, no_room_line, write_atomic
from grpo_stream.stream.ordered_reader import read_at
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.stream_sample import StreamSample
from launch.phases import BUILD, PYTHON, ROOT, Phase, build, command, run_phases, scenes

CONFIG = ROOT / "launch/configs/quickstart.yaml"
POLICY = ROOT / "data/tiny_policy"

SPLITS = {"training": ("training", 1_920, 3), "test": ("test", 400, 4)}
"""Name -> split of launch/make_scenes.py, number of scenes, and offset of its seed."""

FIELD = "question_kind"
PARTS = {
    "known words": "Held-out scenes",
    "new words": "New combinations of words",
    "swapped": "Instructions of other scenes",
}
"""Value of the field -> what the report calls these questions."""
CONTROL = "benchmarks.step.controls:shuffled_accuracy"

NUM_PICTURES = 12
NOTES = (
    "Each scene holds three to five shapes, no two alike: the instruction decides.",
    "Under other scenes' instructions the truth stays; any shape of a scene would give 26 %.",
    "The control is the same run, its rewards dealt out at random within each batch.",
    "Answers are on a grid of 8 pixels, because pretraining teaches them so.",
    f"The pictures are the first {NUM_PICTURES} of the held-out scenes, not chosen.",
)
PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed", "numpy", "pillow")


def main(argv: Sequence[str]) -> int:
    """Runs what is not up to date; returns the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=ROOT / "out/quickstart", help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and training")
    parser.add_argument(
        "--reward-funcs", "--reward", default="accuracy_reward_coord", help="one (%(default)s)"
    )
    args = parser.parse_args(with_dashes(argv))
    num_gpus = _num_gpus()
    if not num_gpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # spares a warning in every process
    out = args.out.resolve()
    line = phases(out, args.seed, args.reward_funcs, min(num_gpus, 2) or 2)
    seconds = run_phases(line, out)
    if seconds is None:
        return 1
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
    num_cores = os.cpu_count() or 1
    shards, test = out / "shards", out / "shards/test"
    yield scenes(out, SPLITS, seed)
    builds = [build(out, name) for name in SPLITS]
    screenshots = ROOT / "data/screenshots"
    builds += [
        command(
            [*BUILD, str(screenshots / "records.json")],
            images_root=screenshots,
            out=shards / f"screenshots_{name}",
            where=f"split={name}",
        )
        for name in ("train", "test")
    ]
    yield Phase("shards", builds, shards / "screenshots_test/manifest.json")
    yield _evaluation("evaluation before", POLICY, test, out / "before")
    num_completions = 2 * yaml.safe_load(CONFIG.read_text())["per_device_train_batch_size"]
    deepspeed = [str(Path(sys.executable).parent / "deepspeed"), "-q", "--num_gpus", str(num_ranks)]
    for name, folder, rewards in (("grpo", "grpo", reward), ("control", "control", CONTROL)):
        grpo = command(
            [*deepspeed, "launch/train.py", "--config", str(CONFIG.relative_to(ROOT))],
            per_device_train_batch_size=num_completions // num_ranks,
            shards=shards / "training",
            output_dir=out / folder,
            seed=seed,
            reward_funcs=rewards,
        )
        result = out / folder / "model.safetensors"
        yield Phase(name, [grpo], result, max(1, num_cores // num_ranks))
    yield _evaluation("evaluation after", out / "grpo", test, out / "after")
    yield _evaluation("evaluation of the control", out / "control", test, out / "after_control")


def _evaluation(name: str, model: Path, shards: Path, report: Path) -> Phase:
    evaluate = command(
        [*PYTHON, "launch/evaluate.py", "--overwrite"],
        model=model,
        shards=shards,
        by=FIELD,
        batch_size=100,
        max_completion_length=8,
        report=report,
    )
    return Phase(name, [evaluate], report / "results.json", os.cpu_count() or 1)


def report(out: Path, seed: int, reward: str, seconds: dict[str, float]) -> None:
    """Writes report and metrics, and prints the summary."""
    runs = {"before": "before", "shuffled": "after_control", "after": "after"}
    evaluations = {name: read_run(out / folder) for name, folder in runs.items()}
    logs = {"GRPO": "grpo", "shuffled": "control"}
    states = {name: out / folder / "trainer_state.json" for name, folder in logs.items()}
    answers = evaluations["after"].answers
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()
    source = ShardSource(str(out / "shards/test"))
    samples = (
        StreamSample.from_sample(read_at(source, ordinal), ResizeRule())
        for ordinal in range(len(answers))
    )
    shown = (sample for sample in samples if sample.extra[FIELD] != "swapped")
    settings = yaml.safe_load(CONFIG.read_text()) | {"seed": seed, "reward_funcs": reward}
    page = training_report(
        TrainingRun(
            title="Quickstart: a tiny policy learns to click where it is told",
            lead="A Qwen2.5-VL architecture of about a million weights, pretrained to understand "
            "its instructions and to point roughly, then trained with GRPO under DeepSpeed ZeRO-3 "
            "to hit what is meant. Accuracy is that of greedy answers on held-out images.",
            evaluations={name: run.results for name, run in evaluations.items()},
            field=FIELD,
            parts=PARTS,
            answers=[answer.to_dict() for answer in answers],
            log_histories={n: json.loads(p.read_text())["log_history"] for n, p in states.items()},
            samples=list(islice(shown, NUM_PICTURES)),
            settings=settings,
            versions=versions,
            seconds=seconds,
            notes=NOTES,
        )
    )
    path = write_report(page, out / "report")
    accuracy = {
        name: {part: part_accuracy(run.results, FIELD, part)["value"] for part in PARTS}
        for name, run in evaluations.items()
    }
    metrics = {
        "accuracy": accuracy,
        "num_held_out": len(answers),
        "seconds": {name: round(s, 1) for name, s in seconds.items()},
        "seconds_total": round(sum(seconds.values()), 1),
        "seed": seed,
        "reward": reward,
        "versions": versions,
    }
    write_atomic(path.parent / "metrics.json", f"{json.dumps(metrics, indent=1)}\n".encode())
    print(f"\n{'held-out accuracy':30s}{''.join(f'{name:>10s}' for name in accuracy)}")
    for part, words in PARTS.items():
        print(f"{words:30s}{''.join(f'{one[part]:10.3f}' for one in accuracy.values())}")
    print(
        f"wall time {sum(seconds.values()):.0f} s, of it GRPO {seconds['grpo']:.0f} s\n"
        f"report: {path}"
    )


def _num_gpus() -> int:
    probe = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return int(done.stdout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
