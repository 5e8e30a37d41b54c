"""The policy's folder and what it decides, checked before weights are loaded."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpo_stream.boxes import Frame
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.frames import answer_frame_for
from grpo_stream.grounding.prompts import PromptTemplate, load_template
from grpo_stream.images import ResizeRule
from grpo_stream.train.batches.collate import PromptCollator
from grpo_stream.train.batches.prompt_check import check_prompts
from grpo_stream.train.models.chat_template import chat_template_notes, chat_template_variables
from grpo_stream.train.models.master_weights import check_dtype
from grpo_stream.train.models.model_path import EXAMPLE, base_model_of, check_model_path
from grpo_stream.train.models.policy import policy_config
from grpo_stream.train.models.processor import known_rule, load_processor
from grpo_stream.train.models.vision_attention import check_vision_attention
from grpo_stream.train.setup.settings_checks import check_policy


class CheckedModel(NamedTuple):
    """What a policy's folder tells; of a hub id the template alone is known before the run."""

    template: PromptTemplate
    """The words around an instruction."""
    frame: Frame | None
    """Of answers."""
    rule: ResizeRule | None = None
    """Sizes that images are resized to; None where only the model knows."""
    processor: Any = None

    def check_prompts(self, settings: Any, sources: Sequence[Any]) -> list[str]:
        """Tries prompts as the data have them; what should be known of the chat template.

        Args:
            settings: The run's, of any kind of training.
            sources: The data.

        Raises:
            ConfigError: the processor takes no such prompt.
        """
        name = "chat_template_kwargs"
        owner = settings.task if hasattr(settings.task, name) else settings.args
        variables = chat_template_variables(getattr(owner, name))
        if self.processor is None or self.frame is None:
            return []
        collator = PromptCollator(
            self.processor, self.template, self.frame, chat_template_kwargs=variables
        )
        check_prompts(collator, sources)
        return chat_template_notes(self.processor, variables)


def check_model(settings: Any) -> CheckedModel:
    """Checks the policy as far as its folder tells; a hub id is left for the run to look up."""
    model, task = settings.model, settings.task
    name = model.model_name_or_path
    if name is None:
        expected = f"give a folder or hub id, for example {EXAMPLE}"
        raise ConfigError("model_name_or_path", None, expected)
    for field_name in ("load_in_4bit", "load_in_8bit"):
        if getattr(model, field_name):
            raise ConfigError(field_name, True, "is not supported yet; use False")
    if model.use_peft and importlib.util.find_spec("peft") is None:
        raise ConfigError("use_peft", True, "needs the package peft: pip install grpo_stream[lora]")
    check_vision_attention(task.vision_attn_implementation)
    check_model_path(name)
    if model.use_peft and base_model_of(name):
        expected = "is for a new adapter, and model_name_or_path holds one with its own; use False"
        raise ConfigError("use_peft", True, expected)
    is_folder = Path(name).is_dir()
    if not model.use_peft and not base_model_of(name):
        dtype = (settings.args.model_init_kwargs or {}).get("dtype", model.dtype)
        config = policy_config(name) if is_folder else None
        check_dtype(dtype, config, settings.args, task.master_weights)
    if not is_folder:
        frame = answer_frame_for("", task.answer_frame) if task.answer_frame is not None else None
        return CheckedModel(load_template(task.prompt_template), frame)
    template, frame = check_policy(
        policy_config(name),
        settings.args,
        prompt_template=task.prompt_template,
        answer_frame=task.answer_frame,
    )
    data = settings.data
    processor = load_processor(name, min_pixels=data.min_pixels, max_pixels=data.max_pixels)
    return CheckedModel(template, frame, known_rule(processor.image_processor), processor)
