"""What a trainer knows of its policy before the weights are loaded."""

from typing import Any, NamedTuple

from transformers import PreTrainedModel
from trl import GRPOConfig

from grpo_stream.boxes import Frame
from grpo_stream.grounding.prompts import PromptTemplate
from grpo_stream.train.models.master_weights import check_dtype
from grpo_stream.train.models.model_path import base_model_of
from grpo_stream.train.models.policy import policy_config
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.setup.settings_checks import check_policy


class PolicyInputs(NamedTuple):
    """Configuration and words of a policy."""

    config: Any
    """Of the model (transformers 5.23); with a LoRA adapter's folder, of its base."""
    processor: Any
    template: PromptTemplate
    """The words around an instruction."""
    frame: Frame
    """What the model answers in."""


def read_policy(
    model: str | PreTrainedModel,
    args: GRPOConfig,
    processor: Any,
    *,
    prompt_template: str,
    answer_frame: str | None,
    master_weights: str,
    has_new_adapter: bool,
) -> PolicyInputs:
    """Reads what decides how a policy is asked, and checks it.

    Args:
        model: Folder or hub id, or a model.
        args: trl's settings.
        processor: The model's; None: it is loaded.
        prompt_template: Name or YAML file of the words around an instruction.
        answer_frame: Frame the model answers in; None takes the model family's.
        master_weights: Who keeps weights of 16 bits in 32 without DeepSpeed.
        has_new_adapter: Whether a LoRA adapter is trained in the place of the model's weights.

    Raises:
        ConfigError: a setting that cannot work with this policy, named with a value that does.
    """
    given = args.model_init_kwargs or {}
    revision = given.get("revision") or "main"
    if isinstance(model, str):
        model_id, config = model, policy_config(model, revision)
    else:
        model_id, config = model.config._name_or_path, model.config  # noqa: SLF001
    template, frame = check_policy(
        config, args, prompt_template=prompt_template, answer_frame=answer_frame
    )
    # Of a folder with an adapter, too, the adapter's weights are trained, not the base's.
    is_whole = not has_new_adapter and not base_model_of(model_id)
    if isinstance(model, str) and is_whole:
        check_dtype(given.get("dtype"), config, args, master_weights)
    processor = processor or load_processor(model_id, revision=revision)
    return PolicyInputs(config, processor, template, frame)
