"""Teaches a policy the answers of a data set: supervised fine-tuning on a stream of prompts.

    deepspeed launch/sft.py --config launch/configs/sft_qwen2_5_vl_3b.yaml --shards s3://bucket/sft/
    python launch/sft.py --config launch/configs/sft_qwen2_5_vl_3b.yaml --dry-run --num-ranks 8

Settings come from the YAML file and from flags, and flags win: trl's SFTConfig and ModelConfig, and
the classes of grpo_stream.train.setup (docs/sft.md). Data, checkpoints, signals and exit codes are
as in launch/train.py; what is trained here can be the policy that GRPO begins with.
"""

import sys
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback
from trl import get_peft_config

from grpo_stream.stream.world import World
from grpo_stream.train.checkpoints.output_lease import holding_on_rank_0
from grpo_stream.train.checkpoints.universal import fitting_marker
from grpo_stream.train.checkpoints.whole_checkpoint import choose_checkpoint
from grpo_stream.train.cluster.early_end import end_process
from grpo_stream.train.cluster.launched_run import run_script
from grpo_stream.train.cluster.process_group import CollectiveTimeout
from grpo_stream.train.cluster.same_settings import check_agreement, run_settings
from grpo_stream.train.cluster.stop_on_request import StopOnRequest
from grpo_stream.train.cluster.waiting import WaitForFirstStep, waiting_for
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.observe.known_warnings import ignore_known_warnings
from grpo_stream.train.observe.metrics import SHOWN_OF_SUPERVISED, ShortProgressCallback
from grpo_stream.train.observe.stragglers import HealthLog
from grpo_stream.train.setup.open_data import make_stream
from grpo_stream.train.setup.run_plan import RunPlan
from grpo_stream.train.sft_trainer import StreamingSFTTrainer
from grpo_stream.train.supervised.supervised_checks import num_eval_lanes
from grpo_stream.train.supervised.supervised_plan import (
    SupervisedSettings,
    make_settings,
    make_train_stream,
    plan_supervised,
    read_flags,
)
from grpo_stream.train.supervised.supervised_scores import StopAtAccuracy


def main(argv: list[str]) -> int:
    """Runs the script; returns the process's exit code.

    0 done, 1 another rank was lost, 2 settings or data that cannot work, 75 stopped on demand.
    """
    ignore_known_warnings()
    return run_script(
        argv,
        __doc__,
        read_flags=read_flags,
        make_settings=make_settings,
        plan_run=plan_supervised,
        train=train,
    )


def train(
    settings: SupervisedSettings, plan: RunPlan, stop: StopOnRequest | None = None
) -> StreamingSFTTrainer:
    """Builds streams and trainer, and trains; returns the trainer.

    A run that was stopped before its end leaves a checkpoint, and no model in ``output_dir``.
    """
    args = settings.args
    with holding_on_rank_0(Path(args.output_dir), is_rank_0=args.process_index == 0):
        return _train(settings, plan, stop or StopOnRequest())


def _train(settings: SupervisedSettings, plan: RunPlan, stop: StopOnRequest) -> StreamingSFTTrainer:
    args, data, task = settings.args, settings.data, settings.task
    checkpoint = choose_checkpoint(
        args.resume_from_checkpoint, Path(args.output_dir), looks=args.should_save
    )
    if checkpoint is not None:
        fitting_marker(checkpoint, args)
    model_id = settings.model.model_name_or_path
    args.model_init_kwargs = model_init_kwargs(settings)
    processor = load_processor(
        model_id,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        revision=args.model_init_kwargs["revision"],
    )
    common = {
        "seed": args.seed,
        "image_processor": processor.image_processor,
        "world": World(args.process_index, args.world_size, args.local_process_index),
    }
    stream = make_train_stream(plan, settings, **common)
    check_agreement(
        {
            "digest": stream.cursor().digest,
            "weights": stream.cursor().weights,
            "num_batches": plan.num_batches,
            "stream": stream.config.to_dict(),
            **run_settings(settings),
        }
    )
    eval_stream = None
    if plan.eval_data_sets is not None:
        lanes = num_eval_lanes(args)
        eval_stream = make_stream(plan.eval_data_sets, data, num_lanes=lanes, **common)
    with waiting_for(f"{model_id} to be loaded"):
        trainer = StreamingSFTTrainer(
            str(model_id),
            args,
            stream,
            eval_stream,
            processing_class=processor,
            task=task,
            allow_new_lanes=data.allow_new_lanes,
            old_checkpoints=settings.run.old_checkpoints,
            log=settings.log,
            peft_config=get_peft_config(settings.model),
        )
    if args.process_index == 0:
        print(f"begins {f'from {checkpoint}' if checkpoint else 'anew'}", flush=True)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    first_step = WaitForFirstStep()
    shown = ShortProgressCallback(SHOWN_OF_SUPERVISED)
    for callback in (shown, CollectiveTimeout(), first_step, stop):
        trainer.add_callback(callback)
    if task.stop_accuracy is not None:
        trainer.add_callback(StopAtAccuracy(task.stop_accuracy))
    HealthLog.of_trainer(trainer).add_to(trainer)
    with first_step:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.has_stopped:
        # The first rank to end has the launcher end the others: none may still be writing.
        trainer.accelerator.wait_for_everyone()
    else:
        trainer.save_model(args.output_dir)
        trainer.save_state()
    trainer.close()
    return trainer


def model_init_kwargs(settings: SupervisedSettings) -> dict[str, Any]:
    """How the policy is loaded; SFTConfig's ``model_init_kwargs`` win over ModelConfig's fields."""
    model = settings.model
    kwargs: dict[str, Any] = {"revision": model.model_revision, "dtype": model.dtype}
    if model.attn_implementation is not None:
        kwargs["attn_implementation"] = model.attn_implementation
    return kwargs | (settings.args.model_init_kwargs or {})


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
