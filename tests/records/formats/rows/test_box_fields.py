import pytest

from grpo_stream.records.formats.forms import Context, Form
from grpo_stream.records.formats.rows.box_fields import with_numbers
from grpo_stream.records.formats.rows.elements import element_records
from grpo_stream.records.formats.rows.gui_rows import gui_records
from grpo_stream.records.formats.rows.refcoco import refcoco_records
from grpo_stream.records.formats.rows.screenspot import screenspot_records

BOX = [12, 5, 40, 60]
FORM = Form("gui", "bbox", None, None, ("xyxy", "xywh"))


@pytest.mark.parametrize(
    ("value", "numbers", "box_format"),
    [
        (BOX, BOX, None),
        (["12", "5", "40", "60"], BOX, None),
        ([["12", " 5", "4e1", "60.0"]], BOX, None),
        ("12, 5, 40, 60", BOX, None),
        ("12 5 40 60", BOX, None),
        ("[12, 5, 40, 60]", BOX, None),
        ("(12, 5), (40, 60)", BOX, None),
        ({"x1": "12", "y1": "5", "x2": "40", "y2": "60"}, BOX, "xyxy"),
        ({"x0": 12, "y0": 5, "x1": 40, "y1": 60}, BOX, "xyxy"),
        ({"top": 5, "left": 12, "bottom": 60, "right": 40}, BOX, "xyxy"),
        ({"x": 12, "y": 5, "width": 28, "height": 55}, [12, 5, 28, 55], "xywh"),
        ({"cx": 26, "cy": 32.5, "w": 28, "h": 55}, [26, 32.5, 28, 55], "cxcywh"),
    ],
)
def test_what_a_field_for_a_box_may_hold(value, numbers, box_format):
    form, record = with_numbers(FORM, {"solution": value})
    assert (record["solution"], form.box_format, form.coords) == (numbers, box_format, None)


@pytest.mark.parametrize(
    "value",
    ["12, 5", "12, 5, 40", "12px 5px 40px 60px", "192.168.0.1", "", ["a", "1"], {"x1": 12},
     [BOX, BOX], None, True, [True, False, True, True], "9" * 5000],
)  # fmt: skip
def test_what_is_left_to_the_judge(value):
    assert with_numbers(FORM, {"solution": value}) == (FORM, {"solution": value})


@pytest.mark.parametrize(
    ("records", "row"),
    [
        (screenspot_records, {"img_filename": "a.png", "instruction": "close"}),
        (gui_records, {"image_path": "a.png", "instruction": "close"}),
        (refcoco_records, {"image": "a.jpg", "sent": "the cup", "ref_id": 1}),
        (element_records, {"img_filename": "a.png", "elements": [{"instruction": "close"}]}),
    ],
)
def test_every_row_with_a_box_reads_them(records, row):
    for value in (["12", "5", "40", "60"], {"x1": 12, "y1": 5, "x2": 40, "y2": 60}):
        holder = {"bbox": value}
        elements = [one | holder for one in row.get("elements", ())]
        whole = row | ({"elements": elements} if elements else holder)
        ((_, record),) = records(whole, Context("some"))
        assert record["solution"] == BOX
