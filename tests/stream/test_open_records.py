import json

import pytest

from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.records.formats.open_inputs import RuleFlags
from grpo_stream.stream.open_records import open_records
from grpo_stream.stream.ordered_reader import read_at
from tests.shards.support import image_bytes

SCREENSPOT = {"img_filename": "a.png", "bbox": [10, 5, 20, 10], "instruction": "close"}
REFCOCO = {"img_path": "a.png", "expression": "left one", "bbox": [10, 5, 30, 15]}
PLAIN = {"image": "a.png", "prompt": "Click", "solution": [1, 2, 3, 4]}


@pytest.fixture
def images(tmp_path):
    (tmp_path / "a.png").write_bytes(image_bytes((40, 30), "red"))
    return tmp_path


def write(folder, name, records):
    path = folder / name
    path.write_text(json.dumps(records))
    return str(path)


@pytest.mark.parametrize(
    ("record", "input_format", "prompt", "solution"),
    [
        (SCREENSPOT, "screenspot", "close", (10, 5, 30, 15)),
        (REFCOCO, "refcoco", "left one", (10, 5, 30, 15)),
        (PLAIN, "auto", "Click", (1, 2, 3, 4)),
        (PLAIN, "json", "Click", (1, 2, 3, 4)),
    ],
)
def test_formats(images, record, input_format, prompt, solution):
    record = record | {"data_type": "icon"}
    path = write(images, "data.json", [record, record])
    source = open_records([path], input_format, images)
    assert source.shard_counts.tolist() == [2]
    sample = read_at(source, 1)
    assert (sample.prompt, sample.solution) == (prompt, solution)
    assert sample.extra["data_type"] == "icon"


def test_records_that_fit_two_readings_are_asked_about(images):
    path = write(images, "data.json", [SCREENSPOT] * 3)
    with pytest.raises(ConfigError, match=r"--box-format xywh .*3 of 3 fit") as caught:
        open_records([path], "auto", images)
    assert caught.value.field == "json"
    flags = RuleFlags(box_format="xywh", coords="pixels")
    source = open_records([path], "auto", images, flags=flags)
    assert read_at(source, 2).solution == (10, 5, 30, 15)


def test_records_without_a_target_are_left_out(images):
    path = write(images, "data.json", [PLAIN, PLAIN | {"solution": None}, PLAIN])
    source = open_records([path], "auto", images)
    assert source.readings[-1] == "1 of 3 records are left out: solution_none 1"
    assert source.shard_counts.tolist() == [2]


def test_several_files_are_read_one_after_another(images):
    paths = [
        write(images, f"{name}.json", [SCREENSPOT | {"instruction": name}])
        for name in ("web", "mobile")
    ]
    source = open_records(paths, "screenspot", images)
    assert [read_at(source, n).prompt for n in (0, 1)] == ["web", "mobile"]
    assert source.digest != open_records(paths[::-1], "screenspot", images).digest


@pytest.mark.parametrize(
    ("records", "input_format", "field", "words"),
    [
        ([PLAIN], "screenshot", "format", "must be one of auto, json"),
        ([], "auto", "json", "holds no records"),
    ],
)
def test_mistakes_are_named_as_the_user_writes_them(images, records, input_format, field, words):
    path = write(images, "data.json", records)
    with pytest.raises(ConfigError, match=words) as caught:
        open_records([path], input_format, images)
    assert caught.value.field == field


def test_files_that_write_boxes_in_different_ways(images):
    pro = SCREENSPOT | {"ui_type": "icon", "bbox": [10, 5, 30, 15]}
    paths = [write(images, "a.json", [SCREENSPOT]), write(images, "b.json", [pro])]
    source = open_records(paths, "screenspot", images)
    assert [read_at(source, n).solution for n in (0, 1)] == [(10, 5, 30, 15)] * 2
    assert len(source.readings) == 2


def test_absolute_paths_need_no_folder(images):
    path = write(images, "data.json", [PLAIN | {"image": str(images / PLAIN["image"])}])
    found = [read_at(open_records([path], "auto", root), 0) for root in (None, images)]
    assert found[0].image == found[1].image
    assert found[0].solution == tuple(PLAIN["solution"])


def test_no_folder_and_damage(images):
    with pytest.raises(ConfigError, match=r"json='.*nothing\.json'"):
        open_records([str(images / "nothing.json")], "auto", images)
    path = write(images, "data.json", [PLAIN])
    with pytest.raises(ConfigError, match="images_root"):
        open_records([path])
    (images / "data.json").write_text(json.dumps([PLAIN])[:-1] + ",{]")
    with pytest.raises(RecordError, match=r"data\.json"):
        open_records([path], "auto", images)
