"""What a user sets besides trl's own ``GRPOConfig`` and ``ModelConfig``: data and task.

Every field is a key of the YAML file and a flag of ``launch/train.py``.
"""

import argparse
from dataclasses import dataclass, field

from grpo_stream.byte_sizes import parse_num_bytes
from grpo_stream.errors import ConfigError
from grpo_stream.images import ImageLimits
from grpo_stream.storage.retrying_store import RetryRules

_SIZES = ("fetch_ahead_bytes", "max_sample_bytes", "cache_bytes")


@dataclass
class DataArguments:
    """Where the samples come from and how they are read."""

    shards: list[str] | None = field(
        default=None,
        metadata={
            "help": "Folders or URLs with a manifest.json, as shard-builder writes it; several "
            "with weights, as in a=0.7 b=0.3."
        },
    )
    json: str | None = field(
        default=None,
        metadata={"help": "JSON array or JSON Lines of raw records, instead of shards."},
    )
    images_root: str | None = field(
        default=None, metadata={"help": "Folder that the records' image paths start from."}
    )
    eval_shards: list[str] | None = field(
        default=None,
        metadata={"help": "Shards for evaluation while training (eval_strategy), as `shards`."},
    )
    stream_seed: int | None = field(
        default=None, metadata={"help": "Seed of the order of samples; None takes `seed`."}
    )
    block_shards: int = field(
        default=4, metadata={"help": "Samples are mixed inside blocks of this many shards."}
    )
    num_reader_threads: int = field(
        default=2, metadata={"help": "Threads per rank that decode and resize."}
    )
    num_decode_processes: int = field(
        default=0,
        metadata={"help": "Processes per rank that decode and resize in the threads' place."},
    )
    num_fetch_threads: int = field(
        default=16,
        metadata={"help": "Calls per rank to object storage at a time, each of up to 8 requests."},
    )
    prefetch_batches: int = field(
        default=2, metadata={"help": "Generation batches that are decoded ahead."}
    )
    fetch_ahead_bytes: str = field(
        default="256MiB",
        metadata={"help": "Encoded samples per rank that are fetched ahead from object storage."},
    )
    max_sample_bytes: str = field(
        default="256MiB", metadata={"help": "Larger samples, image and JSON together, are bad."}
    )
    max_image_pixels: int = field(
        default=ImageLimits.max_pixels,
        metadata={"help": "Larger images, as they are stored, are bad: they are not decoded."},
    )
    max_bad_samples: int = field(
        default=100,
        metadata={"help": "Samples of the run, over all ranks, that may be bad before it stops."},
    )
    retry_deadline_seconds: float = field(
        default=RetryRules.deadline_seconds,
        metadata={"help": "How long a read of object storage is tried again before the run stops."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder on a local disk that keeps whole shards; None: no cache."},
    )
    cache_bytes: str = field(
        default="64GiB", metadata={"help": "Bound to all files of cache_dir, as in 500GB."}
    )
    allow_new_lanes: bool = field(
        default=False,
        metadata={
            "help": "Resume with another number of prompts per generation batch, over exactly what "
            "is left of the epoch."
        },
    )
    min_pixels: int | None = field(
        default=None, metadata={"help": "Smallest image area after resizing; None: the model's."}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Largest image area after resizing; None: the model's."}
    )

    def __post_init__(self) -> None:
        # A YAML file may name a data set or a number by itself; argparse leaves defaults alone.
        for name in ("shards", "eval_shards"):
            value = getattr(self, name)
            if isinstance(value, str):
                setattr(self, name, [value])
        for name in _SIZES:
            setattr(self, name, str(getattr(self, name)))

    def check(self) -> None:
        """Checks what needs no file.

        Raises:
            ConfigError: not exactly one of ``shards`` and ``json``, no ``images_root``, or a size
                or limit that is none.
        """
        if (self.shards is None) == (self.json is None):
            expected = f"give exactly one of shards and json (json={self.json!r}), as in shards=DIR"
            raise ConfigError("shards", self.shards, expected)
        if self.json is not None and self.images_root is None:
            raise ConfigError("images_root", None, "is needed with json: the images' folder")
        if self.json is not None and self.cache_dir is not None:
            expected = "keeps shards; leave it out with json"
            raise ConfigError("cache_dir", self.cache_dir, expected)
        for name in _SIZES:
            self.num_bytes(name)
        if self.max_image_pixels < 1:
            expected = f"must be at least 1, for example {ImageLimits.max_pixels}"
            raise ConfigError("max_image_pixels", self.max_image_pixels, expected)

    def num_bytes(self, name: str) -> int:
        """The setting ``name``, one of the sizes, in bytes.

        Raises:
            ConfigError: it is no size above 0.
        """
        text = getattr(self, name)
        try:
            size = parse_num_bytes(text)
        except argparse.ArgumentTypeError:
            size = 0
        if size < 1:
            default = type(self).__dataclass_fields__[name].default
            raise ConfigError(name, text, f"must be a size above 0, as in {default} or 268435456")
        return size


@dataclass
class TaskArguments:
    """How the policy is asked and how its answers are scored."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy_reward_coord"],
        metadata={"help": "Names of grpo_stream.grounding.rewards, or package.module:function."},
    )
    prompt_template: str = field(
        default="point",
        metadata={"help": "point, box, point_thinking, plain, or a YAML file."},
    )
    answer_frame: str | None = field(
        default=None,
        metadata={"help": "original, model or per_mille; None: what the model family answers in."},
    )
    shared_prefix: str = field(
        default="auto",
        metadata={"help": "auto, on or off: compute a group's prompt once."},
    )
    shared_prefix_attention: str = field(
        default="auto",
        metadata={
            "help": "How completions attend to the prompt they share: two_part, dense, flex "
            "(CUDA), or auto, which is two_part."
        },
    )
    refill_zero_variance: int = field(
        default=0,
        metadata={
            "help": "Sample up to so many times more prompts than are trained on, in the place of "
            "groups whose rewards are all equal; 0: train on what comes."
        },
    )
    freeze_vision_tower: bool = field(
        default=False,
        metadata={
            "help": "Leave the vision tower as it is; its features are then computed once per "
            "prompt, for all passes of the step."
        },
    )


@dataclass
class LogArguments:
    """How a run is watched, besides trl's own ``logging_steps`` and ``report_to``."""

    step_timeout_seconds: float = field(
        default=1200.0,
        metadata={
            "help": "A rank that stays in one stage for longer says which, and ends the run; "
            "0: never. Less than ddp_timeout, which ends it without a word."
        },
    )
    rollout_sheet_steps: int = field(
        default=50,
        metadata={
            "help": "Global steps between pictures of what the policy answers, in "
            "output_dir/rollouts; 0: none."
        },
    )
    rollout_sheet_groups: int = field(
        default=4, metadata={"help": "Groups on such a picture, at most."}
    )
    difficulty_log: bool = field(
        default=False,
        metadata={"help": "Append each group's mean reward to output_dir/difficulty.jsonl."},
    )

    def check(self) -> None:
        """Checks the settings.

        Raises:
            ConfigError: one is out of range.
        """
        for name, least in (("rollout_sheet_steps", 0), ("rollout_sheet_groups", 1)):
            if getattr(self, name) < least:
                default = type(self).__dataclass_fields__[name].default
                expected = f"must be at least {least}, for example {default}"
                raise ConfigError(name, getattr(self, name), expected)
        if not self.step_timeout_seconds >= 0:
            expected = "must be a number of seconds, for example 1200, or 0 for none"
            raise ConfigError("step_timeout_seconds", self.step_timeout_seconds, expected)


@dataclass
class RunArguments:
    """How the script itself behaves."""

    dry_run: bool = field(
        default=False,
        metadata={"help": "Check everything that needs no weights, print the run and stop."},
    )
    num_ranks: int | None = field(
        default=None,
        metadata={"help": "With dry_run: the world size to check for; None: this launch's."},
    )
    skip_preflight: bool = field(
        default=False,
        metadata={"help": "Begin without comparing ranks and looking at store, memory and disks."},
    )
