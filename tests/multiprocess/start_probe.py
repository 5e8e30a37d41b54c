"""Loads a model under ZeRO-3 and takes an update; started once per rank by test_start.py.

Writes the most private memory that loading took, and the bytes of all tensors after the update.
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

from grpo_stream.train.zero import load_zero_config


def main(folder, out):
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    rank = torch.distributed.get_rank()
    config = load_zero_config("ds_configs/zero3_cpu.json")
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    config |= {"train_batch_size": "auto", "gradient_clipping": 1.0}
    del config["train_batch_size"]
    kept = HfDeepSpeedConfig(config)  # as long as it lives, from_pretrained partitions
    with Watch() as watch:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
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
        "tensor_bytes": tensor_bytes(),
    }
    (Path(out) / f"rank-{rank}.json").write_text(json.dumps(seen))
    torch.distributed.barrier()


class Watch:
    """The most private memory since it began: file pages that are only read count, too."""

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


def private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


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
