"""What a user sets for supervised fine-tuning besides trl's ``SFTConfig``, data and log."""

from dataclasses import dataclass
from typing import Any, Literal

from grpo_stream.errors import ConfigError
from grpo_stream.flags import same_setting, setting
from grpo_stream.train.models.chat_template import KWARGS_HELP, chat_template_variables
from grpo_stream.train.setup.arguments import MasterWeightsSetting, TaskArguments

GroupBy = Literal["none", "image"]
Packed = Literal["auto", "on", "off"]


@dataclass
class SupervisedArguments:
    """What is taught, and how."""

    prompt_template: str = same_setting(TaskArguments, "prompt_template")
    answer_frame: str | None = same_setting(TaskArguments, "answer_frame")
    chat_template_kwargs: dict[str, Any] | str | None = setting(None, KWARGS_HELP)
    answer_key: str | None = setting(
        None,
        "Field of the records that holds the whole answer, thoughts and all; None: the answer is "
        "the solution, in the template's form and the model's frame.",
    )
    snap: int = setting(1, "Numbers of such an answer are rounded to multiples of this.")
    group_by: GroupBy = setting(
        "none",
        "image: all records of an image are one row, and the image is computed once; the shards "
        "must be built with --group-by image.",
    )
    shared_prefix: Packed = setting(
        "auto", "Compute a group's image once, and pack groups without padding."
    )
    master_weights: MasterWeightsSetting = same_setting(TaskArguments, "master_weights")
    max_bad_steps: int = same_setting(TaskArguments, "max_bad_steps")
    vision_attn_implementation: str = same_setting(TaskArguments, "vision_attn_implementation")
    freeze_vision_tower: bool = setting(False, "Leave the vision tower as it is.")
    stop_accuracy: float | None = setting(
        None,
        "End the run once so many greedy answers on eval_shards point into the box; None: never, "
        "and answers are not generated.",
    )
    max_completion_length: int = setting(64, "Tokens of such an answer at most.")

    @property
    def template_variables(self) -> dict[str, Any]:
        """``chat_template_kwargs``, read."""
        return chat_template_variables(self.chat_template_kwargs)

    def check(self, *, has_eval_data: bool) -> None:
        """Checks what needs neither a model nor data.

        Raises:
            ConfigError: a setting that cannot work, named with a value that does.
        """
        chat_template_variables(self.chat_template_kwargs)
        if self.max_completion_length < 1:
            expected = "must be at least 1, for example 64"
            raise ConfigError("max_completion_length", self.max_completion_length, expected)
        if self.stop_accuracy is None:
            return
        if not self.stop_accuracy > 0:
            expected = "must be above 0, for example 0.35"
            raise ConfigError("stop_accuracy", self.stop_accuracy, expected)
        if not has_eval_data:
            expected = "needs eval_shards=DIR_OR_URL and eval_strategy=steps"
            raise ConfigError("stop_accuracy", self.stop_accuracy, expected)
