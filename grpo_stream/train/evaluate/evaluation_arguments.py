"""Settings of ``launch/evaluate.py``: every field is a flag."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from grpo_stream.train.setup.arguments import DataArguments


def _as_in(arguments: type[Any], name: str) -> Any:
    """A setting of training, with its default and its words."""
    (same,) = (one for one in dataclasses.fields(arguments) if one.name == name)
    return field(default=same.default, metadata=same.metadata)


def _flag(default: Any, words: str) -> Any:
    return field(default=default, metadata={"help": words})


@dataclass
class EvaluateArguments:
    """Settings of ``launch/evaluate.py``."""

    model: str = field(
        metadata={
            "help": "Folder or hub id of the policy: a checkpoint, or what training left.",
            "aliases": ["--model_name_or_path", "--model-name-or-path"],
        }
    )
    report: str = field(metadata={"help": "Folder of the results; made where its parent is."})
    shards: str | None = _flag(None, "Folder or URL with a manifest.json.")
    json: list[str] | None = field(
        default=None, metadata={"help": "Records instead of shards: files, globs, URLs."}
    )
    images_root: str | None = _as_in(DataArguments, "images_root")
    format: str = _flag("auto", "Of json: screenspot, refcoco, coco, vlm_r1, llava, json, jsonl.")
    by: list[str] | None = field(
        default=None,
        metadata={"help": "Fields of records to tell figures apart by; a.b: a field in a field."},
    )
    overwrite: bool = _flag(False, "Replace the results that the report folder holds.")
    compare: list[str] | None = field(
        default=None, metadata={"help": "Reports of other policies on the same samples."}
    )
    prompt_template: str | None = _flag(
        None, "As in training; None: what the checkpoint tells, else point."
    )
    answer_frame: str | None = _flag(
        None, "As in training; None: what the checkpoint tells, else the model family's."
    )
    min_pixels: int | None = _as_in(DataArguments, "min_pixels")
    max_pixels: int | None = _as_in(DataArguments, "max_pixels")
    point_radius: float | None = _flag(
        None, "How near a true point is a hit, as a share of the image's diagonal."
    )
    batch_size: int = _flag(16, "Prompts per generation.")
    max_completion_length: int = _flag(256, "Tokens per answer at most.")
    num_processes: int = _flag(1, "Ranks to start on this machine; 1 under a launcher.")
    device: str = _flag("auto", "auto, cpu or cuda.")
    dtype: str = _flag("auto", "auto (bfloat16 on a GPU, float32 on the CPU), bfloat16, ...")
    attn_implementation: str | None = _flag(None, "As transformers names it, for example sdpa.")
    num_resamples: int = _flag(2000, "Bootstrap resamples behind the intervals.")
    seed: int = _flag(0, "Of the bootstrap.")
    num_pictures: int = _flag(8, "Pictures of each kind in the report; 0: none.")
    max_bad_samples: int = _flag(0, "Samples that may be unreadable; they are left out.")
    num_reader_threads: int = _as_in(DataArguments, "num_reader_threads")
    num_fetch_threads: int = _as_in(DataArguments, "num_fetch_threads")
    max_sample_bytes: str = _as_in(DataArguments, "max_sample_bytes")
    max_image_pixels: int = _as_in(DataArguments, "max_image_pixels")
    retry_deadline_seconds: float = _as_in(DataArguments, "retry_deadline_seconds")
    cache_dir: str | None = _as_in(DataArguments, "cache_dir")
    cache_bytes: str = _as_in(DataArguments, "cache_bytes")

    def data(self) -> DataArguments:
        """The settings that training has, too."""
        names = {one.name for one in dataclasses.fields(DataArguments)}
        same = {name: value for name, value in vars(self).items() if name in names}
        same["shards"] = None if self.shards is None else [self.shards]
        same["json"] = None if self.json is None else self.json[0]
        return DataArguments(**same)
