import base64
from urllib.parse import quote

import pytest

from grpo_stream.records.formats.image_values import unwrapped_image
from grpo_stream.records.formats.inline_image import InlineImage
from tests.shards.support import image_bytes

PNG = image_bytes((60, 40), "red")
BASE64 = base64.b64encode(PNG + bytes(300)).decode()


@pytest.mark.parametrize(
    "value",
    [
        "dir/a.png",
        "http://host/a.png",
        "data:image/png;base64,AA",
        "x" * 5000,
        None,
        7,
        [],
        {"other": 1},
        b"no image",
    ],
)
def test_what_is_left_to_the_judge(value):
    assert unwrapped_image(value) == value


@pytest.mark.parametrize("value", [["a.png"], {"path": "a.png"}, [{"url": "a.png"}]])
def test_a_path(value):
    assert unwrapped_image(value) == "a.png"


def test_several_stay_several():
    assert unwrapped_image(["a.png", {"path": "b.png"}]) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "value",
    [
        BASE64,
        BASE64.rstrip("="),
        f"data:image/png;base64,{BASE64}",
        f"data:image/png;charset=utf-8;base64,{BASE64}",
        [f"data:;base64,{BASE64}"],
        {"bytes": BASE64, "path": None},
        {"url": f"data:image/png;base64,{BASE64}"},
    ],
)
def test_the_picture_itself(value):
    found = unwrapped_image(value)
    assert isinstance(found, InlineImage)
    assert found.data == PNG + bytes(300)


def test_bytes_and_their_name():
    assert unwrapped_image(PNG).data == PNG
    assert unwrapped_image({"bytes": PNG, "path": "a.png"}) == InlineImage("a.png", PNG)


@pytest.mark.parametrize(
    "written",
    [
        f"  data:image/png;base64,{BASE64}\n",
        f"DATA:image/PNG;BASE64,{BASE64}",
        f"data:image/png;base64,{BASE64[:40]}\n {BASE64[40:]}",
        "data:image/png;base64," + BASE64.replace("+", "-").replace("/", "_").rstrip("="),
        "data:image/png;base64," + quote(BASE64, safe=""),
    ],
    ids=["spaces", "capitals", "lines", "url-safe", "percents"],
)
def test_data_uris_as_people_write_them(written):
    assert unwrapped_image(written) == InlineImage("inline.png", PNG + bytes(300))
