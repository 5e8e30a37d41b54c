"""What ``launch/sft.py`` does before training: settings, checks, one summary."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trl import ModelConfig, SFTConfig

from grpo_stream.errors import ConfigError
from grpo_stream.stream.image_groups import ImageGroupSource, open_image_group
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.selected_source import SelectedSource
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.stream_sample import decode_sample
from grpo_stream.train.models.cuda_settings import choose_attention_kernels
from grpo_stream.train.models.policy import policy_config
from grpo_stream.train.prefix.packing import shared_prefix_obstacle
from grpo_stream.train.setup.accelerate_launch import (
    check_launcher,
    describe_deepspeed,
    precision_of,
)
from grpo_stream.train.setup.arguments import DataArguments, LogArguments, RunArguments
from grpo_stream.train.setup.deepspeed_config import load_zero_config
from grpo_stream.train.setup.model_checks import check_model
from grpo_stream.train.setup.open_data import (
    OpenSources,
    check_all_have_images,
    check_template,
    make_stream,
    open_eval_sources,
    open_sources,
    stream_config,
)
from grpo_stream.train.setup.run_plan import RunPlan, waiting_notes
from grpo_stream.train.setup.run_summary import (
    describe_cache,
    describe_data,
    describe_epoch,
    describe_memory,
    describe_prompt,
)
from grpo_stream.train.setup.settings_checks import check_zero
from grpo_stream.train.setup.settings_parser import SettingsParser
from grpo_stream.train.supervised.supervised_arguments import SupervisedArguments
from grpo_stream.train.supervised.supervised_checks import (
    check_no_balancing_loss,
    check_packed,
    check_supervised,
    num_eval_lanes,
    num_train_lanes,
)
from grpo_stream.train.supervised.taught_answers import TaughtAnswers


@dataclass(frozen=True)
class SupervisedSettings:
    """A supervised run's settings, parsed."""

    args: SFTConfig
    model: ModelConfig
    data: DataArguments
    task: SupervisedArguments
    run: RunArguments
    log: LogArguments


def read_flags(
    argv: Sequence[str], *, use_cpu: bool, description: str | None = None
) -> tuple[SettingsParser, Namespace]:
    """As :func:`grpo_stream.train.setup.run_plan.read_flags`, for supervised fine-tuning."""
    own = (DataArguments, SupervisedArguments, LogArguments, RunArguments)
    parser = SettingsParser(*own, SFTConfig, ModelConfig, description=description)
    parser.set_defaults_here(use_cpu=use_cpu)
    flags = parser.read(argv)
    if isinstance(flags.deepspeed, str):
        load_zero_config(flags.deepspeed)
    return parser, flags


def make_settings(
    parser: SettingsParser, flags: Namespace, *, is_alone: bool = False
) -> SupervisedSettings:
    """As :func:`grpo_stream.train.setup.run_plan.make_settings`."""
    built = parser.build_alone(flags) if is_alone else parser.build(flags)
    data, task, log, run, args, model = built
    return SupervisedSettings(args, model, data, task, run, log)


def plan_supervised(settings: SupervisedSettings) -> RunPlan:
    """Checks all that can be checked without weights, and adds up what the run will do.

    It also chooses the process's attention kernels, which a line of the plan says.

    Raises:
        ConfigError: a setting that cannot work, named with a value that does.
        ManifestError: the shards have no manifest.
        StoreError: they cannot be reached.
    """
    args, data, task = settings.args, settings.data, settings.task
    has_eval_data = data.eval_shards is not None
    cudnn_attention = choose_attention_kernels(cudnn_attention=settings.run.cudnn_attention)
    settings.log.check()
    task.check(has_eval_data=has_eval_data)
    check_launcher()
    check_supervised(args, has_eval_data=has_eval_data)
    found = check_model(settings)
    template, frame, rule, _ = found
    if Path(settings.model.model_name_or_path).is_dir():
        check_no_balancing_loss(policy_config(settings.model.model_name_or_path), args)
    TaughtAnswers(template, frame or "model", task.answer_key, task.snap)
    num_ranks = settings.run.num_ranks or args.world_size
    num_lanes = num_train_lanes(args, num_ranks)
    notes = [*check_zero(args, num_ranks), *waiting_notes(settings, num_ranks)]
    stream = stream_config(data, num_lanes=num_lanes, seed=args.seed, rule=rule)
    data_sets, eval_data_sets = open_sources(data), open_eval_sources(data)
    check_template(template, data_sets.sources)
    notes += found.check_prompts(settings, data_sets.sources)
    check_all_have_images(data_sets.sources, num_ranks)
    num_records = sum(int(source.shard_counts.sum()) for source in data_sets.sources)
    if task.group_by == "image":
        data_sets = _open_images(data_sets)
    plan = data_sets.plan(stream)
    if eval_data_sets is not None:
        eval_data_sets.plan(replace(stream, num_lanes=num_eval_lanes(args, num_ranks)))
    from_epochs = int(-(-args.num_train_epochs * plan.num_batches // 1))
    max_steps = args.max_steps if args.max_steps > 0 else from_epochs
    max_pixels = data.max_pixels if rule is None else rule.max_pixels
    answers = "the solution" if task.answer_key is None else f"the field {task.answer_key}"
    what = "records" if task.group_by == "none" else "images with all their records"
    lines = [
        ("model", settings.model.model_name_or_path),
        *describe_data(data_sets, plan),
        ("ranks", f"{num_ranks}"),
        ("records", f"{num_records:,}"),
        ("global batch", f"{num_lanes} {what} over all ranks"),
        describe_epoch(data_sets, plan),
        describe_memory(data_sets, stream, num_ranks, max_pixels),
        *describe_cache(data),
        ("global steps", f"{max_steps:,} ({max_steps / plan.num_batches:.3g} epochs)"),
        ("prompt", f"{task.prompt_template}; taught is {answers}"),
        ("precision", precision_of(args)),
        ("rows", _describe_rows(settings)),
        ("cuDNN attention", cudnn_attention),
        ("deepspeed", describe_deepspeed(args)),
        ("output", str(args.output_dir)),
    ]
    if settings.run.dry_run and task.group_by == "none":
        lines.append(describe_prompt(data_sets, template, frame, rule))
    return RunPlan(
        data_sets, eval_data_sets, num_ranks, num_lanes, plan.num_batches, max_steps, lines, notes
    )


def make_train_stream(plan: RunPlan, settings: SupervisedSettings, **common: Any) -> PromptStream:
    """The stream that is trained on.

    Args:
        plan: Of the run.
        settings: Of the run.
        **common: Seed, image processor and world, for ``make_stream``.

    Raises:
        ConfigError: the world size does not divide the lanes, or there are too few samples.
    """
    open_sample = open_image_group if settings.task.group_by == "image" else decode_sample
    return make_stream(
        plan.data_sets,
        settings.data,
        num_lanes=plan.num_lanes,
        open_sample=open_sample,
        **common,
    )


def _open_images(samples: OpenSources) -> OpenSources:
    """The same data sets, image by image."""
    sources = []
    for source in samples.sources:
        if isinstance(source, SelectedSource):
            raise ConfigError("group_by", "image", "does not go with difficulty; use none")
        if not isinstance(source, ShardSource):
            raise ConfigError("group_by", "image", "needs shards; with json use none")
        sources.append(ImageGroupSource(source))
    return replace(samples, sources=sources)


def _describe_rows(settings: SupervisedSettings) -> str:
    """How groups will be computed, as far as settings and the policy's folder tell."""
    task, model = settings.task, settings.model
    plain = "one for each record, padded"
    if task.shared_prefix == "off":
        return plain
    if Path(model.model_name_or_path).is_dir():
        config = policy_config(model.model_name_or_path)
        obstacle = shared_prefix_obstacle(config, model.attn_implementation or "sdpa")
        check_packed(task.shared_prefix, obstacle)
        if obstacle:
            return f"{plain}: {obstacle}"
    return "packed, without padding"
