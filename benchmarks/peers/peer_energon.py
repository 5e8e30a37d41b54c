"""megatron-energon as a contestant."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.loaders.bare_loop import tars_in
from benchmarks.loaders.job import Batch, Job
from benchmarks.peers.peers import as_batch, sample_of

energon: Any = import_module("megatron.energon")


def convert(shards: str, folder: Path) -> None:
    """Links the shards into a folder and runs ``energon prepare`` on it."""
    main = import_module("megatron.energon.cli.main").main  # only here: it is slow to come

    for tar in tars_in(shards):
        (folder / tar.name).symlink_to(tar.resolve())
    words = ["prepare", str(folder), "--non-interactive", "--no-progress", "--sample-type"]
    words += ["CrudeWebdataset", "--split-parts", "train:.*"]
    with patch.object(sys, "argv", ["energon", *words]):
        main(words, standalone_mode=False)


def open_loader(job: Job) -> Any:
    """See ``peers.py``."""

    class Row(energon.Sample):  # type: ignore[misc] # of an untyped package
        row: dict[str, Any]

    row_class = energon.edataclass(Row)

    def cook(raw: dict[str, Any]) -> Any:
        row = sample_of(job, raw["__key__"], raw, json.loads(raw["json"]))
        return row_class(**energon.basic_sample_keys(raw), row=row)

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc] # of an untyped package
        decoder = None
        cookers = [energon.Cooker(energon.stateless(cook))]  # noqa: RUF012

        def batch(self, samples: list[Any]) -> Batch:
            return as_batch([sample.row for sample in samples])

    workers = energon.WorkerConfig(rank=0, world_size=1, num_workers=job.num_workers)
    rows = energon.get_train_dataset(
        str(Path(job.copies) / "energon"),
        worker_config=workers,
        batch_size=job.batch_size,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Encoder(),
    )
    return energon.get_savable_loader(rows, worker_config=workers)


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]))
