import datetime as dt
import subprocess
import sys

import pytest

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.records.formats.open_inputs import expand_inputs, read_formed, read_source
from tests.records.formats.support import read_all, write
from tests.shards.support import image_bytes

datasets = pytest.importorskip("datasets")
PNG = image_bytes()


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def write_table(path, **columns):
    path.parent.mkdir(exist_ok=True)
    features = datasets.Features(
        {
            name: datasets.Image() if isinstance(values[0], dict) and "bytes" in values[0]
            else datasets.Dataset.from_dict({name: values}).features[name]
            for name, values in columns.items()
        }
    )  # fmt: skip
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)


@pytest.fixture
def table(tmp_path):
    for name in ("b", "a"):
        write_table(
            tmp_path / "rows" / f"{name}.parquet",
            screen=[{"bytes": PNG, "path": f"{name}.png"}, {"bytes": PNG, "path": None}],
            prompt=["Click", "Open"],
            place=[[1.0, 2.0, 3.0, 4.0], [0.5, 1, 2, 3]],
            when=[dt.datetime(2020, 1, 2)] * 2,  # noqa: DTZ001 - as tables have them
            raw=[b"x", b"y"],
            element=[{"role": "link", "raw": b"z"}] * 2,
        )
    return "datasets:rows/*.parquet"


def test_rows(table):
    stored: list[bytes] = []
    source, records = read_all(table, on_bytes=stored.append)
    assert (source.format, source.container) == ("datasets", "table")
    names = [record["image"].name for _, record in records]
    assert names == ["a.png", "screen_1", "b.png", "screen_3"]
    assert records[1] == (1, {
        "image": InlineImage("screen_1", PNG), "prompt": "Open", "place": [0.5, 1.0, 2.0, 3.0],
        "when": "2020-01-02 00:00:00", "element": {"role": "link"},
    })  # fmt: skip
    again: list[bytes] = []
    assert list(read_source(source, on_bytes=again.append)) == records
    assert again == stored
    assert len(set(stored)) == 4


def test_the_image_is_the_column_that_the_user_names(tmp_path):
    images = {name: [{"bytes": PNG, "path": f"{name}.png"}] for name in ("mask", "screen")}
    write_table(tmp_path / "rows" / "a.parquet", prompt=["Click"], **images)
    _, ((_, record),) = read_all("datasets:rows", image_key="screen")
    assert record == {"prompt": "Click", "screen": InlineImage("screen.png", PNG)}
    _, ((_, record),) = read_all("datasets:rows")
    assert record == {"prompt": "Click"}  # which of both is meant is not guessed


def test_rows_in_a_format(tmp_path):
    write_table(
        tmp_path / "rows" / "a.parquet",
        image=[{"bytes": PNG, "path": "a.png"}],
        answer=[["the lady", "woman"]],
        bbox=[[1.0, 2.0, 3.0, 4.0]],
    )
    source, records = read_all("datasets:rows", "refcoco")
    assert {form[2:4] for _, form, _ in read_formed(source)} == {("xywh", "pixels")}
    assert [(i, r["prompt"]) for i, r in records] == [(0, "the lady"), (0, "woman")]


def test_an_image_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "a.png", PNG)
    write(tmp_path / "folder" / "metadata.jsonl", '{"file_name": "a.png", "prompt": "Click"}\n')
    _, records = read_all("datasets:folder")
    assert records == [(0, {"image": InlineImage("a.png", PNG), "prompt": "Click"})]


def test_a_table_cannot_name_files_of_this_machine(tmp_path):
    outside = write(tmp_path / "secret.png", PNG)
    write_table(
        tmp_path / "rows" / "a.parquet", image=[{"bytes": None, "path": outside}], prompt=["a"]
    )
    _, ((_, error),) = read_all("datasets:rows")
    assert isinstance(error, RecordError)
    assert error.cause == "image_not_inline"


@pytest.mark.parametrize(
    "word",
    ["datasets:", "datasets:none/*.parquet", "datasets:a:b:c:d", "datasets:rows::nosplit",
     "datasets:no/such", "datasets:none.parquet"],
)  # fmt: skip
def test_tables_that_are_none(table, word):
    with pytest.raises(ConfigError, match="datasets:hub/id"):
        expand_inputs([word])


def test_one_of_several_splits_must_be_named(tmp_path):
    for split in ("train", "test"):
        write_table(tmp_path / "rows" / f"{split}.parquet", prompt=[split])
    with pytest.raises(ConfigError, match="has the splits train, test"):
        expand_inputs(["datasets:rows"])
    _, records = read_all("datasets:rows::test")
    assert records == [(0, {"prompt": "test"})]


def test_a_damaged_table(tmp_path):
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows" / "a.parquet", b"PAR1 and no more")
    with pytest.raises((ConfigError, RecordError), match="rows"):
        read_all("datasets:rows/a.parquet")


def test_torch_stays_out(table):
    code = (
        "import sys; from grpo_stream.records.formats.open_inputs import *; "
        f"print(len(list(read_source(expand_inputs([{table!r}])[0])))); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert (done.stdout, done.returncode) == ("4\n", 0), done.stderr
