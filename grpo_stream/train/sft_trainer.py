"""``trl.SFTTrainer`` on a prompt stream: the answer is taught, an image is computed once.

All that is overridden of trl (1.16) and transformers (5.23) for supervised fine-tuning alone is in
this file: rows, losses and evaluation. What GRPO overrides as well is in
:mod:`grpo_stream.train.streaming_trainer`. Each method says what it extends or replaces, and why.
Losses, schedules, optimizers and weights on disk are trl's and transformers' own.
"""

from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.train.batches.collate import Batch, PromptCollator
from grpo_stream.train.batches.micro_steps import first_of
from grpo_stream.train.batches.prompt_check import check_prompts
from grpo_stream.train.checkpoints.run_id import check_old_checkpoints
from grpo_stream.train.feed import Feed
from grpo_stream.train.models.policy import continued_adapter
from grpo_stream.train.models.vision_attention import check_vision_attention
from grpo_stream.train.observe.bad_steps import check_max_bad_steps
from grpo_stream.train.prefix.attention import use_shared_prefix_attention
from grpo_stream.train.prefix.packing import shared_prefix_obstacle
from grpo_stream.train.run_state import RunState
from grpo_stream.train.setup.arguments import LogArguments
from grpo_stream.train.setup.open_data import check_all_have_images, check_template
from grpo_stream.train.setup.policy_inputs import PolicyInputs, read_policy
from grpo_stream.train.streaming_trainer import StreamingTrainer
from grpo_stream.train.supervised.supervised_arguments import SupervisedArguments
from grpo_stream.train.supervised.supervised_batches import MicroBatches, SupervisedCollator
from grpo_stream.train.supervised.supervised_checks import (
    check_no_balancing_loss,
    check_packed,
    check_streams,
    check_supervised,
)
from grpo_stream.train.supervised.supervised_rows import packed_inputs, plain_inputs
from grpo_stream.train.supervised.supervised_scores import Losses, share_of_hits, without_repeats
from grpo_stream.train.supervised.taught_answers import TaughtAnswers

logger = logging.get_logger("grpo_stream.train")


class StreamingSFTTrainer(StreamingTrainer, SFTTrainer):
    """Supervised fine-tuning for visual grounding, fed by a prompt stream.

    A batch of the stream is the global batch of one update, so its order does not depend on ranks
    and micro-batches. The loss is the mean over the answers' tokens of that batch.

    Args:
        model: Folder or hub id, or a model.
        args: trl's settings. ``max_steps`` is not needed: the data give the length.
        train_dataset: Of records, or of image groups
            (:func:`grpo_stream.stream.image_groups.open_image_group`). Its lanes are
            ``per_device_train_batch_size * gradient_accumulation_steps * world size``.
        eval_dataset: Of records, for evaluation while training; its lanes are
            ``per_device_eval_batch_size * world size``.
        processing_class: The model's processor; loaded from ``model`` when None.
        task: What is taught, and how.
        allow_new_lanes: See :class:`grpo_stream.train.feed.Feed`.
        old_checkpoints: What becomes of another run's checkpoints in ``output_dir`` when this one
            begins: ``refuse``, ``move`` or ``keep`` them.
        log: How the run is watched.
        **kwargs: Passed on to ``SFTTrainer``.

    Attributes:
        train_stream: What is trained on; ``train_loader`` reads it ahead.
        shared_prefix: Whether groups are packed, and an image is computed once for all its records.
        phases: Stopwatch of this rank.
        run_metrics: The route by which a number reaches the log.

    Raises:
        ConfigError: settings that cannot work, before the model is loaded where possible.
    """

    _name = "StreamingSFT"

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: SFTConfig,
        train_dataset: PromptStream,
        eval_dataset: PromptStream | None = None,
        processing_class: Any = None,
        *,
        task: SupervisedArguments | None = None,
        allow_new_lanes: bool = False,
        old_checkpoints: str = "refuse",
        log: LogArguments | None = None,
        **kwargs: Any,
    ) -> None:
        self._task, log = task or SupervisedArguments(), log or LogArguments()
        log.check()
        check_old_checkpoints(old_checkpoints)
        check_max_bad_steps(self._task.max_bad_steps)
        check_vision_attention(self._task.vision_attn_implementation)
        self._task.check(has_eval_data=eval_dataset is not None)
        check_supervised(args, has_eval_data=eval_dataset is not None)
        check_streams(train_dataset, eval_dataset, args)
        policy = read_policy(
            model,
            args,
            processing_class,
            prompt_template=self._task.prompt_template,
            answer_frame=self._task.answer_frame,
            master_weights=self._task.master_weights,
            has_new_adapter=kwargs.get("peft_config") is not None,
        )
        check_no_balancing_loss(policy.config, args)
        check_template(policy.template, train_dataset.sources)
        check_all_have_images(train_dataset.sources, args.world_size)
        collator = self._make_collator(policy, args, train_dataset)
        check_prompts(collator.prompts, train_dataset.sources)
        # trl looks at a sample of its own kinds of data sets; ours is read in get_train_dataloader.
        empty = Dataset.from_list([{"messages": [], "images": []}])
        empty_eval = None if eval_dataset is None else empty
        trained, processor = continued_adapter(model, args), policy.processor
        super().__init__(trained, args, collator, empty, empty_eval, processor, **kwargs)
        # Qwen2.5-VL's own loss knows no number of tokens, so transformers would take the mean over
        # micro-batches (``Trainer.get_batch_samples``, 5.23); trl's loss does know it.
        self.model_accepts_loss_kwargs = True
        self._prepare_model(
            self._task.vision_attn_implementation,
            self._task.master_weights,
            freeze_vision_tower=self._task.freeze_vision_tower,
        )
        self.shared_prefix = self._use_shared_prefix(self._task.shared_prefix)
        feed = Feed(
            train_dataset,
            eval_dataset,
            collator,
            args,
            allow_new_lanes=allow_new_lanes,
            num_repeats=args.gradient_accumulation_steps,
        )
        run_state = RunState(args, self.accelerator, old_checkpoints, self._task.master_weights)
        self._use_parts(feed, run_state, log, self._task.max_bad_steps)
        self._eval_losses = Losses()

    def _make_collator(
        self, policy: PolicyInputs, args: SFTConfig, stream: PromptStream
    ) -> SupervisedCollator:
        prompts = PromptCollator(
            policy.processor,
            policy.template,
            policy.frame,
            chat_template_kwargs=self._task.template_variables,
            max_prompt_tokens=stream.config.max_prompt_tokens,
        )
        answers = TaughtAnswers(
            policy.template, policy.frame, self._task.answer_key, self._task.snap
        )
        return SupervisedCollator(prompts, answers, args.per_device_train_batch_size)

    def _use_shared_prefix(self, wanted: str) -> bool:
        obstacle = shared_prefix_obstacle(self.model.config)
        check_packed(wanted, obstacle)
        if obstacle and wanted == "auto" and self.accelerator.is_main_process:
            logger.warning("shared_prefix is off: %s", obstacle)
        is_used = wanted != "off" and obstacle is None
        if is_used:
            use_shared_prefix_attention(self.accelerator.unwrap_model(self.model))
        return is_used

    # ---------------------------------------------------------------- data and position

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Replaces ``Trainer.get_train_dataloader`` (transformers 5.23): one item per micro-step.

        accelerate must not deal the stream out to ranks: it gives this rank its own part already.
        """
        parts = MicroBatches(self._feed.micro_steps, self._begin_batch)
        return DataLoader(parts, batch_size=1, collate_fn=first_of)

    def _begin_batch(self, keys: list[str]) -> None:
        self.phases.keys = keys
        self._feed.log_counters(self.run_metrics)

    def _sums_of_trl(self) -> dict[str, Any]:
        return {"num_tokens": self._total_train_tokens}

    def _restore_sums_of_trl(self, saved: dict[str, Any]) -> None:
        self._total_train_tokens = saved["num_tokens"]

    @property
    def _prompt_collator(self) -> PromptCollator:
        prompts: PromptCollator = self.data_collator.prompts
        return prompts

    @property
    def _has_packed_groups(self) -> bool:
        return self.shared_prefix

    # ---------------------------------------------------------------- rows and losses

    def _prepare_inputs(self, inputs: Batch) -> dict[str, Any]:
        """Replaces ``Trainer._prepare_inputs`` (transformers 5.23): rows are laid out here.

        Images are normalised and cut on the device, once per group.
        """
        pad = self._tokenizer.pad_token_id
        with self.phases("device_input"):
            lay_out = packed_inputs if self.shared_prefix else plain_inputs
            model = self.accelerator.unwrap_model(self.model)
            return lay_out(model, inputs, pad, self.args.device)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Extends ``SFTTrainer.compute_loss`` (trl 1.16): one that is not finite is noticed."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return self._observer.bad_steps.guard(loss, self.phases.keys) if model.training else loss

    def prediction_step(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> Any:
        """Replaces ``SFTTrainer.prediction_step`` (trl 1.16): an answer's token weighs the same.

        trl takes the mean over batches, and records that the last batch holds twice would count.
        """
        for micro_batch in without_repeats(inputs, self.args.process_index):
            num_tokens = int((micro_batch["labels"] != -100).sum())
            prepared = self._prepare_inputs(micro_batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, prepared)
            self._eval_losses.add(loss, num_tokens)
        return None, None, None

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer.evaluation_loop`` (transformers 5.23): figures over all records.

        Adds ``eval_loss`` and, with ``stop_accuracy``, ``eval_point_accuracy``.
        """
        self._eval_losses = Losses()
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics[f"{prefix}_loss"] = self._eval_losses.mean(self.accelerator)
        if self._task.stop_accuracy is not None:
            accuracy = share_of_hits(
                self.model_wrapped,
                dataloader,
                self._tokenizer,
                self.accelerator,
                self._task.max_completion_length,
            )
            output.metrics[f"{prefix}_point_accuracy"] = accuracy
        return output

    # ---------------------------------------------------------------- time and log

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``Trainer.get_batch_samples`` (transformers 5.23): work is counted.

        Other ranks are taken to have as many records as this one.
        """
        batches, num_tokens = super().get_batch_samples(*args, **kwargs)
        num_records = sum(size for batch in batches for size in batch["sizes"])
        self._observer.count_rollout(num_records * self.args.world_size, int(num_tokens))
        return batches, num_tokens

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Extends ``SFTTrainer.training_step`` (trl 1.16): counted."""
        loss = super().training_step(*args, **kwargs)
        self._step += 1
        return loss
