"""``vllm serve`` as docs/training.md starts it; weights travel by file, as NCCL needs a GPU."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from safetensors.torch import save_file
from transformers import PrinterCallback
from trl import GRPOConfig
from trl.generation.vllm_client import VLLMClient

from grpo_stream.families import FAMILIES as ROWS
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.train.models.processor import resize_rule
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.multiprocess.ranks import free_port
from tests.train.runs import logged, spread_reward
from tests.train.support import QUIET, write_mixed_set
from tests.vllm.conftest import FAMILIES, pixel_limits_of
from tests.vllm.engines import EXACT, SyncOff
from tests.vllm.test_colocated import BOUND, DIFFERENCE, NUM_CONTROL, NUM_SYNCED, TIMES

START_SECONDS = 400


@pytest.fixture(params=[name for name in FAMILIES if ROWS[name].processor])
def family(request):
    """Of those that a server tells the places of images of."""
    return request.param


@pytest.fixture
def server(folder_of, family, tmp_path):
    """Its address."""
    log = tmp_path / "server.log"
    port = free_port()
    words = [
        *(Path(sys.executable).parent / "vllm", "serve", folder_of(family), "--port", port),
        *("--host", "127.0.0.1", "--weight-transfer-config", '{"backend": "nccl"}'),
        *("--logprobs-mode", EXACT["logprobs_mode"], "--max-logprobs", -1, "--enable-scale-out"),
        *("--mm-processor-kwargs", json.dumps(pixel_limits_of(family)), "--dtype", EXACT["dtype"]),
        *("--max-model-len", EXACT["max_model_len"], "--enforce-eager"),
        *("--limit-mm-per-prompt", '{"video": 0}'),
    ]
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]
    with log.open("w") as file:
        process = psutil.Popen(
            [*map(str, words)], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_up(url, process, log)
            yield url
        finally:
            ours = [process, *process.children(recursive=True)]
            for one in ours:
                one.terminate()
            _, left = psutil.wait_procs(ours, timeout=20)
            for one in left:
                one.kill()


def wait_until_up(url, process, log):
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()[-5000:]
        assert time.monotonic() < deadline, log.read_text()[-5000:]
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(1)


@pytest.fixture
def by_file(folder_of, family, tmp_path, monkeypatch):
    """trl's client with another way for weights, and for a server that tells raw log-probs."""
    folder = shutil.copytree(folder_of(family), tmp_path / "weights")
    info = VLLMClient.get_server_info

    def update(client, _, named):
        tensors = {name: tensor.clone().contiguous() for name, tensor in named}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        rpc: dict[str, Any] = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        response = requests.post(f"{client.base_url}/collective_rpc", json=rpc, timeout=60)
        response.raise_for_status()

    def as_trl_wants_it(client):
        found = info(client)
        assert found["model_config"]["logprobs_mode"] == EXACT["logprobs_mode"]
        found["model_config"]["logprobs_mode"] = "processed_logprobs"
        return found

    monkeypatch.setattr(VLLMClient, "init_communicator", lambda *_, **__: None)
    monkeypatch.setattr(VLLMClient, "update_named_params", update)
    monkeypatch.setattr(VLLMClient, "get_server_info", as_trl_wants_it)


@pytest.mark.usefixtures("by_file")
def test_samples_of_none_one_and_several_images(server, family, folder_of, processor_of, tmp_path):
    """Each comes again, when the tower has new weights."""
    processor = processor_of(family)
    rule = resize_rule(processor.image_processor)
    config = StreamConfig(num_lanes=2, num_reader_threads=1, resize=rule)
    mixed = write_mixed_set(tmp_path / "mixed", 4)
    args = GRPOConfig(
        str(tmp_path),
        **QUIET,
        logging_steps=1,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=8,
        max_steps=NUM_SYNCED + NUM_CONTROL,
        learning_rate=1e-3,
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=server,
    )
    trainer = PersonalizedGRPOTrainer(
        str(folder_of(family)),
        spread_reward,
        args,
        PromptStream(ShardSource(str(mixed)), config),
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(SyncOff(trainer, NUM_SYNCED))
    trainer.train()
    trainer.close()
    found = logged(trainer, DIFFERENCE)
    assert max(found[:NUM_SYNCED]) < BOUND
    assert min(found[NUM_SYNCED:]) > TIMES * BOUND
    assert sum(logged(trainer, "vllm/image_megabytes_sent")) > 0
