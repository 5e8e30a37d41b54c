"""webdataset as a contestant."""

import json
from functools import partial
from typing import Any

import webdataset

from benchmarks.loaders.bare_loop import tars_in
from benchmarks.loaders.job import Job
from benchmarks.peers.peers import as_batch, sample_of


def open_loader(job: Job) -> Any:
    """See ``peers.py``."""
    tars = [str(path) for path in tars_in(job.shards)]
    dataset = (
        webdataset.WebDataset(tars, shardshuffle=False)
        .map(partial(_sample, job))
        .batched(job.batch_size, collation_fn=as_batch)
    )
    return webdataset.WebLoader(
        dataset, batch_size=None, num_workers=job.num_workers, persistent_workers=True
    )


def _sample(job: Job, sample: dict[str, Any]) -> dict[str, Any]:
    return sample_of(job, sample["__key__"], sample, json.loads(sample["json"]))
