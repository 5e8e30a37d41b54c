"""The checks of an evaluation that come before the policy is loaded."""

import dataclasses
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.evaluation.evaluation_files import (
    ANSWERS_NAME,
    RESULTS_NAME,
    SavedRun,
    check_same_data,
    read_run,
)
from grpo_stream.grounding.evaluation.evaluation_metrics import DEFAULT_FIELDS, pick_fields
from grpo_stream.grounding.frames import answer_frame_for
from grpo_stream.grounding.prompts import load_template
from grpo_stream.printable import mask_secrets
from grpo_stream.records.formats.open_inputs import RuleFlags
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.open_records import open_records
from grpo_stream.stream.ordered_reader import spread_samples
from grpo_stream.stream.sources import Source
from grpo_stream.stream.world import World
from grpo_stream.train.batches.collate import PromptCollator
from grpo_stream.train.batches.prompt_check import check_prompts
from grpo_stream.train.checkpoints.task_file import Task, read_task
from grpo_stream.train.evaluate.evaluation_arguments import EvaluateArguments
from grpo_stream.train.models.chat_template import chat_template_notes, chat_template_variables
from grpo_stream.train.models.model_path import base_model_of
from grpo_stream.train.models.policy import policy_config
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.setup.arguments import TaskArguments
from grpo_stream.train.setup.engine_checks import check_engine_family
from grpo_stream.train.setup.open_data import check_template, image_limits, open_source

_NUM_LOOKED_AT = 16  # samples that tell which fields there are


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation will do; all of it was checked without loading weights."""

    args: EvaluateArguments
    world: World
    source: Source
    task: Task
    template_name: str
    """As the user or the checkpoint says it."""
    processor: Any
    fields: tuple[str, ...]
    """The record's own fields that are kept."""
    others: list[SavedRun]

    @property
    def data_names(self) -> list[str]:
        """The data set as the user named it."""
        names = [str(self.args.shards)] if self.args.json is None else self.args.json
        return list(map(mask_secrets, names))

    @property
    def notes(self) -> list[str]:
        """What works, but should be known."""
        return chat_template_notes(self.processor, self.task.chat_template_kwargs)

    @property
    def readings(self) -> tuple[str, ...]:
        """How the numbers of raw records are read; nothing of shards, whose manifest says it."""
        return getattr(self.source, "readings", ())


def plan_evaluation(args: EvaluateArguments, world: World) -> EvaluationPlan:
    """Checks all that can be checked without weights.

    Raises:
        ConfigError: a setting that cannot work, named with a value that does.
        ManifestError: the shards have no manifest.
        StoreError: they cannot be reached.
        RecordError: the records are no JSON.
    """
    _check_numbers(args, world)
    check_report_folder(args.report, overwrite=args.overwrite)
    config = policy_config(args.model)
    if args.use_vllm:
        check_engine(args, world)
        check_engine_family(config.model_type)
    task, template_name = _task(args, config)
    source = _open_source(args)
    if int(source.shard_counts.sum()) == 0:
        raise ConfigError("shards", args.shards, "must hold at least one sample to be evaluated")
    check_template(task.template, [source])
    _check_samples(args, spread_samples(source, _NUM_LOOKED_AT))
    others = [read_run(path) for path in args.compare or ()]
    for other in others:
        check_same_data(other, source.digest)
    processor = load_processor(args.model, min_pixels=args.min_pixels, max_pixels=args.max_pixels)
    variables = task.chat_template_kwargs
    words = (processor, task.template, task.answer_frame)
    check_prompts(PromptCollator(*words, chat_template_kwargs=variables), [source])
    fields = tuple(dict.fromkeys((*(args.by or ()), *DEFAULT_FIELDS)))
    return EvaluationPlan(args, world, source, task, template_name, processor, fields, others)


def check_report_folder(folder: str, *, overwrite: bool) -> None:
    """Checks that results can be written there and would replace none by chance.

    Raises:
        ConfigError: naming what is wrong.
    """
    path = Path(folder)
    if "://" in folder:
        raise ConfigError("report", folder, "must be a folder on this machine, for example report/")
    if path.exists() and not path.is_dir():
        raise ConfigError("report", folder, "is a file; give a folder, for example report/")
    if not path.is_dir() and not path.absolute().parent.is_dir():
        expected = f"cannot be made: there is no folder {path.absolute().parent}; make it first"
        raise ConfigError("report", folder, expected)
    nearest = path if path.is_dir() else path.absolute().parent
    if not os.access(nearest, os.W_OK):
        raise ConfigError("report", folder, f"cannot be written: no right to write in {nearest}")
    if not overwrite and any((path / name).exists() for name in (RESULTS_NAME, ANSWERS_NAME)):
        expected = "holds results; give another folder, or --overwrite"
        raise ConfigError("report", folder, expected)


def _check_numbers(args: EvaluateArguments, world: World) -> None:
    for name, least in (
        ("batch_size", 1),
        ("max_completion_length", 1),
        ("num_processes", 1),
        ("num_resamples", 100),
        ("num_pictures", 0),
        ("max_bad_samples", 0),
        ("num_reader_threads", 1),
        ("num_fetch_threads", 1),
        ("num_samples", 1),
    ):
        value = getattr(args, name)
        if value < least:
            default = type(args).__dataclass_fields__[name].default
            raise ConfigError(name, value, f"must be at least {least}, for example {default}")
    if args.num_processes > 1 and world.world_size > 1:
        expected = f"is for a start without launcher, which has started {world.world_size} ranks"
        raise ConfigError("num_processes", args.num_processes, expected)
    if args.point_radius is not None and not args.point_radius > 0:
        raise ConfigError("point_radius", args.point_radius, "must be above 0, for example 0.05")
    _check_way(args)
    if args.device not in ("auto", "cpu", "cuda"):
        raise ConfigError("device", args.device, "must be auto, cpu or cuda")
    dtypes = ("auto", "bfloat16", "float16", "float32")
    if args.dtype not in dtypes:
        raise ConfigError("dtype", args.dtype, f"must be one of {', '.join(dtypes)}")


def _check_way(args: EvaluateArguments) -> None:
    if args.zoom is not None and not args.zoom > 1:
        raise ConfigError("zoom", args.zoom, "must be above 1, for example 3")
    if args.zoom is not None and args.num_samples > 1:
        raise ConfigError("zoom", args.zoom, "is for one answer; leave out num_samples, or this")
    if args.temperature is None:
        return
    if args.num_samples == 1:
        expected = "is of sampled answers; add num_samples, for example 8, or leave it out"
        raise ConfigError("temperature", args.temperature, expected)
    if not args.temperature > 0:
        raise ConfigError("temperature", args.temperature, "must be above 0, for example 0.7")


def check_engine(args: EvaluateArguments, world: World) -> None:
    """Checks what an engine needs, before anything is loaded.

    Raises:
        ConfigError: naming what does not go with it, and a way out.
    """
    if importlib.util.find_spec("vllm") is None:
        expected = "needs the package vllm: pip install 'trl[vllm]'; or leave it out"
        raise ConfigError("use_vllm", True, expected)
    num_ranks = max(world.world_size, args.num_processes)
    if num_ranks > 1:
        expected = (
            f"is one process that spans GPUs, not {num_ranks} ranks; start one, with "
            f"vllm_tensor_parallel_size={num_ranks}"
        )
        raise ConfigError("use_vllm", True, expected)
    if args.vllm_tensor_parallel_size > 1 and base_model_of(args.model) is not None:
        expected = (
            "is for whole weights, and model is a LoRA adapter, merged in this process alone; use "
            "1, or merge it with launch/export.py --checkpoint CHECKPOINT --to FOLDER"
        )
        raise ConfigError("vllm_tensor_parallel_size", args.vllm_tensor_parallel_size, expected)
    for name, default in (("attn_implementation", None), ("device", "auto")):
        value = getattr(args, name)
        if value != default:
            expected = f"is chosen by the engine of use_vllm; leave it at {default}"
            raise ConfigError(name, value, expected)
    if not 0 < args.vllm_gpu_memory_utilization <= 1:
        expected = "must be above 0 and at most 1, for example 0.9"
        raise ConfigError("vllm_gpu_memory_utilization", args.vllm_gpu_memory_utilization, expected)
    for name in ("vllm_tensor_parallel_size", "vllm_max_model_length"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(name, value, "must be at least 1, or left out")


def _task(args: EvaluateArguments, config: PreTrainedConfig) -> tuple[Task, str]:
    """How the policy is asked: flags, then the checkpoint's own, then the defaults of training."""
    told = read_task(args.model)
    frame = args.answer_frame
    if frame is None and told is not None:
        frame = told.answer_frame
    frame = answer_frame_for(config.model_type, frame)
    template, name = None if told is None else told.template, "the checkpoint's own"
    if args.prompt_template is not None or template is None:
        name = args.prompt_template or TaskArguments.prompt_template
        template = load_template(name, config.model_type)
    variables = {} if told is None else told.chat_template_kwargs
    if args.chat_template_kwargs is not None:
        variables = chat_template_variables(args.chat_template_kwargs)
    return Task(template, frame, variables), name


def _open_source(args: EvaluateArguments) -> Source:
    data = args.data()
    if args.json is None:
        data.check()
        for name in ("format", *(one.name for one in dataclasses.fields(RuleFlags))):
            value = getattr(args, name)
            if value not in (None, "auto"):
                raise ConfigError(name, value, "goes with json; leave it out with shards")
        return open_source(data)
    if args.shards is not None:
        expected = f"give exactly one of shards and json (json={args.json!r}), as in shards=DIR"
        raise ConfigError("shards", args.shards, expected)
    if args.cache_dir is not None:
        raise ConfigError("cache_dir", args.cache_dir, "keeps shards; leave it out with json")
    return open_records(
        args.json,
        args.format,
        args.images_root,
        flags=data.rule_flags(),
        limits=image_limits(data),
        marks_inputs=True,
    )


def _check_samples(args: EvaluateArguments, samples: list[Sample]) -> None:
    """Finds what a few samples tell already."""
    for name in args.by or ():
        if samples and not any(pick_fields(sample.extra, [name]) for sample in samples):
            known = sorted({one for sample in samples for one in _field_names(sample.extra)})
            expected = f"is no field of the samples; they have {', '.join(known) or 'none'}"
            raise ConfigError("by", name, expected)
    for sample in samples:
        if args.point_radius is None and any(len(one) == 2 for one in sample.solutions):
            expected = (
                f"is needed: the solution of {sample.key} is a point; say how near is a hit, for "
                "example 0.05 of the image's diagonal"
            )
            raise ConfigError("point_radius", None, expected)


def _field_names(extra: dict[str, Any]) -> list[str]:
    names = []
    for name, value in extra.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [name]
    return names
