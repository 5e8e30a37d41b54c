import pytest

from grpo_stream.boxes import Box
from grpo_stream.report.contact_sheet import CELL, contact_sheet, sheet_cell
from tests.report.test_gallery import grey, sample
from tests.report.test_marked_image import GREY


def test_contact_sheet_centres_each_picture_in_its_cell():
    sheet = contact_sheet([grey(30, 20), grey(10, 40), grey(30, 40)], columns=2, gap=5)
    assert sheet.size == (5 + 2 * 35, 5 + 2 * 45)
    assert sheet.getpixel((5, 15)) == GREY
    assert sheet.getpixel((5, 14)) == (255, 255, 255)
    assert sheet.getpixel((50, 5)) == GREY
    assert sheet.getpixel((49, 5)) == (255, 255, 255)
    assert sheet.getpixel((5, 50)) == GREY
    assert contact_sheet([grey(30, 20)], columns=9).width == 12 + 42


@pytest.mark.parametrize(("count", "columns"), [(0, 2), (1, 0)])
def test_contact_sheet_needs_something_to_show(count, columns):
    with pytest.raises(ValueError, match="at least 1"):
        contact_sheet([grey(9, 9)] * count, columns)


@pytest.mark.parametrize("size", [(1280, 720), (390, 844), (1, 1), (5000, 3), (3, 5000)])
@pytest.mark.parametrize("prompt", ["Click", "\u65e5\u672c\U0001f600 " * 90, "", "W" * 900])
def test_a_cell_has_one_size_whatever_is_in_it(size, prompt):
    shown = sample(
        images=[grey(*size)], shapes=[(0, Box(0, 0, 1, 1))], prompt=prompt, title="k" * 90
    )
    cell = sheet_cell(shown)
    assert cell.size == CELL
    assert cell.tobytes() == sheet_cell(shown).tobytes()
    assert contact_sheet([cell] * 3, 2, gap=4).size == (2 * CELL.width + 12, 2 * CELL.height + 12)
