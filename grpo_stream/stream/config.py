"""The stream's settings: frozen, checked when built, printable."""

from dataclasses import asdict, dataclass, field

from grpo_stream.errors import ConfigError
from grpo_stream.flags import setting
from grpo_stream.images import ImageLimits, ResizeRule


@dataclass(frozen=True)
class CacheSettings:
    """Whole shards on a local disk, shared by the ranks and jobs of a machine."""

    cache_dir: str = field(
        metadata={"help": "Folder on a local disk that keeps whole shards; None: no cache."}
    )
    cache_bytes: int = setting(
        64 * 2**30, "Bound to all files of cache_dir, as in 500GB; the same in every process."
    )


@dataclass(frozen=True)
class StreamConfig:
    """Everything that decides what a prompt stream delivers and how it is read.

    Only ``stream_seed``, ``num_lanes`` and ``block_shards`` (with the data) decide the order; the
    rest changes speed and memory alone.

    Raises:
        ConfigError: a value cannot work.
    """

    num_lanes: int
    """Prompts per generation batch over all ranks; the world size must divide it."""
    stream_seed: int = setting(0, "Seed of the order of samples.")
    block_shards: int = setting(
        4, "Samples are mixed inside blocks of this many consecutive (permuted) shards."
    )
    num_reader_threads: int = setting(
        2, "Threads per rank that read, decode and resize; 0 does it in the caller's thread."
    )
    num_decode_processes: int = setting(
        0, "Processes per rank that decode and resize in the threads' place; 0: threads do."
    )
    prefetch_batches: int = setting(
        2, "Generation batches that are decoded ahead of the one in use."
    )
    num_fetch_threads: int = setting(
        16,
        "Calls of a rank that wait for object storage at a time, each of up to 8 requests to one "
        "shard; a folder is read without.",
    )
    fetch_ahead_bytes: int = setting(
        256 * 2**20,
        "Encoded samples of a rank that are fetched ahead or on their way, as in 256MiB; what the "
        "next prefetch_batches need is fetched in any case.",
    )
    max_bad_samples: int = setting(
        100,
        "Samples that may be bad before the run stops: of all ranks and starts in training, of "
        "one rank where a stream is read by itself.",
    )
    max_total_pixels: int = setting(
        0,
        "Samples whose images together have more pixels, as the model sees them, are bad; 0: any "
        "number, within max_prompt_tokens.",
    )
    max_prompt_tokens: int = setting(
        16_384, "Longer prompts, image and template included, are bad samples."
    )
    max_sample_bytes: int = setting(
        256 * 2**20, "Larger samples, image and JSON together, are bad."
    )
    resize: ResizeRule | None = field(default_factory=ResizeRule)
    """Size that the model's processor would choose; None delivers images as stored."""
    limits: ImageLimits = field(default_factory=ImageLimits)
    """What an image may be at most."""

    def __post_init__(self) -> None:
        for name, least in (
            ("num_lanes", 1),
            ("stream_seed", 0),
            ("block_shards", 1),
            ("num_reader_threads", 0),
            ("num_decode_processes", 0),
            ("prefetch_batches", 1),
            ("num_fetch_threads", 1),
            ("fetch_ahead_bytes", 1),
            ("max_bad_samples", 0),
            ("max_total_pixels", 0),
            ("max_prompt_tokens", 1),
            ("max_sample_bytes", 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                default = type(self).__dataclass_fields__[name].default
                works = default if isinstance(default, int) else max(least, 8)
                expected = f"must be a whole number of at least {least}, for example {works}"
                raise ConfigError(name, value, expected)

    def to_dict(self) -> dict[str, object]:
        """The settings as plain values, for printing and saving."""
        return asdict(self)
