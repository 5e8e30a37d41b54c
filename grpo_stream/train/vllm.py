"""What trl's vLLM generation is handed: images at the model's size, once per prompt.

An engine runs an image processor of its own. It is pinned to the policy's pixel limits, so that it
finds nothing to resize (families with a processor of their own have no such limits: it is the same
processor), and what it makes of a prompt is compared: otherwise completions would be sampled for
another prompt than they are trained on.

Weights are handed over as the files of the hub hold them, which is what an engine's loader takes.

An engine keeps what its vision tower made of an image, and trl resets only the cache of prefixes
after a sync of weights: an image that comes again would be answered by the tower of an earlier
step. Here that cache is emptied, too.

Written against trl 1.16 (``VLLMGeneration``, ``VLLMClient``) and vLLM 0.30. Stand-ins for engine
and server check what they are handed (``tests/train/test_vllm.py``); real ones run on the CPU
(``make test-vllm``). What no test has run is trl's transfer of weights to a server over NCCL.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object

from grpo_stream.errors import GrpoStreamError
from grpo_stream.train.models.expert_weights import as_in_files

_RENDER_PATH = "/v1/chat/completions/render"
_FORGET_PATH = "/reset_encoder_cache"  # one of those under VLLM_SERVER_DEV_MODE, which trl asks for


@dataclass
class Engine:
    """Stands between trl's ``VLLMGeneration`` and a colocated engine or a server.

    Args:
        generation: trl's, ready.
        image_token_id: What an image is in a prompt's token ids, repeated.
        limits: See :func:`~grpo_stream.train.engine_inputs.pixel_limits`.
        model_type: Of the policy, whose weights are handed over.
        is_tower_trained: Whether what the engine keeps of images is out of date after a sync.
    """

    generation: Any
    image_token_id: int
    limits: dict[str, int]
    model_type: str = ""
    is_tower_trained: bool = True
    num_payload_bytes: int = 0
    """Sent to a server for images so far."""
    _keys: list[str] = field(default_factory=list)
    _short_ids: list[list[int] | None] = field(default_factory=list)
    _num_placed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.is_tower_trained:
            self._forget_images_at_sync()
        self._name_as_in_files()
        if self.generation.mode == "colocate":
            self.generation.llm = ColocatedEngine(self.generation.llm, self)
            return
        place = self.generation._place_features  # noqa: SLF001 - the one place that sees both

        def checked(features: dict[str, Any] | None, prompt_ids: list[int]) -> Any:
            images = (features or {"mm_placeholders": {}})["mm_placeholders"].get("image", ())
            self.compare(self._num_placed, sum(one["length"] for one in images), prompt_ids)
            self._num_placed += 1
            return place(features, prompt_ids)

        self.generation._place_features = checked  # noqa: SLF001
        if hasattr(self.generation, "vllm_client"):  # the first rank's
            self._pin(self.generation.vllm_client.session)

    def begin(
        self,
        keys: Sequence[str],
        num_generations: int,
        short_ids: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Notes whose completions are sampled next, and how many of each; every rank at once.

        Args:
            keys: Of the prompts.
            num_generations: Completions of each.
            short_ids: The prompts before their images' tokens are repeated, where it takes the
                processor to tell; each int64, shape (length,).
        """
        if self.generation.mode == "colocate":
            given: list[list[int] | None] = [None] * len(keys)
            if short_ids is not None:
                given = [ids.tolist() for ids in short_ids]
            pairs = self._of_engine(list(zip(keys, given, strict=True)))
            self._keys = [key for key, _ in pairs]
            self._short_ids = [ids for _, ids in pairs]
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
        key = self._key(number)
        limits = ", ".join(f"{name}={value}" for name, value in self.limits.items())
        raise GrpoStreamError(
            f"sample {key!r}: vLLM makes {found} image tokens of its image, training {expected}; "
            f"the engine's image processor must be the policy's, with {limits or 'its settings'}"
        )

    def compare_ids(self, number: int, found: list[int], prompt_ids: list[int]) -> None:
        """As :meth:`compare`, where the engine gives the whole prompt.

        Raises:
            GrpoStreamError: it is another one, with the sample's key.
        """
        self.compare(number, found.count(self.image_token_id), prompt_ids)
        if found == prompt_ids:
            return
        pairs = enumerate(zip(found, prompt_ids, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(found), len(prompt_ids)))
        raise GrpoStreamError(
            f"sample {self._key(number)!r}: vLLM makes another prompt of it than training has, "
            f"from token {place} on; use use_vllm=False for this model"
        )

    def short_ids(self, number: int, prompt_ids: list[int]) -> list[int]:
        """A prompt as an engine takes it: each image's token once.

        Args:
            number: Of the prompt, in the order of the keys.
            prompt_ids: As it is trained on. Of Qwen-VL's kind, where a token behind each image
                parts it from the next.
        """
        given = self._short_ids[number] if number < len(self._short_ids) else None
        if given is not None:
            return given
        image = self.image_token_id
        return [
            token
            for token, before in zip(prompt_ids, [None, *prompt_ids[:-1]], strict=True)
            if token != image or before != image
        ]

    def _key(self, number: int) -> str:
        is_known = number < len(self._keys)
        return self._keys[number] if is_known else f"prompt {number} of all ranks"

    def close(self) -> None:
        """Ends a colocated engine, while the groups that it spans are still there.

        vLLM (0.30, ``EngineCore.shutdown``) leaves all process groups on the way, the run's too.
        """
        if self.generation.mode == "colocate":
            self.generation.llm.llm_engine.engine_core.shutdown()

    def _of_engine(self, values: list[Any]) -> list[Any]:
        """Those of all ranks that an engine spans, in the order in which trl joins its prompts."""
        if self.generation.tensor_parallel_size == 1:
            return values
        gathered: list[Any] = [None] * self.generation.tensor_parallel_size
        torch.distributed.all_gather_object(gathered, values, group=self.generation.tp_group)
        return [value for of_rank in gathered for value in of_rank]

    def _name_as_in_files(self) -> None:
        """Weights go over in the layout of the hub's files, and none of them may be passed over."""
        if self.generation.sync_weights is None:  # an evaluation's engine has its own
            return
        named = getattr(self.generation, "_iter_named_params", None)
        if named is not None:

            def converted() -> Iterator[tuple[str, torch.Tensor]]:
                return as_in_files(self.model_type, named())

            self.generation._iter_named_params = converted  # noqa: SLF001 - trl has no hook
        if self.generation.mode == "colocate" and self.generation.llm is not None:
            executor = self.generation.llm.llm_engine.model_executor
            model = executor.driver_worker.model_runner.model
            model.load_weights = LoadAll(model.load_weights)

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


class LoadAll:
    """A model's ``load_weights`` that passes nothing over: vLLM's skip a name without a word.

    Args:
        load: vLLM's (0.30); the names of its own weights that have been loaded.
    """

    def __init__(self, load: Any) -> None:
        self._load = load

    def __call__(self, weights: Any) -> Any:
        """See the class; pairs of name and tensor."""
        given = list(weights)
        loaded = self._load(given)
        if loaded is not None and not loaded:
            names = ", ".join(name for name, _ in given)
            raise GrpoStreamError(
                f"vLLM takes no weight by the name of {names}: its engine would sample from an "
                "earlier policy; use use_vllm=False for this model"
            )
        return loaded


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
        limits = self._owner.limits
        rows = [
            row
            | {"prompt_token_ids": self._owner.short_ids(number, row["prompt_token_ids"])}
            | ({"mm_processor_kwargs": limits} if limits else {})
            for number, row in enumerate(prompts)
        ]
        outputs: list[Any] = self._llm.generate(rows, sampling_params=sampling_params, **kwargs)
        for number, (row, output) in enumerate(zip(prompts, outputs, strict=True)):
            self._owner.compare_ids(number, output.prompt_token_ids, row["prompt_token_ids"])
        return outputs
