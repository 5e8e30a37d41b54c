"""What every launch script does before training: environment, settings, checks, one summary."""

import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig, ModelConfig

from grpo_stream.printable import printable
from grpo_stream.stream.world import find_world
from grpo_stream.train.batches.view_batches import check_view_settings
from grpo_stream.train.models.cuda_settings import choose_attention_kernels, prepare_cuda
from grpo_stream.train.models.policy import policy_config
from grpo_stream.train.prefix.ways import ways_to_try
from grpo_stream.train.setup.accelerate_launch import describe_deepspeed, precision_of
from grpo_stream.train.setup.arguments import (
    DataArguments,
    LogArguments,
    RunArguments,
    TaskArguments,
)
from grpo_stream.train.setup.decode_setting import chosen_decode
from grpo_stream.train.setup.deepspeed_config import check_batch_arithmetic, load_zero_config
from grpo_stream.train.setup.memory.micro_batches import micro_step_notes
from grpo_stream.train.setup.model_checks import check_model
from grpo_stream.train.setup.open_data import (
    OpenSources,
    check_template,
    open_eval_sources,
    open_sources,
    stream_config,
)
from grpo_stream.train.setup.run_summary import (
    describe_cache,
    describe_data,
    describe_epoch,
    describe_generation,
    describe_memory,
    describe_prompt,
)
from grpo_stream.train.setup.settings_checks import (
    check_settings,
    check_ways,
    num_eval_lanes,
)
from grpo_stream.train.setup.settings_parser import SettingsParser


@dataclass(frozen=True)
class Settings:
    """A run's settings, parsed."""

    args: GRPOConfig
    model: ModelConfig
    data: DataArguments
    task: TaskArguments
    run: RunArguments
    log: LogArguments


@dataclass(frozen=True)
class RunPlan:
    """What a run will do; everything in it was checked without loading weights."""

    data_sets: OpenSources
    eval_data_sets: OpenSources | None
    num_ranks: int
    num_lanes: int
    """Prompts per generation batch over all ranks."""
    num_batches: int
    """Generation batches of an epoch."""
    max_steps: int
    """Global steps of the run."""
    lines: list[tuple[str, str]] = field(default_factory=list)
    """Label and value, for people."""
    notes: list[str] = field(default_factory=list)
    """What works, but should be known."""

    def describe(self) -> str:
        """The plan as text."""
        width = max(len(label) for label, _ in self.lines)
        below = "\n" + " " * (width + 4)
        lines = [f"  {label:<{width}}  {value}".replace("\n", below) for label, value in self.lines]
        text = "\n".join(["The run:", *lines, *(f"  note: {note}" for note in self.notes)])
        return printable(text)  # URLs may be signed, and prompts are anybody's


def parse_settings(argv: Sequence[str], *, use_cpu: bool) -> Settings:
    """:func:`read_flags` and :func:`make_settings` in one."""
    return make_settings(*read_flags(argv, use_cpu=use_cpu))


def read_flags(
    argv: Sequence[str], *, use_cpu: bool, description: str | None = None
) -> tuple[SettingsParser, Namespace]:
    """Reads the YAML file and the flags; flags win. Joins no ranks and looks for no device.

    Args:
        argv: Command-line arguments without the program's name.
        use_cpu: There is no accelerator: take the CPU and float32 unless told otherwise.
        description: Shown above the flags by ``--help``, which ends the process here.

    Returns:
        What :func:`make_settings` takes.

    Raises:
        ConfigError: a file that is not there, a setting that nobody knows, a value that is none,
            half of a launcher's environment, or batch sizes or a DeepSpeed file that cannot work.
    """
    own = (DataArguments, TaskArguments, LogArguments, RunArguments)
    parser = SettingsParser(*own, GRPOConfig, ModelConfig, description=description)
    parser.set_defaults_here(use_cpu=use_cpu)
    flags = parser.read(argv)
    _check_early(flags, find_world().world_size)
    return parser, flags


def make_settings(parser: SettingsParser, flags: Namespace, *, is_alone: bool = False) -> Settings:
    """The settings of :func:`read_flags` as instances of their classes.

    Args:
        parser: That has read the flags.
        flags: Its values.
        is_alone: No other ranks are to be joined. Else GRPOConfig counts them, for which they must
            have been joined on a CPU (:mod:`grpo_stream.train.cluster.process_group`), and which
            joins them on a GPU.

    Raises:
        ConfigError, GrpoStreamError: values that cannot go together.
    """
    built = parser.build_alone(flags) if is_alone else parser.build(flags)
    data, task, log, run, args, model = built
    return Settings(args, model, data, task, run, log)


def plan_run(settings: Settings) -> RunPlan:
    """Checks all that can be checked without weights, and adds up what the run will do.

    It also chooses the process's attention kernels, which a line of the plan says.

    Raises:
        ConfigError: a setting that cannot work, named with a value that does.
        ManifestError: the shards have no manifest.
        StoreError: they cannot be reached.
    """
    args, data, task = settings.args, settings.data, settings.task
    cudnn_attention = choose_attention_kernels(cudnn_attention=settings.run.cudnn_attention)
    found = check_model(settings)
    template, frame, rule, _ = found
    checked = check_settings(
        args,
        settings.log,
        task.reward_funcs,
        shared_prefix=task.shared_prefix,
        shared_prefix_attention=task.shared_prefix_attention,
        refill_zero_variance=task.refill_zero_variance,
        has_eval_data=data.eval_shards is not None,
        num_ranks=settings.run.num_ranks,
    )
    check_view_settings(task.num_views, args.num_generations)
    num_ranks = settings.run.num_ranks or args.world_size
    num_lanes = checked.num_lanes
    max_pixels = data.max_pixels if rule is None else rule.max_pixels
    notes = [*checked.notes, *waiting_notes(settings, num_ranks)]
    notes += micro_step_notes(settings, max_pixels)
    stream = stream_config(data, num_lanes=num_lanes, seed=args.seed, rule=rule)
    data_sets, eval_data_sets = open_sources(data), open_eval_sources(data)
    plan = data_sets.plan(stream)
    check_template(template, data_sets.sources)
    notes += found.check_prompts(settings, data_sets.sources)
    if eval_data_sets is not None:
        eval_data_sets.plan(replace(stream, num_lanes=num_eval_lanes(args, num_ranks)))
    micro_steps = plan.num_batches * args.steps_per_generation * args.num_iterations
    per_epoch = -(-micro_steps // args.gradient_accumulation_steps)
    from_epochs = int(-(-args.num_train_epochs * per_epoch // 1))
    max_steps = args.max_steps if args.max_steps > 0 else from_epochs
    lines = [
        ("model", settings.model.model_name_or_path),
        *describe_data(data_sets, plan),
        ("ranks", f"{num_ranks}"),
        describe_generation(
            checked.num_prompts, args.num_generations, task.refill_zero_variance, task.num_views
        ),
        describe_epoch(data_sets, plan),
        describe_memory(data_sets, stream, num_ranks, max_pixels, task.num_views),
        *describe_cache(data),
        ("global steps", f"{max_steps:,} ({max_steps / per_epoch:.3g} epochs)"),
        ("rewards", ", ".join(task.reward_funcs)),
        ("prompt", f"{task.prompt_template}, answers of up to {args.max_completion_length} tokens"),
        ("precision", precision_of(args)),
        ("shared prefix", _describe_shared_prefix(settings, checked.packed_attention)),
        ("decode", "{}: {}".format(*chosen_decode(task.decode, args, args.device.type))),
        ("cuDNN attention", cudnn_attention),
        ("deepspeed", describe_deepspeed(args)),
        ("output", str(args.output_dir)),
    ]
    if settings.run.dry_run:
        lines.append(describe_prompt(data_sets, template, frame, rule))
    return RunPlan(
        data_sets, eval_data_sets, num_ranks, num_lanes, plan.num_batches, max_steps, lines, notes
    )


def use_cpu_only() -> bool:
    """Whether there is no accelerator; DeepSpeed is then told so, which spares a warning.

    CUDA is prepared (:func:`~grpo_stream.train.models.cuda_settings.prepare_cuda`) before that is
    asked, so it is the first thing that a script that trains calls.
    """
    prepare_cuda()
    if torch.cuda.is_available():
        return False
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return True


def waiting_notes(settings: Any, num_ranks: int) -> list[str]:
    """What ends too early if ranks wait no longer than ``ddp_timeout`` for each other."""
    limits = {
        "step_timeout_seconds": settings.log.step_timeout_seconds,
        "retry_deadline_seconds": settings.data.retry_deadline_seconds,
    }
    waits = settings.args.ddp_timeout
    return [
        f"ddp_timeout={waits} is not above {name}={limit:g}: the other ranks end first, without "
        "saying why"
        for name, limit in limits.items()
        if num_ranks > 1 and limit >= waits
    ]


def _check_early(flags: Namespace, world_size: int) -> None:
    """Checks what GRPOConfig would refuse, or fail on, without saying what would work."""
    if isinstance(flags.deepspeed, str):
        load_zero_config(flags.deepspeed)
    if flags.generation_batch_size is None:
        check_batch_arithmetic(
            world_size=flags.num_ranks or world_size,
            per_device_train_batch_size=flags.per_device_train_batch_size,
            steps_per_generation=flags.steps_per_generation or flags.gradient_accumulation_steps,
            gradient_accumulation_steps=flags.gradient_accumulation_steps,
            num_generations=flags.num_generations,
            num_iterations=flags.num_iterations,
        )


def _describe_shared_prefix(settings: Settings, attention: str) -> str:
    """How groups will be computed, as far as settings and the policy's folder tell."""
    task, model = settings.task, settings.model
    if task.shared_prefix == "off" or not Path(model.model_name_or_path).is_dir():
        return task.shared_prefix
    ways, reasons = ways_to_try(
        policy_config(model.model_name_or_path),
        task.shared_prefix,
        attention=model.attn_implementation or "sdpa",
        packed_attention=attention,
        pad_token_id=0,
    )
    check_ways(task.shared_prefix, ways, reasons)
    if ways[0].name == "plain":
        return f"off: {'; '.join(reasons)}"
    detail = f", attention {attention}" if ways[0].name == "packed" else ""
    if task.freeze_vision_tower and ways[0].name == "packed":
        detail += ", features of the frozen vision tower once per prompt"
    proof = "proves itself first" if task.shared_prefix_check else "unproven"
    others = "".join(f", else {way.name}" for way in ways[1:] if task.shared_prefix_check)
    return f"{task.shared_prefix}: {ways[0].name}{detail} ({proof}{others})"
