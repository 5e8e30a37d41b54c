"""What trl and transformers offer, and this trainer does not do."""

from typing import Any

_READ_AHEAD = (
    "is of a DataLoader, and the stream reads ahead by itself (num_reader_threads, "
    "num_decode_processes, prefetch_batches)"
)

REFUSED: dict[str, tuple[Any, str]] = {
    "use_transformers_continuous_batching": (
        False,
        "would compute every prompt once per completion",
    ),
    "ignore_data_skip": (
        False,
        "would count samples as done that were not, and resuming costs nothing here",
    ),
    "cache_implementation": (None, "cannot continue from the cache of a prompt that is shared"),
    "use_liger_kernel": (False, "is deprecated by trl, and its kernels take no packed groups"),
    "fsdp": (None, "is not supported, but DeepSpeed is: deepspeed=ds_configs/zero3.json"),
    "shuffle_dataset": (
        True,
        "has no effect: a stream is mixed within blocks of shards (block_shards=1 mixes least)",
    ),
    "data_seed": (None, "has no effect: the seed of the samples' order is stream_seed"),
    "train_sampling_strategy": ("random", "has no effect: the stream has its own order"),
    "dataloader_num_workers": (0, _READ_AHEAD),
    "dataloader_prefetch_factor": (None, _READ_AHEAD),
    "dataloader_persistent_workers": (False, _READ_AHEAD),
    "dataloader_multiprocessing_context": (None, _READ_AHEAD),
    "dataloader_in_order": (True, _READ_AHEAD),
    "dataloader_drop_last": (
        False,
        "has no effect: all batches are whole, and an epoch's last samples are its reserve",
    ),
}
"""Field of ``GRPOConfig`` -> the one value that works, and why no other does."""
