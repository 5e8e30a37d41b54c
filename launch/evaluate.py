r"""Evaluates a policy on a held-out set: greedy answers, point-in-box accuracy.

    python launch/evaluate.py --model_name_or_path out/checkpoint-500 --shards shards/test \
        --out evaluation.json

Reads shards, or --json with --images_root. Parser, frames and resize are those of training.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from trl import TrlParser

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.grounding.frames import answer_frame_for
from grpo_stream.grounding.prompts import load_template
from grpo_stream.report.stats import wilson_interval
from grpo_stream.train.collate import PromptCollator
from grpo_stream.train.config import DataArguments
from grpo_stream.train.data import open_source
from grpo_stream.train.evaluate import evaluate
from grpo_stream.train.model import load_policy
from grpo_stream.train.processor import load_processor


@dataclass
class EvaluateArguments:
    """What the script reads and writes."""

    model_name_or_path: str
    out: str
    prompt_template: str = "point"
    answer_frame: str | None = None
    batch_size: int = 100
    max_completion_length: int = 64
    device: str = "auto"


def main(argv: list[str]) -> int:
    """Runs the script; returns the process's exit code."""
    parser = TrlParser((EvaluateArguments, DataArguments))
    try:
        run(*parser.parse_args_and_config(argv))
    except GrpoStreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: EvaluateArguments, data: DataArguments) -> None:
    """Answers every sample and writes one JSON file."""
    import torch  # noqa: PLC0415 - only for the device

    if args.batch_size < 1:
        raise ConfigError("batch_size", args.batch_size, "must be at least 1, for example 100")
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    source = open_source(data)
    processor = load_processor(
        args.model_name_or_path, min_pixels=data.min_pixels, max_pixels=data.max_pixels
    )
    model = load_policy(args.model_name_or_path, dtype="auto").to(device)
    model_type = model.config.model_type
    frame = answer_frame_for(model_type, args.answer_frame)
    evaluation = evaluate(
        model,
        PromptCollator(processor, load_template(args.prompt_template, model_type), frame),
        source,
        batch_size=args.batch_size,
        max_completion_length=args.max_completion_length,
    )
    path = Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evaluation.to_dict(), indent=1) + "\n")
    total = len(evaluation.predictions)
    low, high = wilson_interval(evaluation.num_correct, total)
    print(
        f"accuracy {evaluation.accuracy:.3f} (95 %: {low:.3f} to {high:.3f}) on {total} samples, "
        f"{sum(evaluation.failures.values())} answers could not be read; details in {path}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
