"""Teaches a policy the answers of a data set: supervised fine-tuning on a stream of prompts.

    deepspeed launch/sft.py --config launch/configs/sft_qwen2_5_vl_3b.yaml --shards s3://bucket/sft/
    python launch/sft.py --config launch/configs/sft_qwen2_5_vl_3b.yaml --dry-run --num-ranks 8

Settings come from the YAML file and from flags, and flags win: trl's SFTConfig and ModelConfig, and
the classes of grpo_stream.train.setup (docs/sft.md). Data, checkpoints, signals and exit codes are
as in launch/train.py; what is trained here can be the policy that GRPO begins with.
"""

import sys
from pathlib import Path

from trl import get_peft_config

from grpo_stream.train.checkpoints.output_lease import holding_on_rank_0
from grpo_stream.train.cluster.early_end import end_process
from grpo_stream.train.cluster.launched_run import run_script
from grpo_stream.train.cluster.launched_training import (
    check_ranks_agree,
    eval_stream,
    load_inputs,
    train_and_save,
)
from grpo_stream.train.cluster.stop_on_request import StopOnRequest
from grpo_stream.train.cluster.waiting import waiting_for
from grpo_stream.train.observe.known_warnings import ignore_known_warnings
from grpo_stream.train.observe.metrics import SHOWN_OF_SUPERVISED, ShortProgressCallback
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
    found = load_inputs(settings)
    stream = make_train_stream(plan, settings, **found.of_streams)
    check_ranks_agree(stream, plan, settings)
    with waiting_for(f"{found.model_id} to be loaded"):
        trainer = StreamingSFTTrainer(
            found.model_id,
            args,
            stream,
            eval_stream(settings, plan, num_eval_lanes(args), found.of_streams),
            processing_class=found.processor,
            task=task,
            allow_new_lanes=data.allow_new_lanes,
            old_checkpoints=settings.run.old_checkpoints,
            log=settings.log,
            peft_config=get_peft_config(settings.model),
        )
    shown = ShortProgressCallback(SHOWN_OF_SUPERVISED)
    ends = [] if task.stop_accuracy is None else [StopAtAccuracy(task.stop_accuracy)]
    train_and_save(trainer, found.checkpoint, stop, shown, *ends)
    return trainer


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
