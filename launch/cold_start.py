r"""A short supervised cold start before GRPO: teaches the form of the answer.

    python launch/cold_start.py --model_name_or_path out/tiny --shards shards/cold_start \
        --eval_shards shards/dev --output_dir out/cold_start

Stops when the policy reaches stop_accuracy on the dev split (greedy, point in box). One process.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.flags import same_setting, setting
from grpo_stream.grounding.frames import answer_frame_for
from grpo_stream.grounding.prompts import load_template
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.world import World
from grpo_stream.train.batches.collate import PromptCollator
from grpo_stream.train.cold_start import ColdStartConfig, cold_start
from grpo_stream.train.evaluate.answer_prompts import evaluate
from grpo_stream.train.models.cuda_settings import (
    choose_attention_kernels,
    use_expandable_segments,
)
from grpo_stream.train.models.policy import load_policy
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.setup.arguments import DataArguments, RunArguments, TaskArguments
from grpo_stream.train.setup.open_data import make_stream, open_eval_sources, open_sources
from grpo_stream.train.setup.settings_parser import SettingsParser
from grpo_stream.train.supervised.cold_start_batches import ColdStartCollator


@dataclass
class ColdStartArguments:
    """What the script reads and writes."""

    model_name_or_path: str = field(metadata={"help": "Folder or hub id of the policy."})
    output_dir: str = field(metadata={"help": "Folder of the policy that is made."})
    prompt_template: str = same_setting(TaskArguments, "prompt_template", default="plain")
    batch_size: int = setting(32, "Prompts per update.")
    snap: int = setting(8, "Answers are multiples of this.")
    max_completion_length: int = setting(16, "Tokens per answer at most, on the dev split.")
    seed: int = setting(0, "Of the samples' order.")
    cudnn_attention: bool = same_setting(RunArguments, "cudnn_attention")


def main(argv: list[str]) -> int:
    """Runs the script; returns the process's exit code."""
    parser = SettingsParser(ColdStartArguments, ColdStartConfig, DataArguments, description=__doc__)
    try:
        run(*parser.parse(argv))
    except GrpoStreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: ColdStartArguments, config: ColdStartConfig, data: DataArguments) -> None:
    """Trains and saves the policy; the losses are beside it."""
    if args.snap < 1 or args.batch_size < 1:
        raise ConfigError("batch_size", (args.batch_size, args.snap), "and snap must be at least 1")
    use_expandable_segments()
    kernels = choose_attention_kernels(cudnn_attention=args.cudnn_attention)
    print(f"cuDNN attention: {kernels}")
    dev_sets = open_eval_sources(data)
    if dev_sets is None or len(dev_sets.sources) > 1:
        expected = "is needed: one data set, the dev split, as in eval_shards=shards/dev"
        raise ConfigError("eval_shards", data.eval_shards, expected)
    data_sets, (dev,) = open_sources(data), dev_sets.sources
    processor = load_processor(
        args.model_name_or_path, min_pixels=data.min_pixels, max_pixels=data.max_pixels
    )
    model = load_policy(args.model_name_or_path, dtype="float32")
    collator = PromptCollator(
        processor,
        load_template(args.prompt_template, model.config.model_type),
        answer_frame_for(model.config.model_type),
    )
    stream = make_stream(
        data_sets,
        data,
        num_lanes=args.batch_size,
        seed=args.seed,
        image_processor=processor.image_processor,
        world=World(),
    )

    def dev_accuracy() -> float:
        return evaluate(
            model,
            collator,
            dev,
            batch_size=100,
            max_completion_length=args.max_completion_length,
            title="dev split",
        ).accuracy

    with PromptLoader(stream, ColdStartCollator(collator, args.snap)) as loader:
        result = cold_start(model, loader, config, dev_accuracy)
    folder = Path(args.output_dir)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "cold_start.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    print(
        f"cold start: {result.num_steps} updates, dev accuracy {result.dev_accuracy:.3f}, "
        f"policy in {folder}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
