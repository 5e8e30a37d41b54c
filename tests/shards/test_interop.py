"""A set as others read it: sample for sample the same, in their own processes or here."""

import importlib.util
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from grpo_stream.boxes import Size
from grpo_stream.shards.sample import Sample, make_meta
from tests.shards.support import image_bytes, make_multi_sample, write_set

SOLUTIONS = [(1, 2, 8, 6), (3, 4), (0.5, 1.25, 7, 5.75), (1, 2, 3, 4), (0, 0), (2.5, 3)] * 2
COLOURS = ["red", "green", "blue", "black"]


def one(number, solution):
    size = Size(8 + number % 3, 6)
    meta = make_meta(f"Clique ici ✓ {number}", solution, size, Size(80, 60), {"id": f"r{number}"})
    image = image_bytes(size, COLOURS[number % 4], "JPEG")
    return Sample(f"{number:09d}_page", image, "jpg", meta)


SAMPLES = [one(number, solution) for number, solution in enumerate(SOLUTIONS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    write_set(folder, SAMPLES, per_shard=5)
    return folder


def is_there(library):
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # not even the package that would hold it
        return False


def needs(library):
    """Skips a test without ``library``, which is looked for but not imported: some bring torch."""
    return pytest.mark.skipif(not is_there(library), reason=f"no {library}")


def in_a_process(script, *words, **environment):
    """What a script prints as JSON lines; these libraries bring much with them."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]


WEBDATASET = """
import glob, json, sys
import webdataset
shards = [shard for folder in sys.argv[1:] for shard in sorted(glob.glob(folder + "/*.tar"))]
for sample in webdataset.WebDataset(shards, shardshuffle=False):
    parts = {name: value.hex() for name, value in sample.items() if not name.startswith("__")}
    print(json.dumps({"key": sample["__key__"], "parts": parts}))
"""


def parts_of(sample):
    """Every part of a sample by its suffix."""
    images = {f"{n}.{suffix}": data for n, (suffix, data) in enumerate(sample.images)}
    return {name.removeprefix("0."): data for name, data in images.items()}


@needs("webdataset")
def test_webdataset(folder, tmp_path):
    several = [make_multi_sample("0"), make_multi_sample("1", (1, 2), (2,))]
    write_set(tmp_path, several)
    samples = [*SAMPLES, *several]
    rows = in_a_process(WEBDATASET, folder, tmp_path)
    assert [row["key"] for row in rows] == [sample.key for sample in samples]
    for row, sample in zip(rows, samples, strict=True):
        parts = {name: bytes.fromhex(value) for name, value in row["parts"].items()}
        assert json.loads(parts.pop("json")) == sample.meta
        assert parts == parts_of(sample)
    assert list(rows[-1]["parts"]) == ["png", "1.jpg", "2.webp", "json"]


DATASETS = """
import json, sys
import datasets
files = {"train": sys.argv[1] + "/*.tar"}
rows = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
for row in rows:
    print(json.dumps({
        "key": row["__key__"], "json": row["json"], "pixels": row["jpg"].convert("RGB").tobytes().hex(),
    }))
"""  # noqa: E501


@needs("datasets")
def test_datasets(folder, tmp_path):
    rows = in_a_process(DATASETS, folder, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert [row["key"] for row in rows] == [sample.key for sample in SAMPLES]
    for row, sample in zip(rows, SAMPLES, strict=True):
        assert row["json"] == sample.meta  # fractions too, though the first boxes are whole
        image = Image.open(io.BytesIO(sample.image)).convert("RGB")
        assert bytes.fromhex(row["pixels"]) == np.asarray(image).tobytes()


ENERGON = """
import json, sys
from megatron.energon import (
    Cooker, DefaultTaskEncoder, Sample, WorkerConfig, basic_sample_keys, edataclass, get_loader,
    get_val_dataset, stateless,
)

@edataclass
class Row(Sample):
    parts: dict

@stateless
def cook(raw):
    parts = {name: value.hex() for name, value in raw.items() if not name.startswith("__")}
    return Row(**basic_sample_keys(raw), parts=parts)

class Encoder(DefaultTaskEncoder):
    decoder = None
    cookers = [Cooker(cook)]

    def batch(self, samples):
        return samples

workers = WorkerConfig(rank=0, world_size=1, num_workers=0)
encoder = Encoder()
rows = get_val_dataset(
    sys.argv[1], split_part="train", worker_config=workers, batch_size=1, task_encoder=encoder
)
for (row,) in get_loader(rows):
    print(json.dumps({"key": row.__key__, "parts": row.parts}))
"""


@needs("megatron.energon")
def test_energon(folder):
    ours = {path.name: path.read_bytes() for path in folder.glob("*.tar.idx")}
    assert len(ours) == 3
    words = ["--non-interactive", "--no-progress", "--sample-type", "CrudeWebdataset"]
    script = "import sys; from megatron.energon.cli.main import main; main(sys.argv[1:])"
    in_a_process(script, "prepare", folder, *words, "--split-parts", "train:shard-.*")
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar.idx")} == ours
    rows = in_a_process(ENERGON, folder)
    assert [row["key"] for row in rows] == [sample.key for sample in SAMPLES]
    for row, sample in zip(rows, SAMPLES, strict=True):
        parts = {name: bytes.fromhex(value) for name, value in row["parts"].items()}
        assert json.loads(parts.pop("json")) == sample.meta
        assert parts == parts_of(sample)
