"""Trains a policy with GRPO on a stream of prompts.

    deepspeed --num_gpus 2 launch/train.py --config launch/configs/quickstart.yaml
    python launch/train.py --config launch/configs/qwen2_5_vl_3b.yaml --dry-run --num-ranks 8

Settings come from the YAML file and from flags, and flags win: trl's GRPOConfig and ModelConfig,
and the classes of grpo_stream.train.setup.arguments. Without a GPU the run takes the CPU and gloo.
With --resume_from_checkpoint auto one command starts a run and resumes from its last whole
checkpoint (docs/checkpoints.md). SIGTERM, SIGUSR1 or a file "stop" in the output folder end the
run after the global step, with a checkpoint; before the first step a signal ends it at once.
"""

import sys
from pathlib import Path

from trl import get_peft_config

from grpo_stream.stream.sample_views import OpenViews
from grpo_stream.stream.stream_sample import decode_sample
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
from grpo_stream.train.observe.metrics import ShortProgressCallback
from grpo_stream.train.setup.open_data import make_stream
from grpo_stream.train.setup.run_plan import (
    RunPlan,
    Settings,
    make_settings,
    plan_run,
    read_flags,
)
from grpo_stream.train.setup.settings_checks import num_eval_lanes
from grpo_stream.train.trainer import PersonalizedGRPOTrainer


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
        plan_run=plan_run,
        train=train,
    )


def train(
    settings: Settings, plan: RunPlan, stop: StopOnRequest | None = None
) -> PersonalizedGRPOTrainer:
    """Builds stream and trainer, and trains; returns the trainer.

    A run that was stopped before its end leaves a checkpoint, and no model in ``output_dir``.
    """
    args = settings.args
    with holding_on_rank_0(Path(args.output_dir), is_rank_0=args.process_index == 0):
        return _train(settings, plan, stop or StopOnRequest())


def _train(settings: Settings, plan: RunPlan, stop: StopOnRequest) -> PersonalizedGRPOTrainer:
    args, data, task = settings.args, settings.data, settings.task
    found = load_inputs(settings)
    opened = decode_sample if task.num_views == 1 else OpenViews(task.num_views)
    stream = make_stream(
        plan.data_sets, data, num_lanes=plan.num_lanes, open_sample=opened, **found.of_streams
    )
    check_ranks_agree(stream, plan, settings)
    with waiting_for(f"{found.model_id} to be loaded"):
        trainer = PersonalizedGRPOTrainer(
            found.model_id,
            list(task.reward_funcs),
            args,
            stream,
            eval_stream(settings, plan, num_eval_lanes(args), found.of_streams),
            processing_class=found.processor,
            prompt_template=task.prompt_template,
            answer_frame=task.answer_frame,
            shared_prefix=task.shared_prefix,
            shared_prefix_check=task.shared_prefix_check,
            shared_prefix_attention=task.shared_prefix_attention,
            decode=task.decode,
            vision_attn_implementation=task.vision_attn_implementation,
            freeze_vision_tower=task.freeze_vision_tower,
            refill_zero_variance=task.refill_zero_variance,
            allow_new_lanes=data.allow_new_lanes,
            master_weights=task.master_weights,
            max_bad_steps=task.max_bad_steps,
            old_checkpoints=settings.run.old_checkpoints,
            log=settings.log,
            peft_config=get_peft_config(settings.model),
        )
    if args.process_index == 0:
        way = f"{trainer.prefix_way}, each prompt is computed once per group"
        print(f"shared_prefix: {way if trainer.shared_prefix else 'off'}", flush=True)
    train_and_save(trainer, found.checkpoint, stop, ShortProgressCallback())
    return trainer


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
