"""``trl.GRPOTrainer`` on a prompt stream: one group, one rank, one prefix.

What is overridden, and why, stands at each method; everything else (losses, advantages, metrics,
reference model, checkpoints, evaluation loop) is trl's and transformers' own.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel
from transformers.utils import logging
from trl import GRPOConfig

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.rewards import named_reward, with_template
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.record_source import RecordSource
from grpo_stream.train.batches.collate import Batch, PromptCollator
from grpo_stream.train.checkpoints.task_file import Task, write_task
from grpo_stream.train.group_trainer import GroupTrainer
from grpo_stream.train.models.policy import policy_config
from grpo_stream.train.models.processor import known_rule, load_processor, resize_rule
from grpo_stream.train.prefix.attention import use_shared_prefix_attention
from grpo_stream.train.prefix.backbone import freeze_vision_tower as freeze_tower
from grpo_stream.train.prefix.generation import suppressed_token_ids
from grpo_stream.train.prefix.packing import shared_prefix_obstacle
from grpo_stream.train.setup.arguments import LogArguments
from grpo_stream.train.setup.settings_checks import (
    RewardFunction,
    check_obstacle,
    check_policy,
    check_settings,
    check_stream,
    num_eval_lanes,
    world_of,
)
from grpo_stream.train.vllm import Engine, banning_kwargs, pixel_limits

logger = logging.get_logger("grpo_stream.train")

_TRL_ROLLOUTS = ("tools", "rollout_func", "environment_factory")


class PersonalizedGRPOTrainer(GroupTrainer):
    """GRPO for visual grounding, fed by a prompt stream.

    Each record is fetched, decoded, resized and encoded once, on the one rank that owns its whole
    group, ahead of the step. Under ``shared_prefix`` the prompt is also computed once per group.

    Args:
        model: Folder or hub id, or a model.
        reward_funcs: Functions with trl's signature, or names for
            :func:`grpo_stream.grounding.rewards.load_reward`. They receive the columns
            ``solution`` (frame ``original``), ``scales`` (original size), ``model_size``,
            ``answer_frame``, ``key`` and the record's own fields.
        args: trl's settings. ``max_steps`` is not needed: the data give the length.
        train_dataset: A :class:`PromptStream`, or raw records (mappings with ``image``,
            ``prompt``, ``solution``) whose images lie in ``images_root``.
        eval_dataset: The same, for evaluation while training.
        processing_class: The model's processor; loaded from ``model`` when None.
        image_processor: Used for images instead of the processor's own.
        images_root: Folder that the ``image`` of a raw record is relative to.
        data_collator: From samples to a batch; a :class:`PromptCollator` when None.
        prompt_template: Name or YAML file of the words around an instruction.
        answer_frame: Frame the model answers in; None takes the model family's.
        shared_prefix: ``auto`` computes a group's prompt once where the model allows it and logs
            the reason where not; ``on`` refuses instead; ``off`` takes trl's own way.
        shared_prefix_attention: How packed groups attend, see
            :func:`grpo_stream.train.setup.settings_checks.packed_attention`.
        freeze_vision_tower: Leaves the vision tower untrained. Under ``shared_prefix`` its features
            are computed once per prompt then; that holds for any tower without trained weights.
        refill_zero_variance: Up to so many times more prompts are sampled in the place of groups
            whose rewards are all equal (:mod:`grpo_stream.train.batches.refill`). The stream's
            lanes are then ``1 + refill_zero_variance`` times the prompts that are trained on.
        allow_new_lanes: A checkpoint of another number of prompts per generation batch is gone on
            with, over exactly what is left of its epoch, instead of being refused.
        log: How the run is watched.
        **kwargs: Passed on to ``GRPOTrainer``.

    Raises:
        ConfigError: settings that cannot work, before the model is loaded where possible.
    """

    _name = "PersonalizedGRPO"

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: RewardFunction | str | Sequence[RewardFunction | str],
        args: GRPOConfig | None = None,
        train_dataset: PromptStream | Sequence[Mapping[str, Any]] | None = None,
        eval_dataset: PromptStream | Sequence[Mapping[str, Any]] | None = None,
        processing_class: Any = None,
        *,
        image_processor: Any = None,
        images_root: str | Path | None = None,
        data_collator: Callable[[Sequence[Any]], Batch] | None = None,
        prompt_template: str = "point",
        answer_frame: str | None = None,
        shared_prefix: str = "auto",
        shared_prefix_attention: str = "auto",
        freeze_vision_tower: bool = False,
        refill_zero_variance: int = 0,
        allow_new_lanes: bool = False,
        log: LogArguments | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or GRPOConfig("out")
        log = log or LogArguments()
        checked = check_settings(
            args,
            log,
            reward_funcs,
            shared_prefix=shared_prefix,
            shared_prefix_attention=shared_prefix_attention,
            refill_zero_variance=refill_zero_variance,
            has_eval_data=eval_dataset is not None,
        )
        self.refill_zero_variance = refill_zero_variance
        self.packed_attention = checked.packed_attention
        for name in _TRL_ROLLOUTS:
            if kwargs.get(name) is not None:
                raise ConfigError(name, kwargs[name], "makes prompts of its own; leave it out")
        if train_dataset is None:
            raise ConfigError("train_dataset", None, "must be a PromptStream or raw records")
        model_id = model if isinstance(model, str) else model.config._name_or_path  # noqa: SLF001
        revision = (args.model_init_kwargs or {}).get("revision") or "main"
        config = policy_config(model_id, revision) if isinstance(model, str) else model.config
        template, frame = check_policy(
            config, args, prompt_template=prompt_template, answer_frame=answer_frame
        )
        processor = processing_class or load_processor(model_id, revision=revision)
        images = (image_processor or processor.image_processor, images_root)
        # Another collator may take images of any size.
        rule = None if data_collator is not None else known_rule(images[0])
        train_stream = _stream(train_dataset, args, checked.num_lanes, *images)
        check_stream(train_stream, args, checked.num_lanes, rule)
        eval_stream = None
        if eval_dataset is not None:
            eval_stream = _stream(eval_dataset, args, num_eval_lanes(args), *images)
            check_stream(eval_stream, args, num_eval_lanes(args), rule)
        banned = suppressed_token_ids(processor.tokenizer)
        if args.use_vllm:
            args.generation_kwargs = banning_kwargs(banned, args.generation_kwargs)
        super().__init__(
            model,
            [named_reward(with_template(one, template)) for one in checked.rewards],
            args,
            # trl accepts only its own kinds of data sets; ours is read in get_train_dataloader.
            Dataset.from_dict({"prompt": []}),
            None if eval_dataset is None else Dataset.from_dict({"prompt": []}),
            processor,
            **kwargs,
        )
        self.data_collator = data_collator or PromptCollator(
            processor,
            template,
            frame,
            image_processor=image_processor,
            images_root=images_root,
            chat_template_kwargs=args.chat_template_kwargs,
        )
        self._observe(log)
        self._read_streams(train_stream, eval_stream, allow_new_lanes=allow_new_lanes)
        if freeze_vision_tower:
            freeze_tower(self.model)
        self._has_same_vision_tower = isinstance(model, str)
        self.shared_prefix = self._decide_shared_prefix(shared_prefix)
        if self.use_vllm:
            rule = resize_rule(images[0])
            image_token_id = self.model.config.image_token_id
            self._engine = Engine(self.vllm_generation, image_token_id, pixel_limits(rule))
        else:
            self._suppress(banned)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Extends ``Trainer._save`` (transformers 5.23): how the policy is asked goes with it."""
        super()._save(output_dir, state_dict)
        collator = self.data_collator
        if self.args.should_save and isinstance(collator, PromptCollator):
            task = Task(collator.template, collator.answer_frame, collator.chat_template_kwargs)
            write_task(output_dir or self.args.output_dir, task)

    def _decide_shared_prefix(self, wanted: str) -> bool:
        obstacle = shared_prefix_obstacle(self.model.config)
        check_obstacle(wanted, obstacle)
        is_on = wanted != "off" and obstacle is None
        if is_on:
            for model in filter(None, (self.model, self.ref_model)):
                use_shared_prefix_attention(self.accelerator.unwrap_model(model))
        if obstacle and wanted == "auto" and self.accelerator.is_main_process:
            logger.warning("shared_prefix is off: %s", obstacle)
        return is_on

    def _suppress(self, token_ids: list[int]) -> None:
        given = (self.args.generation_kwargs or {}).get("suppress_tokens") or []
        ids = sorted({*token_ids, *given, self.model.config.image_token_id})
        self.generation_kwargs["suppress_tokens"] = ids
        self.generation_config.suppress_tokens = ids


def _stream(
    data: PromptStream | Sequence[Mapping[str, Any]],
    args: GRPOConfig,
    num_lanes: int,
    image_processor: Any,
    images_root: str | Path | None,
) -> PromptStream:
    if isinstance(data, PromptStream):
        return data
    rule = known_rule(image_processor)
    config = StreamConfig(num_lanes=num_lanes, stream_seed=args.seed, resize=rule)
    source = RecordSource(data, images_root, limits=config.limits)
    return PromptStream(source, config, world_of(args))
