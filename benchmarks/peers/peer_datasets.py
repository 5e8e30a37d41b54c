"""Hugging Face datasets, streaming webdataset shards, as a contestant."""

from functools import partial
from importlib import import_module
from typing import Any

import datasets

from benchmarks.loaders.bare_loop import image_of, tars_in
from benchmarks.loaders.job import Batch, Job
from benchmarks.peers.peers import as_batch

try:
    _LOADER: Any = import_module("torchdata.stateful_dataloader").StatefulDataLoader
except ImportError:
    _LOADER = import_module("torch.utils.data").DataLoader


def open_loader(job: Job) -> Any:
    """See ``peers.py``."""
    tars = [str(path) for path in tars_in(job.shards)]
    rows = datasets.load_dataset(
        "webdataset", data_files={"train": tars}, split="train", streaming=True
    )
    # Stored bytes, so that it is decoded by the same code as everybody's.
    for name in {"jpg", "png", "webp"} & set(rows.column_names or []):
        rows = rows.cast_column(name, datasets.Image(decode=False))
    return _LOADER(
        rows,
        batch_size=job.batch_size,
        num_workers=job.num_workers,
        collate_fn=partial(_collate, job),
        persistent_workers=True,
    )


def _collate(job: Job, rows: list[dict[str, Any]]) -> Batch:
    return as_batch(
        [
            {"key": row["__key__"], "image": job.image(_stored(row)), "meta": row["json"]}
            for row in rows
        ]
    )


def _stored(row: dict[str, Any]) -> bytes:
    return image_of({name: value["bytes"] for name, value in row.items() if _is_image(value)})


def _is_image(value: Any) -> bool:
    return isinstance(value, dict) and value.get("bytes") is not None
