"""What a build is asked for: checked before anything is read, and what decides the content."""

from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from grpo_stream.errors import ConfigError
from grpo_stream.image_encoding import codec_versions
from grpo_stream.records.form_book import DecidedForms
from grpo_stream.records.formats.coco import DEFAULT_CATEGORY_PROMPT
from grpo_stream.records.formats.open_inputs import RuleFlags
from grpo_stream.records.formats.rules import Rules
from grpo_stream.records.readings import READING_NAMES
from grpo_stream.records.stored_image import PictureRules
from grpo_stream.shards.sample import SCHEMA_VERSION
from grpo_stream.storage.store import LocalStore, Store, open_store
from shard_builder.build.chunk_plan import ShardLimits, Splits, Survey
from shard_builder.build.output.output_folder import OUR_NAMES
from shard_builder.build.workers.worker import Job

Executor = Literal["local", "ray"]


@dataclass(frozen=True)
class BuildSettings:
    """Everything that a build depends on."""

    inputs: tuple[str, ...]
    """Files, globs or URLs; see :func:`~grpo_stream.records.formats.open_inputs.expand_inputs`."""
    images_root: str
    """Folder or URL that image paths start from."""
    out: str
    """Folder or URL of the data set."""
    input_format: str = "auto"
    rules: Rules = field(default_factory=Rules)
    """How records are written where neither their format nor ``flags`` says anything."""
    flags: RuleFlags | None = None
    """What the user said of the records, which goes before what their format implies."""
    category_prompt: str = DEFAULT_CATEGORY_PROMPT
    """What is asked for a category of COCO."""
    where: tuple[tuple[str, str], ...] = ()
    """Only records whose fields have these values, as in ``(("split", "train"),)``; others are
    passed over without a word."""
    split: Splits | None = None
    """Named shares of the images that become data sets of their own, in folders of ``out``."""
    pictures: PictureRules = field(default_factory=PictureRules)
    limits: ShardLimits = field(default_factory=ShardLimits)
    by_image: bool = False
    """The records of an image become neighbours in one shard, so that training may compute it once
    for all of them; the images are in an order of their own."""
    shuffle_seed: int | None = None
    """Shuffles all records before packing, through temporary files; None keeps their order."""
    max_rejects: int | None = None
    """Rejected records after which the build stops; None for any number, 0 for none at all."""
    max_reject_share: float = 0.5
    """Share of rejected records above which the build ends with an error, and without a set."""
    accept_reading: str | None = None
    """The reading, as in ``xyxy-pixels``, that is taken where the records fit several."""
    given_flags: tuple[str, ...] = ()
    """What the user gave, so that no hint asks for it."""
    num_workers: int = 1
    """Processes that judge and pack; 1 does it in this one. A script that asks for more must
    start from ``if __name__ == "__main__":``, as with every spawned process."""
    executor: Executor = "local"
    """Who builds the chunks: processes of this machine, or tasks of a Ray cluster."""
    ray_address: str | None = None
    """The cluster, as in ``auto`` or ``ray://HOST:10001``; None starts one here."""
    overwrite: bool = False
    """Replace the data set in ``out``."""
    dry_run: bool = False
    """Judge everything, write nothing."""

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits; one empty name where the set is not split."""
        return ("",) if self.split is None else self.split.names

    def job(self, state: str, spool: Path) -> Job:
        """What every process that builds chunks is told.

        Args:
            state: Folder or URL where results are kept.
            spool: A local folder where shards wait for their upload.
        """
        return Job(
            out=self.out,
            images_root=self.images_root,
            pictures=self.pictures,
            limits=self.limits,
            state=state,
            spool=spool,
            dry_run=self.dry_run,
            by_image=self.by_image,
        )


def check_settings(settings: BuildSettings) -> None:
    """Raises ConfigError where a path or setting cannot work."""
    for name, value, example in (
        ("--samples-per-shard", settings.limits.max_samples, "1000"),
        ("--max-shard-bytes", settings.limits.max_bytes, "256MiB"),
        ("--workers", settings.num_workers, "4"),
    ):
        if value < 1:
            raise ConfigError(name, value, f"must be at least 1, for example {example}")
    if not 0 <= settings.max_reject_share <= 1:
        expected = "must be 0 to 1, for example 0.5"
        raise ConfigError("--max-reject-share", settings.max_reject_share, expected)
    if settings.accept_reading is not None and settings.accept_reading not in READING_NAMES:
        expected = f"must be one of {', '.join(READING_NAMES)}"
        raise ConfigError("--accept-reading", settings.accept_reading, expected)
    if settings.max_rejects is not None and settings.max_rejects < 0:
        expected = "must be 0 or more, for example 100"
        raise ConfigError("--max-rejects", settings.max_rejects, expected)
    if settings.executor == "ray" and settings.dry_run:
        raise ConfigError("--executor", "ray", "goes without --dry-run, which this machine does")
    check_executor(settings.executor, settings.ray_address)
    root = _open("--images-root", settings.images_root)
    if isinstance(root, LocalStore) and not root.folder.is_dir():
        expected = "must be the folder that image paths start from"
        raise ConfigError("--images-root", settings.images_root, expected)
    out = _open("--out", settings.out)
    if isinstance(out, LocalStore):
        for word in settings.inputs:
            path = Path(word)
            if path.parent.resolve() == out.folder.resolve() and any(
                fnmatch(path.name, pattern) for pattern in OUR_NAMES
            ):
                raise ConfigError("INPUT", word, "is replaced by the build: give a copy elsewhere")
    elif settings.out.startswith(("http://", "https://")):
        expected = "web servers take no uploads: give a folder, s3://, gs:// or az://"
        raise ConfigError("--out", settings.out, expected)


def check_executor(executor: str, ray_address: str | None) -> None:
    """Raises ConfigError where there is no such executor, or what it needs is missing."""
    if executor not in get_args(Executor):
        expected = f"must be one of {', '.join(get_args(Executor))}"
        raise ConfigError("--executor", executor, expected)
    if executor == "local":
        if ray_address is not None:
            raise ConfigError("--ray-address", ray_address, "goes with --executor ray")
        return
    if find_spec("ray") is None:
        raise ConfigError("--executor", "ray", "needs ray: pip install 'grpo_stream[ray]'")


def content_of(
    settings: BuildSettings, forms: DecidedForms, inputs: list[str], survey: Survey
) -> dict[str, Any]:
    """Everything that decides the content, without the machine's paths."""
    return {
        "schema_version": SCHEMA_VERSION,
        "inputs": survey.to_dicts(),
        "where": [list(pair) for pair in settings.where],
        "rules": [_rule(rule) for rule in forms.rules],
        "readings": forms.facts(inputs),
        "split": None if settings.split is None else dict(settings.split.shares),
        "pictures": asdict(settings.pictures),
        "shard_limits": asdict(settings.limits),
        "shuffle_seed": settings.shuffle_seed,
        **({"group_by": "image"} if settings.by_image else {}),
        "category_prompt": settings.category_prompt,
        "codecs": codec_versions(),
    }


def _rule(rule: Rules) -> dict[str, Any]:
    fields = asdict(rule)
    del fields["told"]  # how it was said decides nothing
    fields["warning"] = None if rule.warning is None else list(rule.warning)
    return fields


def _open(flag: str, url: str) -> Store:
    try:
        return open_store(url)
    except ConfigError as error:
        raise ConfigError(flag, url, error.expected) from error
