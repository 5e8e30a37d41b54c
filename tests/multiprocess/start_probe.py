"""Loads a model under ZeRO-3 and takes an update; started once per rank by test_start.py.

Writes the most private memory that loading took, how much of the weights was read, and the bytes
of all tensors after the update.
"""

import gc
import json
import sys
import threading
from pathlib import Path

import deepspeed
import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.integrations import HfDeepSpeedConfig

from grpo_stream.train.cluster.process_group import leave_process_group
from grpo_stream.train.setup.deepspeed_config import load_zero_config


def main(folder):
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    rank = torch.distributed.get_rank()
    config = load_zero_config("ds_configs/zero3_cpu.json")
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    config |= {"train_batch_size": "auto", "gradient_clipping": 1.0}
    del config["train_batch_size"]
    kept = HfDeepSpeedConfig(config)  # as long as it lives, from_pretrained partitions
    folder = Path(folder)
    load(folder / "small")  # what is imported and set up by a first loading shall not count
    gc.collect()
    with Watch(folder / "model") as watch:
        model = load(folder / "model")
    num_weights = sum(weight.ds_tensor.numel() for weight in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    ids = torch.arange(8)[None]
    states = engine(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    engine.backward(states.sum())
    engine.step()
    del states, kept
    seen = {
        "num_weights": num_weights,
        "peak_bytes": watch.peak_bytes,
        "file_bytes": watch.file_bytes,
        "tensor_bytes": tensor_bytes(),
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen))
    leave_process_group()


def load(folder):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


class Watch:
    """The most private memory since it began, and the most of a folder's weights that was mapped.

    Pages of the file that are only read count as memory, too.
    """

    def __init__(self, folder):
        self.path, self.file_bytes = f"{folder}/model.safetensors", 0

    def __enter__(self):
        self.before, self.peak_bytes = private_bytes(), 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(0.01):
            self.peak_bytes = max(self.peak_bytes, private_bytes() - self.before)
            self.file_bytes = max(self.file_bytes, resident_bytes(self.path))


def private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def resident_bytes(path):
    """Of a mapped file, what has been read: to open it for its header alone reads next to none."""
    _, *mappings = Path("/proc/self/smaps").read_text().split(path + "\n")
    return sum(int(mapping.split("Rss:")[1].split()[0]) * 1024 for mapping in mappings)


def tensor_bytes():
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


if __name__ == "__main__":
    main(*sys.argv[1:])
