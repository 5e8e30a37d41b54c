"""What a user sets besides trl's own ``GRPOConfig`` and ``ModelConfig``: data and task.

Every field is a key of the YAML file and a flag of ``launch/train.py``.
"""

import argparse
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from grpo_stream.byte_sizes import format_num_bytes, parse_num_bytes
from grpo_stream.errors import ConfigError
from grpo_stream.flags import help_of, same_setting, setting
from grpo_stream.images import ImageLimits
from grpo_stream.records.formats.open_inputs import RuleFlags
from grpo_stream.records.formats.readers import FORMATS
from grpo_stream.records.formats.rules import BoxFormat, Coords
from grpo_stream.storage.retry_policy import RetryRules
from grpo_stream.stream.config import CacheSettings, StreamConfig
from grpo_stream.stream.selected_source import MAX_WEIGHT
from grpo_stream.train.setup.difficulty_file import DifficultyRule, DifficultySettings

Decode = Literal["auto", "eager", "compiled"]
SharedPrefix = Literal["auto", "on", "packed", "forked", "off"]
PackedAttention = Literal["auto", "two_part", "dense", "flex"]
MasterWeightsSetting = Literal["none", "float32", "optimizer"]
OldCheckpoints = Literal["refuse", "move", "keep"]

_SIZES = ("fetch_ahead_bytes", "max_sample_bytes", "cache_bytes")


def _size_setting(owner: type[Any], name: str) -> Any:
    """The same setting as text, in which people write units."""
    return same_setting(owner, name, default=format_num_bytes(getattr(owner, name)))


@dataclass
class DataArguments:
    """Where the samples come from and how they are read."""

    shards: list[str] | None = setting(
        None,
        "Folders or URLs with a manifest.json, as shard-builder writes it; several with weights, "
        "as in 0.7:s3://b/web 0.3:s3://b/apps.",
    )
    json: str | None = setting(
        None, "Raw records instead of shards: a file, glob, URL or datasets:SPEC."
    )
    format: str = setting("auto", f"Of json: {', '.join(FORMATS)}.")
    box_format: BoxFormat | None = setting(
        None, "Of json: what boxes are; None: what the format and all records say."
    )
    coords: Coords | None = setting(
        None, "Of json: what numbers are; None: what the format and all records say."
    )
    image_key: str | None = setting(None, "Of json: the field of plain records with the image.")
    prompt_key: str | None = setting(
        None, "Of json: the field with the instruction, also of the benchmarks' own rows."
    )
    solution_key: str | None = setting(None, "Of json: the field of plain records with the box.")
    images_root: str | None = setting(
        None, "Folder that the records' image paths start from; None: they are absolute."
    )
    eval_shards: list[str] | None = setting(
        None, "Shards for evaluation while training (eval_strategy), as `shards`."
    )
    stream_seed: int | None = setting(
        None, f"{help_of(StreamConfig, 'stream_seed')} None takes `seed`."
    )
    block_shards: int = same_setting(StreamConfig, "block_shards")
    num_reader_threads: int = same_setting(StreamConfig, "num_reader_threads")
    num_decode_processes: int = same_setting(StreamConfig, "num_decode_processes")
    num_fetch_threads: int = same_setting(StreamConfig, "num_fetch_threads")
    prefetch_batches: int = same_setting(StreamConfig, "prefetch_batches")
    fetch_ahead_bytes: str = _size_setting(StreamConfig, "fetch_ahead_bytes")
    max_sample_bytes: str = _size_setting(StreamConfig, "max_sample_bytes")
    max_prompt_tokens: int = same_setting(StreamConfig, "max_prompt_tokens")
    max_image_pixels: int = same_setting(ImageLimits, "max_image_pixels")
    max_total_pixels: int = same_setting(StreamConfig, "max_total_pixels")
    max_bad_samples: int = same_setting(StreamConfig, "max_bad_samples")
    retry_deadline_seconds: float = same_setting(RetryRules, "retry_deadline_seconds")
    cache_dir: str | None = same_setting(CacheSettings, "cache_dir", default=None)
    cache_bytes: str = _size_setting(CacheSettings, "cache_bytes")
    difficulty: str | None = setting(
        None,
        "What an earlier run found hard: its difficulty.jsonl, a report's answers.jsonl, or lines "
        "with key and weight; samples come as often as it says.",
    )
    difficulty_rule: DifficultyRule = setting(
        "uncertain", "Weight by share of success p: uncertain is 4 p (1 - p), hard is 2 (1 - p)."
    )
    difficulty_keep: list[float] | None = setting(
        None, "Instead: train on samples whose mean reward or share of success is from .. to .."
    )
    difficulty_other: float = setting(1.0, "Weight of samples that the file does not name.")
    allow_new_lanes: bool = setting(
        False,
        "Resume with another number of prompts per generation batch, over exactly what is left of "
        "the epoch.",
    )
    min_pixels: int | None = setting(None, "Smallest image area after resizing; None: the model's.")
    max_pixels: int | None = setting(None, "Largest image area after resizing; None: the model's.")

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
            ConfigError: not exactly one of ``shards`` and ``json``, or a size that is none.
        """
        if (self.shards is None) == (self.json is None):
            expected = f"give exactly one of shards and json (json={self.json!r}), as in shards=DIR"
            raise ConfigError("shards", self.shards, expected)
        if self.json is not None and self.cache_dir is not None:
            expected = "keeps shards; leave it out with json"
            raise ConfigError("cache_dir", self.cache_dir, expected)
        for name in _SIZES:
            self.num_bytes(name)
        self.difficulty_settings()

    def difficulty_settings(self) -> DifficultySettings | None:
        """How samples are chosen; None: all of them come once.

        Raises:
            ConfigError: a range or weight that is none, or several data sets.
        """
        if self.difficulty is None:
            if self.difficulty_keep is not None:
                expected = "goes with difficulty, the file of an earlier run; give both or none"
                raise ConfigError("difficulty_keep", self.difficulty_keep, expected)
            return None
        keep = None
        if self.difficulty_keep is not None:
            if (
                len(self.difficulty_keep) != 2
                or not self.difficulty_keep[0] <= self.difficulty_keep[1]
            ):
                expected = "must be two numbers, the smaller first, for example 0.1 0.9"
                raise ConfigError("difficulty_keep", self.difficulty_keep, expected)
            keep = (self.difficulty_keep[0], self.difficulty_keep[1])
        if not 0 <= self.difficulty_other <= MAX_WEIGHT:
            expected = f"must be from 0 to {MAX_WEIGHT:g}, for example 1"
            raise ConfigError("difficulty_other", self.difficulty_other, expected)
        if self.shards is not None and len(self.shards) > 1:
            expected = "goes with one data set, as keys are of one; give one, or leave it out"
            raise ConfigError("difficulty", self.difficulty, expected)
        return DifficultySettings(
            self.difficulty, self.difficulty_rule, keep, self.difficulty_other
        )

    def rule_flags(self) -> RuleFlags:
        """What was said of raw records."""
        return RuleFlags(**{one.name: getattr(self, one.name) for one in fields(RuleFlags)})

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
    prompt_template: str = setting("point", "point, box, point_thinking, plain, or a YAML file.")
    answer_frame: str | None = setting(
        None, "original, model or per_mille; None: what the model family answers in."
    )
    shared_prefix: SharedPrefix = setting(
        "auto",
        "Compute a group's prompt once; on refuses where it cannot be, packed and forked are the "
        "two ways.",
    )
    shared_prefix_check: bool = setting(
        True, "Before the first rollout, compare that with plain rows; fall back where it differs."
    )
    shared_prefix_attention: PackedAttention = setting(
        "auto",
        "How completions attend to the prompt they share; flex is for CUDA, auto is two_part.",
    )
    decode: Decode = setting(
        "auto",
        "How a token is sampled: eager, or compiled as one graph; auto compiles on CUDA.",
    )
    num_views: int = setting(
        1,
        "Share out each group over so many views of its prompt: the whole image, and crops that "
        "keep the target.",
    )
    refill_zero_variance: int = setting(
        0,
        "Sample up to so many times more prompts than are trained on, in the place of groups "
        "whose rewards are all equal; 0: train on what comes.",
    )
    master_weights: MasterWeightsSetting = setting(
        "none",
        "For weights in bfloat16 without DeepSpeed: float32 trains a copy in float32; optimizer "
        "says that an optimizer of your own does.",
    )
    max_bad_steps: int = setting(
        3,
        "A step whose loss or gradient is not finite is not taken; more than so many end the run.",
    )
    vision_attn_implementation: str = setting(
        "auto",
        "How the vision tower attends: auto takes windows of one length in one call; else "
        "transformers' name, as flash_attention_2 where that package is.",
    )
    freeze_vision_tower: bool = setting(
        False,
        "Leave the vision tower as it is; its features are then computed once per prompt, for all "
        "passes of the step.",
    )


@dataclass
class LogArguments:
    """How a run is watched, besides trl's own ``logging_steps`` and ``report_to``."""

    step_timeout_seconds: float = setting(
        1200.0,
        "A rank that stays in one stage for longer says which, and ends the run; 0: never. Less "
        "than ddp_timeout, which ends it without a word.",
    )
    rollout_sheet_steps: int = setting(
        50,
        "Global steps between pictures of the policy's answers, in output_dir/rollouts; 0: none.",
    )
    rollout_sheet_groups: int = setting(4, "Groups on such a picture, at most.")
    difficulty_log: bool = setting(
        False, "Append each group's mean reward to output_dir/difficulty.jsonl."
    )
    logp_difference_steps: int = setting(
        50,
        "Global steps between two comparisons of log-probabilities as sampled and as scored, which "
        "take one scoring pass each; 0: never.",
    )

    def check(self) -> None:
        """Checks the settings.

        Raises:
            ConfigError: one is out of range.
        """
        for name, least in (
            ("rollout_sheet_steps", 0),
            ("rollout_sheet_groups", 1),
            ("logp_difference_steps", 0),
        ):
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

    dry_run: bool = setting(
        False, "Check everything that needs no weights, print the run and stop."
    )
    num_ranks: int | None = setting(
        None, "With dry_run: the world size to check for; None: this launch's."
    )
    old_checkpoints: OldCheckpoints = setting(
        "refuse",
        "What a new run does where output_dir holds another run's checkpoints: refuse to begin; "
        "move them to output_dir/earlier_runs; or keep them where they are.",
    )
    skip_preflight: bool = setting(
        False, "Begin without comparing ranks and looking at store, memory and disks."
    )
    cudnn_attention: bool = setting(
        False, "On GPUs, let attention take cuDNN's kernels, torch's own choice on Hopper."
    )
