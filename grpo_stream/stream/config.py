"""The stream's settings: frozen, checked when built, printable."""

from dataclasses import asdict, dataclass, field

from grpo_stream.errors import ConfigError
from grpo_stream.images import ImageLimits, ResizeRule


@dataclass(frozen=True)
class CacheSettings:
    """Whole shards on a local disk, shared by the ranks and jobs of a machine."""

    folder: str
    max_bytes: int = 64 * 2**30
    """Bound to all files of the cache; the same in every process."""


@dataclass(frozen=True)
class StreamConfig:
    """Everything that decides what a prompt stream delivers and how it is read.

    Only ``seed``, ``num_lanes`` and ``block_shards`` (with the data) decide the order; the rest
    changes speed and memory alone.

    Raises:
        ConfigError: a value cannot work.
    """

    num_lanes: int
    """Prompts per generation batch over all ranks; the world size must divide it."""
    seed: int = 0
    """Seed of the order."""
    block_shards: int = 4
    """Samples are mixed inside blocks of this many consecutive (permuted) shards."""
    num_threads: int = 2
    """Threads per rank that read, decode and resize; 0 does it in the caller's thread."""
    num_processes: int = 0
    """Processes per rank that decode and resize in the threads' place; 0 for threads."""
    prefetch_batches: int = 2
    """Generation batches that are decoded ahead of the one in use."""
    num_fetch_threads: int = 16
    """Calls of a rank that wait for object storage at a time, each of up to eight requests to one
    shard; a folder is read without."""
    fetch_ahead_bytes: int = 256 * 2**20
    """Encoded samples of a rank that are fetched ahead or on their way, in bytes; what the next
    ``prefetch_batches`` need is fetched in any case."""
    max_bad_samples: int = 100
    """Samples of one rank and run that may be bad before its stream stops. A trainer holds all of
    its ranks together to it."""
    max_sample_bytes: int = 256 * 2**20
    """Larger samples, image and JSON together, are bad."""
    resize: ResizeRule | None = field(default_factory=ResizeRule)
    """Size that the model's processor would choose; None delivers images as stored."""
    limits: ImageLimits = field(default_factory=ImageLimits)
    """What an image may be at most."""

    def __post_init__(self) -> None:
        for name, least in (
            ("num_lanes", 1),
            ("seed", 0),
            ("block_shards", 1),
            ("num_threads", 0),
            ("num_processes", 0),
            ("prefetch_batches", 1),
            ("num_fetch_threads", 1),
            ("fetch_ahead_bytes", 1),
            ("max_bad_samples", 0),
            ("max_sample_bytes", 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigError(name, value, f"must be a whole number of at least {least}")

    def to_dict(self) -> dict[str, object]:
        """The settings as plain values, for printing and saving."""
        return asdict(self)
