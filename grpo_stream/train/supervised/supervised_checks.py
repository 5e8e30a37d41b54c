"""The checks of a supervised run's settings, before weights are loaded."""

from typing import Any, get_args

from trl import SFTConfig

from grpo_stream.errors import ConfigError
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.train.setup.settings_checks import world_of
from grpo_stream.train.setup.unsupported_settings import REFUSED as REFUSED_BY_ALL
from grpo_stream.train.supervised.supervised_arguments import Packed

_OWN_ROWS = "is of rows that trl makes itself; the stream's rows hold whole answers and no padding"
_SHARED = (
    "ignore_data_skip", "use_liger_kernel", "fsdp", "data_seed", "train_sampling_strategy",
    "dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers",
    "dataloader_multiprocessing_context", "dataloader_in_order", "dataloader_drop_last",
)  # fmt: skip

REFUSED = {
    **{name: REFUSED_BY_ALL[name] for name in _SHARED},
    "shuffle_dataset": (False, REFUSED_BY_ALL["shuffle_dataset"][1]),
    "router_aux_loss_coef": (0.0, "is of a loss that is not computed over packed rows"),
    "packing": (False, _OWN_ROWS),
    "padding_free": (False, _OWN_ROWS),
    "eval_packing": (None, _OWN_ROWS),
    "pad_to_multiple_of": (None, _OWN_ROWS),
    "max_length": (1024, f"{_OWN_ROWS}: nothing is cut off"),
    "truncation_mode": ("keep_start", _OWN_ROWS),
    "assistant_only_loss": (False, "has no effect: the loss is on the answers alone"),
    "completion_only_loss": (None, "has no effect: the loss is on the answers alone"),
    "chat_template_path": (None, "is not supported: save the template in the model's folder"),
    "eos_token": (None, "is not supported: an answer ends with the tokenizer's own"),
    "label_smoothing_factor": (0.0, "needs the full logits of a packed row; use loss_type"),
    "dataset_kwargs": (None, "is of the data sets of trl; the stream reads shards"),
}
"""Field of ``SFTConfig`` -> the one value that works, and why no other does."""


def check_supervised(args: SFTConfig, *, has_eval_data: bool) -> None:
    """Refuses what trl offers but the supervised trainer here cannot do.

    Raises:
        ConfigError: naming the setting.
    """
    for name, (works, why) in REFUSED.items():
        value = getattr(args, name, works)
        if (value or None) != (works or None):
            raise ConfigError(name, value, f"{why}; use {works}")
    if args.eval_strategy != "no" and not has_eval_data:
        expected = "needs eval_shards=DIR_OR_URL (in Python eval_dataset=...); or use 'no'"
        raise ConfigError("eval_strategy", args.eval_strategy.value, expected)


def check_no_balancing_loss(config: Any, args: SFTConfig) -> None:
    """Refuses a mixture of experts whose own settings ask for a loss that is not computed.

    Args:
        config: The model's configuration (transformers 5.23).
        args: With ``router_aux_loss_coef``, which wins over the model's.

    Raises:
        ConfigError: naming that setting.
    """
    text = config.get_text_config()
    own = getattr(text, "router_aux_loss_coef", None)
    if args.router_aux_loss_coef is None and own and hasattr(text, "output_router_logits"):
        expected = f"would be the model's own {own}, and that loss is not computed; use 0"
        raise ConfigError("router_aux_loss_coef", None, expected)


def check_packed(shared_prefix: str, obstacle: str | None) -> None:
    """Refuses packed rows where they were asked for and the model cannot be given them.

    Raises:
        ConfigError: with the reason; or ``shared_prefix`` is no such word.
    """
    if shared_prefix not in get_args(Packed):
        expected = f"must be one of {', '.join(get_args(Packed))}"
        raise ConfigError("shared_prefix", shared_prefix, expected)
    if shared_prefix == "on" and obstacle:
        raise ConfigError("shared_prefix", "on", f"cannot be: {obstacle}; use 'auto'")


def num_train_lanes(args: SFTConfig, num_ranks: int | None = None) -> int:
    """Groups of a global batch: those of one global step, on all ranks."""
    lanes: int = (
        (num_ranks or args.world_size)
        * args.per_device_train_batch_size
        * args.gradient_accumulation_steps
    )
    return lanes


def num_eval_lanes(args: SFTConfig, num_ranks: int | None = None) -> int:
    """Records of an evaluation batch on all ranks."""
    lanes: int = (num_ranks or args.world_size) * args.per_device_eval_batch_size
    return lanes


def check_streams(train: PromptStream, evaluation: PromptStream | None, args: SFTConfig) -> None:
    """Checks that the streams deliver what this rank of the run trains and is evaluated on.

    Raises:
        ConfigError: naming the setting of the stream.
    """
    for stream, num_lanes in ((train, num_train_lanes(args)), (evaluation, num_eval_lanes(args))):
        if stream is None:
            continue
        if stream.config.num_lanes != num_lanes:
            expected = f"the batch sizes give {num_lanes} a batch; use num_lanes={num_lanes}"
            raise ConfigError("num_lanes", stream.config.num_lanes, expected)
        if stream.world != world_of(args):
            raise ConfigError("world", stream.world, f"the trainer runs as {world_of(args)}")
