"""Stand-ins for a vLLM engine and server: they check and keep what they are handed."""

import base64
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from trl.generation import vllm_client, vllm_generation

LOGPROB = -2.0


class SamplingParams:
    """Takes any setting, as keyword."""

    def __init__(self, **settings):
        self.__dict__ |= settings


class EncodedImages:
    """An engine's encoder cache: an image is computed once, by the tower of that moment."""

    def __init__(self):
        self.num_resets = 0
        self.ages: list[int] = []
        """Of each image that was answered: syncs since the tower has seen it."""
        self._encoded_at: dict[bytes, int] = {}

    def answer(self, image, num_syncs):
        self.ages.append(num_syncs - self._encoded_at.setdefault(image.tobytes(), num_syncs))

    def reset(self):
        self.num_resets += 1
        self._encoded_at.clear()


class Engine:
    """``vllm.LLM``: repeats an image's token by what its own processor makes of the image.

    Asleep (level 2, vLLM 0.30) it has neither weights nor a cache. Each is woken by its tag, and
    the weights are new memory then: they have to be loaded before it answers.
    """

    def __init__(self, processor, answer, **settings):
        self.processor, self.answer, self.settings = processor, answer, settings
        self.prompts: list[dict[str, Any]] = []
        self.params: list[SamplingParams] = []
        self.syncs: list[list[str]] = []
        self.num_resets = 0
        self.encoded = EncodedImages()
        self.is_open = True
        self.calls: list[str] = []
        """What it was asked for, in order; loading and answering once in a row."""
        self.awake = {"weights", "kv_cache"}
        self._has_weights = True
        self._loaded: list[str] = []
        model = SimpleNamespace(load_weights=self._load)
        runner = SimpleNamespace(model=model)
        worker = SimpleNamespace(model_runner=runner)
        executor = SimpleNamespace(driver_worker=worker)
        self.llm_engine = SimpleNamespace(
            model_executor=executor,
            reset_encoder_cache=self._reset_images,
            engine_core=SimpleNamespace(shutdown=self._shut_down),
        )

    def _shut_down(self):
        self.is_open = False

    def _note(self, call):
        if self.calls[-1:] != [call]:
            self.calls.append(call)

    def _load(self, weights):
        assert "weights" in self.awake, "writes to memory that is not there"
        self._note("load")
        self._has_weights = True
        self._loaded += [name for name, _ in weights]

    def _reset_images(self):
        assert "weights" in self.awake
        self._note("reset images")
        self.encoded.reset()

    def sleep(self, level):
        assert level == 2
        self._note("sleep")
        self.awake.clear()
        self._has_weights = False

    def wake_up(self, tags):
        self._note(f"wake up {', '.join(tags)}")
        self.awake.update(tags)

    def reset_prefix_cache(self):
        self._note("reset prefixes")
        self.num_resets += 1
        self.syncs.append(self._loaded)
        self._loaded = []

    def generate(self, prompts, sampling_params, use_tqdm):
        assert not use_tqdm
        assert self._has_weights
        assert self.awake == {"weights", "kv_cache"}
        self._note("generate")
        self.prompts += prompts
        self.params.append(sampling_params)
        return [self._output(prompt, sampling_params.n) for prompt in prompts]

    def _output(self, prompt, n):
        image = prompt["multi_modal_data"]["image"]
        self.encoded.answer(image, len(self.syncs))
        count = num_image_tokens(self.processor, image, prompt["mm_processor_kwargs"])
        token = self.processor.image_token_id
        ids = prompt["prompt_token_ids"]
        place = ids.index(token)
        scored = SimpleNamespace(rank=1, logprob=LOGPROB)
        logprobs = [{sampled: scored} for sampled in self.answer]
        completion = SimpleNamespace(token_ids=list(self.answer), logprobs=logprobs)
        return SimpleNamespace(
            prompt_token_ids=[*ids[:place], *[token] * count, *ids[place + 1 :]],
            outputs=[completion] * n,
        )


def num_image_tokens(processor, image, limits):
    size = {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}
    own = processor.image_processor
    grid = own(images=[image], size=size, return_tensors="pt")["image_grid_thw"]
    return int(grid.prod()) // own.merge_size**2


class Server:
    """The endpoints of ``vllm serve`` that trl's ``VLLMClient`` calls, on loopback."""

    def __init__(self, processor, answer, limits=None):
        self.processor, self.answer, self.limits = processor, answer, limits
        self.images: list[np.ndarray[Any, Any]] = []
        self.limits_seen: list[dict[str, int]] = []
        self.num_image_bytes = 0
        self.requests: list[dict[str, Any]] = []
        self.syncs: list[list[str]] = []
        self.encoded = EncodedImages()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._answer(server.get(self.path.partition("?")[0]))

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                self._answer(server.post(self.path, json.loads(body or b"{}"), len(body)))

            def _answer(self, answer):
                data = b"" if answer is None else json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def get(self, path):
        return {
            "/health": {},
            "/v1/models": {"data": [{"id": "tiny"}]},
            "/server_info": {
                "vllm_config": {
                    "model_config": {"logprobs_mode": "processed_logprobs"},
                    "weight_transfer_config": {},
                }
            },
        }[path]

    def post(self, path, body, num_bytes):
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/reset_encoder_cache":
            self.encoded.reset()
            return None
        if path == "/v1/chat/completions/render":
            return {"features": self._features(body, num_bytes)}
        assert path == "/inference/v1/generate"
        with self._lock:
            self.requests.append(body)
        return {"choices": [self._choice()] * body["sampling_params"]["n"]}

    def _features(self, body, num_bytes):
        (part,) = body["messages"][0]["content"]
        data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
        image = Image.open(io.BytesIO(data))
        with self._lock:
            self.images.append(np.asarray(image))
            self.encoded.answer(image, len(self.syncs))
            self.limits_seen.append(body["mm_processor_kwargs"])
            self.num_image_bytes += num_bytes
        limits = self.limits or body["mm_processor_kwargs"]
        count = num_image_tokens(self.processor, image, limits)
        return {"mm_placeholders": {"image": [{"offset": 3, "length": count}]}, "hash": len(data)}

    def _choice(self):
        tokens = [f"token_id:{token}" for token in self.answer]
        content = [{"token": t, "logprob": LOGPROB, "top_logprobs": []} for t in tokens]
        return {"token_ids": self.answer, "logprobs": {"content": content}}


def install(monkeypatch):
    """Makes trl believe that vLLM is there."""
    forget_world(monkeypatch)
    package = ModuleType("vllm")
    package.__spec__ = ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", package)
    for module in (vllm_client, vllm_generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda **_: True)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SamplingParams, raising=False)


def forget_world(monkeypatch):
    """Takes back, at the end, the variables by which trl tells an engine of its one rank."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def install_engine(monkeypatch, processor, answer):
    """A colocated engine; the list of those that are made."""
    install(monkeypatch)
    engines = []

    def make(**settings):
        engines.append(Engine(processor, answer, **settings))
        return engines[-1]

    monkeypatch.setattr(vllm_generation, "LLM", make, raising=False)
    return engines


def install_client(monkeypatch, server):
    """trl's own client for a server, without the transfer of weights from GPU to GPU."""
    install(monkeypatch)
    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda *_, **__: None)

    def update(_client, metadata, params):
        named = [name for name, _ in params]
        assert named == [name for name, *_ in metadata]
        server.syncs.append(named)

    monkeypatch.setattr(vllm_client.VLLMClient, "update_named_params", update)
