import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.records.formats.forms import Context
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.records.formats.open_inputs import (
    RuleFlags,
    expand_inputs,
    read_formed,
    rules_of,
)
from grpo_stream.records.formats.rows.screenspot import (
    is_screenspot,
    screenspot_layout,
    screenspot_records,
)
from grpo_stream.records.formats.rules import Rules
from tests.records.formats.support import formed, read_all, write

ROW = {"bbox": [1112, 22, 24, 24], "instruction": "close this window"}
FIRST = ROW | {"img_filename": "pc_1.png", "data_type": "icon", "data_source": "windows"}
PRO = ROW | {"img_filename": "mac/a.png", "img_size": [3840, 2160], "ui_type": "icon", "id": "a_0"}
HUB = ROW | {"bbox": [0.1, 0.2, 0.3, 0.4], "file_name": "a.png", "data_type": "text"}


@pytest.mark.parametrize(
    ("row", "layout"),
    [(FIRST, ("xywh", "pixels")), (PRO, ("xyxy", "pixels")), (HUB, ("xyxy", "unit"))],
)
def test_versions(row, layout):
    assert screenspot_layout(row) == layout
    ((form, record),) = formed(screenspot_records(row, Context("screenspot", is_told=True)))
    assert (form.box_format, form.coords) == layout
    ((form, _),) = formed(screenspot_records(row, Context("screenspot")))
    assert form.box_format is None  # names alone decide nothing
    assert (record["prompt"], record["solution"]) == (row["instruction"], row["bbox"])
    assert record["image"] == row.get("img_filename", row.get("file_name"))
    assert not {"img_filename", "bbox", "instruction"} & record.keys()


def test_negative_rows_have_no_place():
    row = {name: value for name, value in PRO.items() if name != "bbox"} | {"gt_type": "negative"}
    assert is_screenspot(row)
    for one in (row, row | {"bbox": [1, 2, 3, 4]}):
        ((form, record),) = formed(screenspot_records(one, Context("screenspot", is_told=True)))
        assert form.is_refusal
        assert (record["solution"], record["solution_wanted"]) == ([], "none")
        assert (record["prompt"], record["ui_type"]) == ("close this window", "icon")


def test_the_user_names_the_field_that_asks(tmp_path):
    path = write(tmp_path / "pro.json", [PRO | {"instruction_cn": "关闭此窗口"}, PRO])
    for input_format in ("auto", "screenspot"):
        (source,) = expand_inputs([path], input_format)
        rules = rules_of(source, Rules(), RuleFlags(prompt_key="instruction_cn"))
        prompts = [record["prompt"] for _, _, record in read_formed(source, rules)]
        assert prompts == ["关闭此窗口", "close this window"]  # the second has no such field
    with pytest.raises(ConfigError, match="goes with plain records"):
        rules_of(source, Rules(), RuleFlags(solution_key="box"))


def test_what_else_a_row_has_is_kept():
    ((_, record),) = formed(
        screenspot_records(PRO | {"prompt": "another", "solution": 3}, Context())
    )
    assert {"ui_type": "icon", "id": "a_0", "prompt": "close this window"}.items() <= record.items()
    ((_, record),) = formed(
        screenspot_records(HUB | {"image": InlineImage("a.png", b"x")}, Context())
    )
    assert record["image"] == InlineImage("a.png", b"x")


def test_a_file_is_known(tmp_path):
    path = write(tmp_path / "screenspot_web_v2.json", [FIRST, {"id": 1}, 3])
    source, records = read_all(path)
    assert source.format == "screenspot"
    assert records[1:] == [(1, {"id": 1}), (2, 3)]
    _, records = read_all(path, "screenspot")
    assert (records[1][1].cause, records[2]) == ("prompt_missing", (2, 3))
    assert "no field 'instruction' in ['id']" in records[1][1].detail
