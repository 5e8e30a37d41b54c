"""Trains with rewards of one's own beside a built-in one, on the CPU.

After `make setup`, with the policy that train_from_json.py's first lines make:

    python examples/custom_reward.py --model out/examples/policy --out out/examples/custom

launch/train.py finds the same functions by name, with PYTHONPATH=examples:

    --reward_funcs accuracy_reward_coord custom_reward:near_button custom_reward:digits
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from grpo_stream import PersonalizedGRPOTrainer
from grpo_stream.boxes import Box
from grpo_stream.grounding.cases import cases_of
from grpo_stream.train.models.processor import load_processor

SCREENSHOTS = Path(__file__).resolve().parents[1] / "data/screenshots"


def near_button(element: Sequence[dict[str, str]], **columns: Any) -> list[float | None]:
    """1 within 40 original pixels of the true centre, else 0; for buttons alone.

    ``element`` is a field of the records; docs/rewards.md lists the columns that all data have.
    """
    names = ("completions", "solution", "scales", "model_size", "answer_frame")
    rewards: list[float | None] = []
    for case, one in zip(cases_of(*(columns[name] for name in names)), element, strict=True):
        if one["role"] != "button" or not isinstance(case.truth, Box):
            rewards.append(None)  # does not apply: left out of the sum
        elif case.point is None:
            rewards.append(0.0)  # the answer cannot be read
        else:
            x, y = case.truth.centre.x, case.truth.centre.y
            rewards.append(float(math.hypot(case.point.x - x, case.point.y - y) <= 40))
    return rewards


def digits(completions: Any, **_: Any) -> list[float | None]:
    """The share of digits in the answer: a slope for a policy that cannot point yet."""
    texts = [completion[-1]["content"] for completion in completions]
    return [sum(map(str.isdigit, text)) / max(1, len(text)) for text in texts]


def main(argv: Sequence[str]) -> PersonalizedGRPOTrainer:
    """Trains for two global steps; returns the trainer, whose log has each reward's mean."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", required=True, help="folder or hub id of a policy")
    parser.add_argument("--out", required=True, help="folder of the run")
    args = parser.parse_args(argv)
    settings = {"use_cpu": True, "bf16": False, "report_to": [], "logging_steps": 1, "max_steps": 2}
    trainer = PersonalizedGRPOTrainer(
        args.model,
        ["accuracy_reward_coord", near_button, digits],
        GRPOConfig(args.out, max_completion_length=8, **settings),
        json.loads((SCREENSHOTS / "records.json").read_text(encoding="utf-8")),
        images_root=SCREENSHOTS,
        processing_class=load_processor(args.model, max_pixels=224 * 224),
        prompt_template="plain",
    )
    trainer.train()
    trainer.close()
    return trainer


if __name__ == "__main__":
    main(sys.argv[1:])
