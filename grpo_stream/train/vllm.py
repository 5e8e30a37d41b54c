"""What trl's vLLM generation is handed: images at the model's size, once per prompt.

An engine runs an image processor of its own. It is pinned to the policy's pixel limits, so that it
finds nothing to resize, and the image tokens that it makes of an image are counted: another number
would mean that completions are sampled for another prompt than they are trained on.

An engine keeps what its vision tower made of an image, and trl resets only the cache of prefixes
after a sync of weights: an image that comes again would be answered by the tower of an earlier
step. Here that cache is emptied, too.

Written against trl 1.16 (``VLLMGeneration``, ``VLLMClient``) and vLLM 0.30. Stand-ins for engine
and server check what they are handed (``tests/train/test_vllm.py``); real ones run on the CPU
(``make test-vllm``). What no test has run is trl's transfer of weights to a server over NCCL.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object
from PIL import Image

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.images import ResizeRule

_BAN = -100.0  # the least that vLLM takes as a bias
_RENDER_PATH = "/v1/chat/completions/render"
_FORGET_PATH = "/reset_encoder_cache"  # one of those under VLLM_SERVER_DEV_MODE, which trl asks for


def banning_kwargs(
    token_ids: Sequence[int], generation_kwargs: dict[str, Any] | None
) -> dict[str, Any]:
    """``generation_kwargs`` for vLLM by which ``token_ids`` are never sampled."""
    given = dict(generation_kwargs or {})
    bias = dict.fromkeys(token_ids, _BAN) | (given.get("logit_bias") or {})
    return given | {"logit_bias": bias}


def pixel_limits(rule: ResizeRule) -> dict[str, int]:
    """``mm_processor_kwargs`` under which an engine's processor leaves the images alone."""
    return {"min_pixels": rule.min_pixels, "max_pixels": rule.max_pixels}


def engine_images(pixel_values: Any, keys: Sequence[str], num_generations: int) -> list[Any]:
    """The images of a generation batch as trl takes them: one list per completion.

    Args:
        pixel_values: Of a collated batch: per prompt uint8, shape (height, width, 3), or the list
            of them.
        keys: Of the prompts.
        num_generations: Completions of each; theirs is the same object, so that it is copied and
            sent once.

    Raises:
        ConfigError: the collator has made floats of them.
    """
    if isinstance(pixel_values, torch.Tensor):
        expected = "must give uint8 images with patch_rule: an engine cuts its own patches"
        raise ConfigError("data_collator", "float patches", expected)
    lists = [own if isinstance(own, list) else [own] for own in pixel_values]
    # None for a text: an empty list would be taken for images.
    images = [[Image.fromarray(pixels.numpy()) for pixels in own] or None for own in lists]
    return [image for image, _ in zip(images, keys, strict=True) for _ in range(num_generations)]


@dataclass
class Engine:
    """Stands between trl's ``VLLMGeneration`` and a colocated engine or a server.

    Args:
        generation: trl's, ready.
        image_token_id: What an image is in a prompt's token ids, repeated.
        limits: See :func:`pixel_limits`.
        is_tower_trained: Whether what the engine keeps of images is out of date after a sync.
    """

    generation: Any
    image_token_id: int
    limits: dict[str, int]
    is_tower_trained: bool = True
    num_payload_bytes: int = 0
    """Sent to a server for images so far."""
    _keys: list[str] = field(default_factory=list)
    _num_placed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.is_tower_trained:
            self._forget_images_at_sync()
        if self.generation.mode == "colocate":
            self.generation.llm = ColocatedEngine(self.generation.llm, self)
            return
        place = self.generation._place_features  # noqa: SLF001 - the one place that sees both

        def checked(features: dict[str, Any], prompt_ids: list[int]) -> Any:
            images = features["mm_placeholders"].get("image", ())
            self.compare(self._num_placed, sum(one["length"] for one in images), prompt_ids)
            self._num_placed += 1
            return place(features, prompt_ids)

        self.generation._place_features = checked  # noqa: SLF001
        if hasattr(self.generation, "vllm_client"):  # the first rank's
            self._pin(self.generation.vllm_client.session)

    def begin(self, keys: Sequence[str], num_generations: int) -> None:
        """Notes whose completions are sampled next, and how many of each; every rank at once."""
        if self.generation.mode == "colocate":
            self._keys = self._keys_of_engine(list(keys))
            self.generation.generation_kwargs["n"] = num_generations
        else:
            self._keys = gather_object(list(keys))
            self._num_placed = 0

    def compare(self, number: int, found: int, prompt_ids: list[int]) -> None:
        """Compares what an engine has made of an image with what the policy is trained on.

        Args:
            number: Of the prompt, in the order of the keys.
            found: The engine's image tokens.
            prompt_ids: The prompt as it is trained on.

        Raises:
            GrpoStreamError: another number, with the sample's key.
        """
        expected = prompt_ids.count(self.image_token_id)
        if found == expected:
            return
        key = self._keys[number] if number < len(self._keys) else f"prompt {number} of all ranks"
        limits = ", ".join(f"{name}={value}" for name, value in self.limits.items())
        raise GrpoStreamError(
            f"sample {key!r}: vLLM makes {found} image tokens of its image, training {expected}; "
            f"the engine's image processor must be the policy's, with {limits}"
        )

    def close(self) -> None:
        """Ends a colocated engine, while the groups that it spans are still there.

        vLLM (0.30, ``EngineCore.shutdown``) leaves all process groups on the way, the run's too.
        """
        if self.generation.mode == "colocate":
            self.generation.llm.llm_engine.engine_core.shutdown()

    def _keys_of_engine(self, keys: list[str]) -> list[str]:
        """Those of all ranks that an engine spans, in the order in which trl joins its prompts."""
        if self.generation.tensor_parallel_size == 1:
            return keys
        gathered: list[Any] = [None] * self.generation.tensor_parallel_size
        torch.distributed.all_gather_object(gathered, keys, group=self.generation.tp_group)
        return [key for of_rank in gathered for key in of_rank]

    def _forget_images_at_sync(self) -> None:
        sync_weights = self.generation.sync_weights

        def synced() -> None:
            sync_weights()
            if self.generation.mode == "colocate":
                self.generation.llm.llm_engine.reset_encoder_cache()
            elif hasattr(self.generation, "vllm_client"):
                client = self.generation.vllm_client
                client.session.post(f"{client.base_url}{_FORGET_PATH}").raise_for_status()

        self.generation.sync_weights = synced

    def _pin(self, session: Any) -> None:
        post = session.post

        def pinned(url: str, json: Any = None, **kwargs: Any) -> Any:
            is_image = url.endswith(_RENDER_PATH)
            if is_image:
                json = json | {"mm_processor_kwargs": self.limits}
            response = post(url, json=json, **kwargs)
            if is_image:
                with self._lock:  # several requests are on their way at a time
                    self.num_payload_bytes += len(response.request.body)
            return response

        session.post = pinned


class ColocatedEngine:
    """``vllm.LLM`` as trl calls it, with each prompt once.

    trl passes a row for every completion, with the image's tokens repeated as in training. An
    engine repeats them itself, and samples any number of completions from one row.

    Args:
        llm: The engine.
        owner: Compares what it makes of the images.
    """

    def __init__(self, llm: Any, owner: Engine) -> None:
        self._llm = llm
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def generate(
        self, prompts: list[dict[str, Any]], sampling_params: Any, **kwargs: Any
    ) -> list[Any]:
        """See ``vllm.LLM.generate``; one output per prompt, each with its completions."""
        prompts = prompts[:: sampling_params.n]
        rows = [
            row
            | {
                "prompt_token_ids": self._unrepeated(row["prompt_token_ids"]),
                "mm_processor_kwargs": self._owner.limits,
            }
            for row in prompts
        ]
        outputs: list[Any] = self._llm.generate(rows, sampling_params=sampling_params, **kwargs)
        for number, (row, output) in enumerate(zip(prompts, outputs, strict=True)):
            found = output.prompt_token_ids.count(self._owner.image_token_id)
            self._owner.compare(number, found, row["prompt_token_ids"])
        return outputs

    def _unrepeated(self, ids: list[int]) -> list[int]:
        image = self._owner.image_token_id
        return [
            token
            for token, before in zip(ids, [None, *ids[:-1]], strict=True)
            if token != image or before != image
        ]
