"""Makes the policy of data/tiny_policy anew: random weights, taught by launch/sft.py.

    python -m launch.pretrain       35 minutes on two busy cores; leaves out/pretraining/tiny_policy

Three lessons: where a shape is that is alone, which shape of a scene is meant, and at last to point
roughly, with answers anywhere near that shape (launch/make_scenes.py). The quickstart's GRPO is to
sharpen that.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from grpo_stream.flags import with_dashes
from launch.phases import PYTHON, ROOT, Phase, build, command, run_phases, scenes

CONFIG = ROOT / "launch/configs/sft_tiny_policy.yaml"

SPLITS = {
    "one_shape": ("one_shape", 16_000, 5),
    "one_shape_dev": ("one_shape", 300, 6),
    "scenes": ("pretraining", 32_000, 1),
    "loose": ("pretraining", 6_400, 7),
    "scenes_dev": ("training", 400, 2),
}
"""Name -> split of launch/make_scenes.py, number of scenes, offset of its seed; the quickstart's
are others."""

LESSONS: dict[str, tuple[str, dict[str, object]]] = {
    # Alone, a shape teaches in minutes where it is; among others, that takes far longer.
    "one_shape": (
        "one_shape_dev",
        {
            "per_device_train_batch_size": 32,
            "max_steps": 500,
            "eval_steps": 50,
            "stop_accuracy": 0.7,
        },
    ),
    "scenes": ("scenes_dev", {}),
    # Leaves GRPO something to do.
    "loose": (
        "scenes_dev",
        {
            "answer_key": "answer",
            "max_steps": 120,
            "learning_rate": 3e-4,
            "warmup_steps": 10,
            "eval_steps": 40,
        },
    ),
}
"""Set that is learnt from -> set for the learning curve, and settings other than the file's."""


def main(argv: Sequence[str]) -> int:
    """Runs what is not up to date; returns the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=ROOT / "out/pretraining", help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and training")
    args = parser.parse_args(with_dashes(argv))
    out = args.out.resolve()
    seconds = run_phases(phases(out, args.seed), out)
    if seconds is None:
        return 1
    print(f"\nwall time {sum(seconds.values()):.0f} s\npolicy: {out / 'tiny_policy'}")
    return 0


def phases(out: Path, seed: int) -> Iterator[Phase]:
    """The phases in order."""
    yield scenes(out, SPLITS, seed)
    builds = [build(out, name) for name in SPLITS]
    yield Phase("shards", builds, out / "shards/scenes_dev/manifest.json")
    random = out / "random"
    make_random = command(
        [*PYTHON, "launch/tiny_policy.py"],
        json=out / "raw/scenes/records.json",
        out=random,
        max_coordinate=112,
        snap=8,
        seed=seed,
    )
    yield Phase("random policy", [make_random], random / "model.safetensors")
    pupil = random
    for name, (dev, changes) in LESSONS.items():
        lesson = command(
            [*PYTHON, "launch/sft.py", "--config", str(CONFIG.relative_to(ROOT))],
            model_name_or_path=pupil,
            shards=out / "shards" / name,
            eval_shards=out / "shards" / dev,
            output_dir=out / name,
            seed=seed,
            **changes,
        )
        pupil = out / name
        yield Phase(f"sft {name}", [lesson], pupil / "model.safetensors", os.cpu_count() or 1)
    policy = out / "tiny_policy"
    export = command([*PYTHON, "launch/export.py"], checkpoint=pupil, to=policy, dtype="bfloat16")
    yield Phase("export", [["rm", "-rf", str(policy)], export], policy / "model.safetensors")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
