"""What a user sets besides trl's own ``GRPOConfig`` and ``ModelConfig``: data and task.

Every field is a key of the YAML file and a flag of ``launch/train.py``.
"""

from dataclasses import dataclass, field

from trl import GRPOConfig

from grpo_stream.errors import ConfigError

SHARED_PREFIX = ("auto", "on", "off")
"""Values of ``shared_prefix``."""


@dataclass
class DataArguments:
    """Where the samples come from and how they are read."""

    shards: str | None = field(
        default=None,
        metadata={"help": "Folder or URL with a manifest.json, as shard-builder writes it."},
    )
    json: str | None = field(
        default=None,
        metadata={"help": "JSON array or JSON Lines of raw records, instead of shards."},
    )
    images_root: str | None = field(
        default=None, metadata={"help": "Folder that the records' image paths start from."}
    )
    eval_shards: str | None = field(
        default=None, metadata={"help": "Shards for evaluation while training (eval_strategy)."}
    )
    stream_seed: int | None = field(
        default=None, metadata={"help": "Seed of the order of samples; None takes `seed`."}
    )
    block_shards: int = field(
        default=4, metadata={"help": "Samples are mixed inside blocks of this many shards."}
    )
    num_reader_threads: int = field(
        default=2, metadata={"help": "Threads per rank that read, decode and resize."}
    )
    prefetch_batches: int = field(
        default=2, metadata={"help": "Generation batches that are made ahead."}
    )
    max_bad_samples: int = field(
        default=100, metadata={"help": "Samples of a rank that may fail before the run stops."}
    )
    min_pixels: int | None = field(
        default=None, metadata={"help": "Smallest image area after resizing; None: the model's."}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Largest image area after resizing; None: the model's."}
    )

    def check(self) -> None:
        """Checks what needs no file.

        Raises:
            ConfigError: not exactly one of ``shards`` and ``json``, or no ``images_root``.
        """
        if (self.shards is None) == (self.json is None):
            expected = f"give exactly one of shards and json (json={self.json!r}), as in shards=DIR"
            raise ConfigError("shards", self.shards, expected)
        if self.json is not None and self.images_root is None:
            raise ConfigError("images_root", None, "is needed with json: the images' folder")


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


def check_supported(args: GRPOConfig) -> None:
    """Refuses what trl offers but the trainer here cannot do.

    Raises:
        ConfigError: naming the setting.
    """
    if args.use_vllm:
        raise ConfigError("use_vllm", True, "is not supported yet; use False")
    if args.use_transformers_continuous_batching:
        expected = "would compute every prompt once per completion; use False"
        raise ConfigError("use_transformers_continuous_batching", True, expected)
    if args.ignore_data_skip:
        expected = (
            "would count samples as done that were not; use False, resuming costs nothing here"
        )
        raise ConfigError("ignore_data_skip", True, expected)
