"""litdata as a contestant."""

import json
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.loaders.bare_loop import image_of, read_tar, tars_in
from benchmarks.loaders.job import Job
from benchmarks.peers.peers import as_batch

litdata: Any = import_module("litdata")

_CHUNK_BYTES = "64MB"


def convert(shards: str, folder: Path) -> None:
    """Writes the samples in chunks, a shard after another."""
    litdata.optimize(
        fn=_samples,
        inputs=[str(tar) for tar in tars_in(shards)],
        output_dir=str(folder / "chunks"),
        chunk_bytes=_CHUNK_BYTES,
        num_workers=1,
        verbose=False,
    )


def open_loader(job: Job) -> Any:
    """See ``peers.py``."""
    rows = litdata.StreamingDataset(
        str(Path(job.copies) / "litdata" / "chunks"), transform=partial(_sample, job)
    )
    return litdata.StreamingDataLoader(
        rows,
        batch_size=job.batch_size,
        num_workers=job.num_workers,
        collate_fn=as_batch,
        persistent_workers=True,
    )


def _samples(tar: str) -> Iterator[dict[str, Any]]:
    for key, members in read_tar(Path(tar)):
        yield {"key": key, "image": image_of(members), "meta": members["json"].decode()}


def _sample(job: Job, row: dict[str, Any]) -> dict[str, Any]:
    return {"key": row["key"], "image": job.image(row["image"]), "meta": json.loads(row["meta"])}


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]))
