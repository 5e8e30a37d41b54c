"""Trains a policy with GRPO from a JSON file, without shards, on the CPU.

After `make setup`, with a tiny policy of random weights (a real one is a folder or a hub id):

    . .venv/bin/activate
    python launch/tiny_policy.py --json data/screenshots/records.json --out out/examples/policy \
        --max-coordinate 224
    python examples/train_from_json.py --model out/examples/policy --out out/examples/trained
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trl import GRPOConfig

from grpo_stream import PersonalizedGRPOTrainer
from grpo_stream.train.models.processor import load_processor

SCREENSHOTS = Path(__file__).resolve().parents[1] / "data/screenshots"


def main(argv: Sequence[str]) -> PersonalizedGRPOTrainer:
    """Trains for some global steps and saves the model; returns the trainer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", required=True, help="folder or hub id of a policy")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained policy")
    parser.add_argument("--num-steps", type=int, default=4, help="global steps")
    args = parser.parse_args(argv)
    trainer = PersonalizedGRPOTrainer(
        model=args.model,
        reward_funcs=["accuracy_reward_coord", "distance_reward"],
        args=GRPOConfig(
            str(args.out),
            per_device_train_batch_size=16,
            num_generations=8,  # so 2 prompts a batch
            max_completion_length=8,
            learning_rate=1e-4,
            max_steps=args.num_steps,
            logging_steps=1,
            report_to=[],
            bf16=False,
            use_cpu=True,
        ),
        # Mappings with image, prompt and solution; other fields reach the rewards as columns.
        train_dataset=json.loads((SCREENSHOTS / "records.json").read_text(encoding="utf-8")),
        images_root=SCREENSHOTS,
        processing_class=load_processor(args.model, max_pixels=224 * 224),
        prompt_template="plain",
    )
    trainer.train()
    trainer.save_model(str(args.out))
    trainer.close()
    return trainer


if __name__ == "__main__":
    main(sys.argv[1:])
