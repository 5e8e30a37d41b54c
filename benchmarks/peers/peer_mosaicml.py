"""mosaicml-streaming as a contestant."""

import json
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.loaders.bare_loop import image_of, read_tar, tars_in
from benchmarks.loaders.job import Job
from benchmarks.peers.peers import as_batch

_COLUMNS = {"key": "str", "image": "bytes", "meta": "str"}
_VISION: dict[str, dict[str, Any]] = {  # what its vision examples, which nothing here uses, import
    "torchvision": {},
    "torchvision.datasets": {"VisionDataset": object},
    "torchvision.transforms": {},
    "torchvision.transforms.functional": {"to_tensor": None},
}


def _import() -> Any:
    """The package; without torchvision, which it imports first, if that is not there."""
    stand_ins = {}
    if find_spec("torchvision") is None:
        stand_ins = {name: _module(name, parts) for name, parts in _VISION.items()}
    sys.modules.update(stand_ins)
    try:
        import_module("streaming.base.util")
        return import_module("streaming")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _module(name: str, parts: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(parts)
    return module


streaming: Any = _import()


def convert(shards: str, folder: Path) -> None:
    """Writes the samples in MDS, a shard of 64 MiB after another."""
    with streaming.MDSWriter(out=str(folder / "mds"), columns=_COLUMNS, hashes=[]) as writer:
        for tar in tars_in(shards):
            for key, members in read_tar(tar):
                meta = members["json"].decode()
                writer.write({"key": key, "image": image_of(members), "meta": meta})


def open_loader(job: Job) -> Any:
    """See ``peers.py``."""
    streaming.base.util.clean_stale_shared_memory()

    class Rows(streaming.StreamingDataset):  # type: ignore[misc] # untyped
        def __getitem__(self, at: int) -> Any:
            row = super().__getitem__(at)
            image = job.image(row["image"])
            return {"key": row["key"], "image": image, "meta": json.loads(row["meta"])}

    rows = Rows(
        local=str(Path(job.copies) / "mosaicml" / "mds"), shuffle=False, batch_size=job.batch_size
    )
    return streaming.StreamingDataLoader(
        rows,
        batch_size=job.batch_size,
        num_workers=job.num_workers,
        collate_fn=as_batch,
        persistent_workers=True,
    )


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]))
