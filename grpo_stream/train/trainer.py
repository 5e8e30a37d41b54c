"""``trl.GRPOTrainer`` on a prompt stream: one group, one rank, one prefix.

What is overridden, and why, stands at each method; everything else (losses, advantages, metrics,
reference model, checkpoints, evaluation loop) is trl's and transformers' own.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from grpo_stream.config import StreamConfig
from grpo_stream.errors import ConfigError, CursorError
from grpo_stream.grounding.frames import answer_frame_for
from grpo_stream.grounding.prompts import load_template
from grpo_stream.grounding.rewards import load_reward, named_reward
from grpo_stream.images import ResizeRule
from grpo_stream.stream.dataset import PromptStream
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.records import RecordSource
from grpo_stream.stream.world import World
from grpo_stream.train.batches import MicroStepDataset, first_of
from grpo_stream.train.collate import Batch, PromptCollator
from grpo_stream.train.config import SHARED_PREFIX, check_supported
from grpo_stream.train.data import num_eval_lanes
from grpo_stream.train.groups import PromptGroups, check_groups, cut_micro_batches, reward_rows
from grpo_stream.train.metrics import stream_metrics
from grpo_stream.train.model import policy_config
from grpo_stream.train.position import (
    Position,
    SavedPosition,
    StepCount,
    check_updates,
    check_whole_epochs,
)
from grpo_stream.train.prefix import (
    pack_groups,
    prefix_positions,
    score_packed,
    shared_prefix_obstacle,
)
from grpo_stream.train.processor import load_processor, resize_rule
from grpo_stream.train.read_together import ReadTogether
from grpo_stream.train.rollout import (
    backbone_of,
    generate_groups,
    suppressed_token_ids,
    trim_completions,
)
from grpo_stream.train.zero import check_batch_arithmetic

logger = logging.get_logger("grpo_stream.train")

RewardFunction = Callable[..., list[float | None]]

CURSOR_NAME = "cursor.json"
"""File of a checkpoint that holds the stream's position."""
QUARANTINE_NAME = "quarantine.json"
"""File of a checkpoint that lists the bad samples met since the run was last started, if any."""


class PersonalizedGRPOTrainer(GRPOTrainer):
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
        allow_new_lanes: A checkpoint of another number of prompts per generation batch is gone on
            with, over exactly what is left of its epoch, instead of being refused.
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
        allow_new_lanes: bool = False,
        **kwargs: Any,
    ) -> None:
        args = args or GRPOConfig("out")
        num_prompts = _check_args(args, shared_prefix)
        rewards = _named_rewards(reward_funcs)
        if train_dataset is None:
            raise ConfigError("train_dataset", None, "must be a PromptStream or raw records")
        model_id = model if isinstance(model, str) else model.config._name_or_path  # noqa: SLF001
        config = policy_config(model_id) if isinstance(model, str) else model.config
        template = load_template(prompt_template, config.model_type)
        frame = answer_frame_for(config.model_type, answer_frame)
        processor = processing_class or load_processor(model_id)
        images = (image_processor or processor.image_processor, images_root)
        train_stream = _stream(train_dataset, args, num_prompts, *images)
        _check_stream(train_stream, args, num_prompts)
        eval_stream = None
        if eval_dataset is not None:
            num_eval_prompts = num_eval_lanes(args)
            eval_stream = _stream(eval_dataset, args, num_eval_prompts, *images)
            _check_stream(eval_stream, args, num_eval_prompts)
        if data_collator is None:  # another collator may take images of any size
            for stream in (train_stream, eval_stream):
                _check_sizes(stream, resize_rule(images[0]))
        super().__init__(
            model,
            rewards,
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
        )
        self.train_stream = train_stream
        self.train_loader = PromptLoader(train_stream, self.data_collator)
        self.eval_loader: PromptLoader[Batch] | None = None
        if eval_stream is not None:
            self.eval_loader = PromptLoader(eval_stream, self.data_collator)
            self._eval_micro_steps = MicroStepDataset(ReadTogether(self.eval_loader), 1)
        self._reader = ReadTogether(self.train_loader)
        self._micro_steps = MicroStepDataset(
            self._reader, args.steps_per_generation * self.num_iterations
        )
        self._allow_new_lanes = allow_new_lanes
        self._resume_from: str | None = None
        self._start = Position(0, 0)
        self._groups: PromptGroups | None = None
        self._micro_batches: list[dict[str, Any]] | None = None
        self._metrics_logged: dict[str, float] = {}
        self.shared_prefix = self._decide_shared_prefix(shared_prefix)
        self._suppress_vision_tokens()

    # ---------------------------------------------------------------- data

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Overrides ``GRPOTrainer.get_train_dataloader`` (trl 1.16).

        trl repeats records inside the data set and lets accelerate deal them out to ranks. Here
        the stream already gives this rank its own prompts, once each, so neither may touch it:
        one item per micro-step, the same batch for all micro-steps of one generation.
        """
        return DataLoader(self._micro_steps, batch_size=1, collate_fn=first_of)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Batch]:
        """Overrides ``GRPOTrainer.get_eval_dataloader`` (trl 1.16), as for training."""
        if self.eval_loader is None:
            raise ConfigError("eval_dataset", eval_dataset, "none was given to the trainer")
        return DataLoader(self._eval_micro_steps, batch_size=1, collate_fn=first_of)

    def num_examples(self, dataloader: DataLoader[Batch]) -> int:
        """Overrides ``Trainer.num_examples`` (transformers 5.23): prompts of an epoch."""
        reader: ReadTogether[Batch] = dataloader.dataset.reader  # type: ignore[attr-defined]
        stream = reader.loader.stream
        return stream.num_batches * stream.config.num_lanes

    # ---------------------------------------------------------------- position

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer._inner_training_loop`` (transformers 5.23): notes the checkpoint.

        The run's length, which is computed first, depends on the position that it holds.
        """
        self._resume_from = kwargs.get("resume_from_checkpoint")
        return super()._inner_training_loop(*args, **kwargs)

    def set_initial_training_values(
        self, args: GRPOConfig, dataloader: DataLoader[Batch]
    ) -> tuple[Any, ...]:
        """Extends ``Trainer.set_initial_training_values`` (transformers 5.23): finds the position.

        Epochs and global steps are upstream's, unless batch sizes were changed before or are
        changed now: then the global steps done and those left add up to the run.
        """
        values: tuple[Any, ...] = super().set_initial_training_values(args, dataloader)
        num_epochs, *middle, max_steps = values
        done = 0
        self._start = Position(0, 0)
        if self._resume_from is not None:
            done = self._enter(Path(self._resume_from))
        steps = self._step_count()
        per_epoch = steps.updates_in(self.train_stream.plan.segments_epoch + 1)
        is_usual = self._start == _usual_position(done, per_epoch, args.gradient_accumulation_steps)
        if not is_usual or self.train_stream.plan.segments:
            if args.max_steps > 0:
                left = max(0, max_steps - done)
                num_epochs = steps.end(self._start, left)[0] + 1
            else:
                check_whole_epochs(args.num_train_epochs)
                max_steps = done + steps.updates_until(self._start, num_epochs)
        self.train_loader.until = steps.end(self._start, max(0, max_steps - done))
        return num_epochs, *middle, max_steps

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Extends ``Trainer._init_training_state`` (transformers 5.23): the cursor's position."""
        super()._init_training_state(*args, **kwargs)
        return self._start

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Replaces ``Trainer._load_from_checkpoint`` (transformers 5.23) for whole models.

        Checkpoints of Qwen2.5-VL name their weights as its first files did. transformers looks for
        the model's own names in them, without the renaming of ``from_pretrained``, and would go on
        with the weights that the run began with (huggingface/transformers issue 43701). DeepSpeed
        does not come through here: it restores its own files.
        """
        model = self.model if model is None else model
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        """Extends ``Trainer._load_best_model`` (transformers 5.23): the same, for the best one."""
        super()._load_best_model()
        if not self.is_deepspeed_enabled and isinstance(self.model, PreTrainedModel):
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Extends ``Trainer._run_epoch`` (transformers 5.23): tells the stream the epoch.

        Also sets trl's micro-step counter, which its checkpoints lack: it counts from the epoch's
        start, where a generation begins in any case.
        """
        epoch = kwargs["epoch"]
        self._micro_steps.epoch = epoch
        # A segment is shorter than its epoch.
        steps = self._step_count()
        kwargs["steps_in_epoch"] = steps.micro_steps_in(epoch)
        kwargs["num_update_steps_per_epoch"] = steps.updates_in(epoch)
        self._step = self._start.micro_step if epoch == self._start.epoch else 0
        self._micro_batches = None
        super()._run_epoch(*args, **kwargs)

    def close(self) -> None:
        """Ends the reading threads. Iterating again is not possible afterwards."""
        for loader in (self.train_loader, self.eval_loader):
            if loader is not None:
                loader.close()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Extends ``Trainer._save_checkpoint`` (transformers 5.23): the cursor goes with it."""
        if self.args.should_save:
            # Before the rest: older checkpoints are removed as soon as the rest is written.
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CURSOR_NAME).write_text(json.dumps(self._position().to_dict(), indent=1))
            bad = self._reader.bad_samples
            if bad.quarantine:
                found = {"num_bad_by_cause": bad.num_by_cause, "samples": bad.quarantine}
                (folder / QUARANTINE_NAME).write_text(json.dumps(found, indent=1))
        super()._save_checkpoint(model, trial)

    def _position(self) -> SavedPosition:
        """The first generation batch that is not done; one in use counts as not done."""
        batch_index, in_use = divmod(self._step, self._micro_steps.num_repeats)
        place = self.train_stream.plan.place_after(self._micro_steps.epoch, batch_index)
        of = self._micro_steps.num_repeats
        return SavedPosition(self.train_stream.cursor(*place), (in_use, of))

    def _enter(self, checkpoint: Path) -> int:
        """Takes the stream to a checkpoint's position; the global steps that it has done."""
        path = checkpoint / CURSOR_NAME
        if not path.is_file():
            raise CursorError(
                f"{checkpoint} holds no {CURSOR_NAME}: it was not written by this trainer, or its "
                "writing was interrupted; resume from an older checkpoint"
            )
        read = SavedPosition.from_dict(json.loads(path.read_text()))
        saved = read.enter(self.train_stream, allow_new_lanes=self._allow_new_lanes)
        done: int = TrainerState.load_from_json(checkpoint / TRAINER_STATE_NAME).global_step
        repeats = self._micro_steps.num_repeats
        if saved.micro_steps_in_use is None:  # an older checkpoint: as transformers counts
            in_use = done * self.args.gradient_accumulation_steps % repeats
            saved = replace(saved, micro_steps_in_use=(in_use, repeats))
        self._start = Position(saved.cursor.epoch, saved.micro_step(repeats))
        check_updates(self._start, self._step_count())
        return done

    def _step_count(self) -> StepCount:
        repeats, update = self._micro_steps.num_repeats, self.args.gradient_accumulation_steps
        return StepCount(self.train_stream.plan, repeats, update)

    # ---------------------------------------------------------------- rollout

    def _prepare_inputs(self, generation_batch: Batch) -> dict[str, Any]:
        """Replaces ``GRPOTrainer._prepare_inputs`` (trl 1.16).

        The same buffer, with two differences: prompts are expanded to groups here, as references,
        and micro-batches are cut in order (trl shuffles the rows, which parts groups).
        """
        if not self.model.training:
            return self._rollout(generation_batch, self.num_generations_eval)
        num_micro_batches = self.args.steps_per_generation
        starts = self._step % self._micro_steps.num_repeats == 0
        if starts or self._micro_batches is None:
            scored = self._rollout(generation_batch, self.num_generations)
            groups = scored.pop("groups")
            self._micro_batches = cut_micro_batches(scored, groups, num_micro_batches)
            self._log_stream()
        inputs: dict[str, Any] = self._micro_batches[self._step % num_micro_batches]
        return inputs

    def _rollout(self, batch: Batch, num_generations: int) -> dict[str, Any]:
        """Samples and scores the groups of a batch; trl's dict with the prompts as ``groups``."""
        groups = PromptGroups.from_batch(batch, num_generations, self.accelerator.device)
        if self.shared_prefix:
            backbone = backbone_of(self.accelerator.unwrap_model(self.model))
            groups = replace(groups, positions=prefix_positions(backbone, groups))
        rows = reward_rows(batch, num_generations)
        check_groups([row["key"] for row in rows], num_generations)
        with self._scoring(groups):
            scored: dict[str, Any] = self._generate_and_score_completions(rows)
        scored["groups"] = groups
        return scored

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Replaces ``GRPOTrainer._tokenize_prompts`` (trl 1.16): the collator has encoded them."""
        groups = self._current_groups(len(prompts))
        ids = [row.tolist() for row in groups.prompt_ids]
        repeated = [row for row, size in zip(ids, groups.sizes, strict=True) for _ in range(size)]
        return repeated, None, {}

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        **kwargs: Any,
    ) -> tuple[list[list[int]], None]:
        """Replaces ``GRPOTrainer._generate_single_turn`` (trl 1.16) by one prefill per group."""
        groups = self._current_groups(len(prompt_ids))
        if not self.shared_prefix:
            longest = max(len(ids) for ids in prompt_ids)
            fields = multimodal_fields | groups.repeated_images()
            fields["mm_token_type_ids"] = groups.token_types(longest, 0)
            sampled: tuple[list[list[int]], None] = super()._generate_single_turn(
                prompt_ids, images, fields, num_generations, **kwargs
            )
            return sampled
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as model:
            completion_ids = generate_groups(
                model, groups, self.generation_config, self._tokenizer.pad_token_id
            )
        return trim_completions(completion_ids, self.eos_token_ids), None

    # ---------------------------------------------------------------- scoring

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Extends ``GRPOTrainer._compute_loss`` (trl 1.16): names the prompts being scored."""
        with self._scoring(inputs["groups"]):
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Replaces ``GRPOTrainer._get_per_token_logps_and_entropies`` (trl 1.16).

        Policy, old and reference log-probabilities all come through here. Each group is packed
        into one row (:mod:`grpo_stream.train.prefix`); without ``shared_prefix`` trl's own way
        is taken, with the images repeated per completion.
        """
        groups = self._current_groups(len(input_ids))
        step = min(batch_size or len(input_ids), len(input_ids))
        log_probs, entropies = [], []
        for start in range(0, len(input_ids), step):
            rows = slice(start, min(start + step, len(input_ids)))
            part = groups.rows(rows.start, rows.stop)
            if not self.shared_prefix:
                scored = super()._get_per_token_logps_and_entropies(
                    model,
                    input_ids[rows],
                    attention_mask[rows],
                    logits_to_keep,
                    compute_entropy=compute_entropy,
                    num_images=[1] * part.num_rows,
                    mm_token_type_ids=part.token_types(
                        input_ids.size(1) - logits_to_keep, logits_to_keep
                    ),
                    **part.repeated_images(),
                )[:2]
            else:
                scored = self._score_packed(
                    model,
                    part,
                    input_ids[rows, -logits_to_keep:],
                    attention_mask[rows, -logits_to_keep:],
                    compute_entropy=compute_entropy,
                )
            log_probs.append(scored[0])
            entropies.append(scored[1])
        entropy = torch.cat(entropies) if compute_entropy else None
        return torch.cat(log_probs), entropy, None

    def _score_packed(
        self,
        model: Any,
        groups: PromptGroups,
        completion_ids: torch.Tensor,
        completion_mask: torch.Tensor,
        *,
        compute_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        positions = prefix_positions(backbone_of(self.accelerator.unwrap_model(model)), groups)
        packed = pack_groups(
            groups, completion_ids, completion_mask, positions, self._tokenizer.pad_token_id
        )
        with self.accelerator.autocast():
            return score_packed(
                model, packed, groups, completion_mask, compute_entropy=compute_entropy
            )

    @contextlib.contextmanager
    def _scoring(self, groups: PromptGroups) -> Iterator[None]:
        """The prompts that trl's tensors belong to while its methods run."""
        self._groups = groups
        try:
            yield
        finally:
            self._groups = None

    def _current_groups(self, num_rows: int) -> PromptGroups:
        groups = self._groups
        if groups is None or groups.num_rows != num_rows:
            found = "no prompts" if groups is None else f"{groups.num_rows} completions"
            raise RuntimeError(f"{num_rows} completions are scored, {found} were announced")
        return groups

    # ---------------------------------------------------------------- settings

    def _decide_shared_prefix(self, wanted: str) -> bool:
        obstacle = shared_prefix_obstacle(self.model.config)
        if wanted == "on" and obstacle:
            raise ConfigError("shared_prefix", wanted, f"cannot be: {obstacle}; use 'auto'")
        is_on = wanted != "off" and obstacle is None
        if obstacle and wanted == "auto" and self.accelerator.is_main_process:
            logger.warning("shared_prefix is off: %s", obstacle)
        return is_on

    def _suppress_vision_tokens(self) -> None:
        ids = suppressed_token_ids(self._tokenizer)
        self.generation_kwargs["suppress_tokens"] = ids
        self.generation_config.suppress_tokens = ids

    def _log_stream(self) -> None:
        """Logs what the stream did: since the last generation batch, or so far for bad samples.

        Bad samples are those of all ranks; all else is of the rank that logs.
        """
        metrics = self._metrics["train"]
        bad = self._reader.bad_samples.num_by_cause
        metrics["stream/num_bad_samples"].append(bad.total())
        for cause, number in bad.items():
            metrics[f"stream/bad/{cause}"].append(number)
        now = stream_metrics(self.train_loader)
        for name, value in now.items():
            metrics[f"stream/{name}"].append(value - self._metrics_logged.get(name, 0.0))
        self._metrics_logged = now


def _check_args(args: GRPOConfig, shared_prefix: str) -> int:
    """Checks what can be checked before anything is loaded; prompts per generation batch."""
    check_supported(args)
    if shared_prefix not in SHARED_PREFIX:
        expected = f"must be one of {', '.join(SHARED_PREFIX)}"
        raise ConfigError("shared_prefix", shared_prefix, expected)
    num_prompts: int = check_batch_arithmetic(
        world_size=args.world_size,
        per_device_train_batch_size=args.per_device_train_batch_size,
        steps_per_generation=args.steps_per_generation,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        num_generations=args.num_generations,
        num_iterations=args.num_iterations,
    )
    return num_prompts


def _usual_position(num_done: int, updates_per_epoch: int, micro_steps_per_update: int) -> Position:
    """Where transformers places a run after ``num_done`` global steps."""
    epoch, updates = divmod(num_done, updates_per_epoch)
    return Position(epoch, updates * micro_steps_per_update)


def _named_rewards(
    reward_funcs: RewardFunction | str | Sequence[RewardFunction | str],
) -> list[RewardFunction]:
    given: list[RewardFunction | str] = (
        [reward_funcs]
        if isinstance(reward_funcs, str) or callable(reward_funcs)
        else list(reward_funcs)
    )
    return [named_reward(load_reward(f) if isinstance(f, str) else f) for f in given]


def _stream(
    data: PromptStream | Sequence[Mapping[str, Any]],
    args: GRPOConfig,
    num_lanes: int,
    image_processor: Any,
    images_root: str | Path | None,
) -> PromptStream:
    if isinstance(data, PromptStream):
        return data
    rule = resize_rule(image_processor)
    config = StreamConfig(num_lanes=num_lanes, seed=args.seed, resize=rule)
    source = RecordSource(data, images_root, limits=config.limits)
    return PromptStream(source, config, _world(args))


def _check_stream(stream: PromptStream, args: GRPOConfig, num_prompts: int) -> None:
    if stream.config.num_lanes != num_prompts:
        raise ConfigError(
            "num_lanes",
            stream.config.num_lanes,
            f"the batch sizes give {num_prompts} prompts per generation batch (completions over "
            f"all ranks / num_generations); use num_lanes={num_prompts}",
        )
    if stream.world != _world(args):
        raise ConfigError("world", stream.world, f"the trainer runs as {_world(args)}")


def _check_sizes(stream: PromptStream | None, rule: ResizeRule) -> None:
    """Images are cut into patches as they come: the stream must have brought them to a size."""
    given = rule if stream is None else stream.config.resize
    if given is None or given.multiple % rule.multiple:
        raise ConfigError(
            "resize",
            given,
            f"the model takes sizes in multiples of {rule.multiple}; use StreamConfig(resize="
            "resize_rule(image_processor))",
        )


def _world(args: GRPOConfig) -> World:
    return World(args.process_index, args.world_size, args.local_process_index)
