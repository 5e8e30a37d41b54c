"""Other loaders, each used as its own documentation shows, over the same samples.

=============  ============================================  =====================================
name           reads                                         through
=============  ============================================  =====================================
webdataset     the shards themselves                         ``webdataset.WebLoader``
datasets       the shards themselves                         ``torchdata``'s StatefulDataLoader,
                                                             else torch's DataLoader
mosaicml       a copy in MDS                                 ``streaming.StreamingDataLoader``
litdata        a copy in its chunks                          ``litdata.StreamingDataLoader``
energon        links to the shards and its ``.nv-meta``      ``get_savable_loader``
=============  ============================================  =====================================

None shuffles. Workers are processes, since that is what each of them offers; a worker decodes with
this project's decoder and batches are dicts of lists of torch tensors, as everybody's are here.
``pip install 'grpo_stream[bench]'`` brings webdataset, datasets and energon. The other two ask
for torchvision, which nothing here uses::

    pip install --no-deps mosaicml-streaming litdata torchdata
    pip install Brotli python-snappy zstd xxhash catalogue lightning-utilities tifffile filelock
"""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.loaders.bare_loop import image_of
from benchmarks.loaders.job import Batch, Job


@dataclass(frozen=True)
class Peer:
    """Another loader."""

    package: str
    """What is imported, and has to be there."""
    module: str
    """Of ``benchmarks.peers``: has ``open_loader``; run as a script, it makes the copy."""
    has_copy: bool
    can_resume: bool
    """Whether a saved place is sought, rather than read up to."""

    @property
    def is_installed(self) -> bool:
        """Whether it can be found; nothing is imported."""
        try:
            return importlib.util.find_spec(self.package) is not None
        except ModuleNotFoundError:  # not even the package that would hold it
            return False

    def convert(self, shards: str, folder: Path) -> None:
        """Makes its copy of the shards, unless an earlier call did.

        In a process of its own: some of them talk, and leave threads or patches behind.
        """
        if not self.has_copy or (folder / "done").exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = [sys.executable, "-m", f"benchmarks.peers.{self.module}", shards, str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (folder / "done").touch()


OURS = ("threads", "processes")
"""Names of this project's loader."""

PEERS = {
    "webdataset": Peer("webdataset", "peer_webdataset", has_copy=False, can_resume=False),
    "datasets": Peer("datasets", "peer_datasets", has_copy=False, can_resume=True),
    "mosaicml": Peer("streaming", "peer_mosaicml", has_copy=True, can_resume=True),
    "litdata": Peer("litdata", "peer_litdata", has_copy=True, can_resume=True),
    "energon": Peer("megatron.energon", "peer_energon", has_copy=True, can_resume=True),
}


def opener(name: str) -> Callable[[Job], Any]:
    """What opens the loader of that name, with all that it needs imported."""
    module = "ours" if name in OURS else PEERS[name].module
    open_loader: Callable[[Job], Any] = import_module(f"benchmarks.peers.{module}").open_loader
    return open_loader


def as_batch(samples: list[dict[str, Any]]) -> Batch:
    """Samples as a dict of lists: what the peers get as their ``collate_fn``."""
    return {name: [sample[name] for sample in samples] for name in ("key", "image", "meta")}


def sample_of(job: Job, key: str, members: dict[str, Any], meta: Any) -> dict[str, Any]:
    """A sample of a batch, from the members of a tar."""
    return {"key": key, "image": job.image(image_of(members)), "meta": meta}


def for_ever(loader: Any) -> Generator[Batch, None, None]:
    """The loader's batches, epoch after epoch; closes it in the end, where it can be closed."""
    try:
        while True:
            yield from loader
    finally:
        getattr(loader, "close", bool)()
