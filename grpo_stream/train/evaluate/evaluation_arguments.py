"""Settings of ``launch/evaluate.py``: every field is a flag."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from grpo_stream.flags import same_setting, setting
from grpo_stream.printable import mask_secrets
from grpo_stream.records.formats.rules import BoxFormat, Coords
from grpo_stream.train.models.chat_template import KWARGS_HELP
from grpo_stream.train.setup.arguments import DataArguments, RunArguments


@dataclass
class EvaluateArguments:
    """Settings of ``launch/evaluate.py``."""

    model: str = field(
        metadata={
            "help": "Folder or hub id of the policy: a checkpoint, what training left, or a LoRA "
            "adapter.",
            "aliases": ["--model_name_or_path", "--model-name-or-path"],
        }
    )
    report: str = field(metadata={"help": "Folder of the results; made where its parent is."})
    shards: str | None = setting(None, "Folder or URL with a manifest.json.")
    json: list[str] | None = setting(None, "Records instead of shards: files, globs, URLs.")
    images_root: str | None = same_setting(DataArguments, "images_root")
    format: str = same_setting(DataArguments, "format")
    box_format: BoxFormat | None = same_setting(DataArguments, "box_format")
    coords: Coords | None = same_setting(DataArguments, "coords")
    image_key: str | None = same_setting(DataArguments, "image_key")
    prompt_key: str | None = same_setting(DataArguments, "prompt_key")
    solution_key: str | None = same_setting(DataArguments, "solution_key")
    by: list[str] | None = setting(
        None, "Fields of records to tell figures apart by; a.b: a field in a field, a+b: both."
    )
    overwrite: bool = setting(False, "Replace the results that the report folder holds.")
    compare: list[str] | None = setting(None, "Reports of other policies on the same samples.")
    prompt_template: str | None = setting(
        None, "As in training; None: what the checkpoint tells, else point."
    )
    answer_frame: str | None = setting(
        None, "As in training; None: what the checkpoint tells, else the model family's."
    )
    chat_template_kwargs: dict[str, Any] | str | None = setting(
        None, f"{KWARGS_HELP} None: what the checkpoint tells."
    )
    min_pixels: int | None = same_setting(DataArguments, "min_pixels")
    max_pixels: int | None = same_setting(DataArguments, "max_pixels")
    point_radius: float | None = setting(
        None, "How near a true point is a hit, as a share of the image's diagonal."
    )
    zoom: float | None = setting(
        None, "Look again, at a crop of a zoom-th of the image's sides around the answer, say 3."
    )
    num_samples: int = setting(1, "Answers to sample for each prompt; the densest place wins.")
    temperature: float | None = setting(None, "Of sampled answers; None: 1.")
    batch_size: int = setting(16, "Prompts per generation.")
    max_completion_length: int = setting(256, "Tokens per answer at most.")
    num_processes: int = setting(1, "Ranks to start on this machine; 1 under a launcher.")
    device: str = setting("auto", "auto, cpu or cuda.")
    dtype: str = setting("auto", "auto (bfloat16 on a GPU, float32 on the CPU), bfloat16, ...")
    use_vllm: bool = setting(False, "Answer through a vLLM engine in this process.")
    vllm_gpu_memory_utilization: float = setting(0.9, "Share of each GPU's memory for the engine.")
    vllm_tensor_parallel_size: int = setting(1, "GPUs that the engine spans.")
    vllm_max_model_length: int | None = setting(
        None, "Tokens of prompt and answer at most; None: the model's own context."
    )
    attn_implementation: str | None = setting(None, "As transformers names it, for example sdpa.")
    cudnn_attention: bool = same_setting(RunArguments, "cudnn_attention")
    num_resamples: int = setting(2000, "Bootstrap resamples behind the intervals.")
    seed: int = setting(0, "Of the bootstrap and of sampled answers.")
    num_pictures: int = setting(8, "Pictures of each kind in the report; 0: none.")
    max_bad_samples: int = setting(0, "Samples that may be unreadable; they are left out.")
    num_reader_threads: int = same_setting(DataArguments, "num_reader_threads")
    num_fetch_threads: int = same_setting(DataArguments, "num_fetch_threads")
    max_sample_bytes: str = same_setting(DataArguments, "max_sample_bytes")
    max_image_pixels: int = same_setting(DataArguments, "max_image_pixels")
    max_total_pixels: int = same_setting(DataArguments, "max_total_pixels")
    retry_deadline_seconds: float = same_setting(DataArguments, "retry_deadline_seconds")
    cache_dir: str | None = same_setting(DataArguments, "cache_dir")
    cache_bytes: str = same_setting(DataArguments, "cache_bytes")

    def data(self) -> DataArguments:
        """The settings that training has, too."""
        names = {one.name for one in dataclasses.fields(DataArguments)}
        same = {name: value for name, value in vars(self).items() if name in names}
        same["shards"] = None if self.shards is None else [self.shards]
        same["json"] = None if self.json is None else self.json[0]
        return DataArguments(**same)

    def shown(self) -> dict[str, Any]:
        """The settings as results and page keep them: no secret of a URL."""
        shown: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, list):
                shown[name] = [mask_secrets(str(one)) for one in value]
            else:
                shown[name] = mask_secrets(value) if isinstance(value, str) else value
        return shown
