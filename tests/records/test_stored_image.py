import io
import os
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, ImageError, RecordError, StoreError
from grpo_stream.image_encoding import Encoding
from grpo_stream.images import ResizeRule, decode, probe, resize
from grpo_stream.records import stored_image
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.records.image_files import check_image_path, image_name, read_image_file
from grpo_stream.records.stored_image import ImageReader, PictureRules, make_picture
from grpo_stream.storage.local_store import LocalStore
from tests.shards.support import image_bytes

SIZE = Size(100, 80)
RULE = ResizeRule(max_pixels=56 * 56)
HEADER = PictureRules(check="header")


def noise(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.effect_noise(SIZE, 60).convert("RGB").convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def turned():
    block = Image.Exif()
    block[0x0112] = 6
    return noise("JPEG", exif=block.tobytes())


PLAIN = {"jpg": noise("JPEG"), "png": noise("PNG"), "webp": noise("WEBP", quality=95)}
ODD = {
    "turned": turned(),
    "cmyk": noise("JPEG", "CMYK"),
    "alpha": image_bytes(SIZE, (255, 0, 0, 128), mode="RGBA"),
    "palette": noise("PNG", "P"),
    "gif": noise("GIF"),
    "bmp": noise("BMP"),
}


@pytest.mark.parametrize("check", ["decode", "header"])
@pytest.mark.parametrize("suffix", PLAIN)
def test_plain_pictures_keep_their_bytes(suffix, check):
    data = PLAIN[suffix]
    picture = make_picture(data, f"a.{suffix}", PictureRules(check=check))
    assert picture.data is data
    assert (picture.suffix, picture.size, picture.original_size) == (suffix, SIZE, SIZE)
    assert picture.crc32 == zlib.crc32(data)
    assert picture.warnings == ()


@pytest.mark.parametrize("check", ["decode", "header"])
@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_become_upright_png(name, check):
    picture = make_picture(ODD[name], "a", PictureRules(check=check))
    assert picture.suffix == "png"
    assert np.array_equal(decode(picture.data), decode(ODD[name]))
    upright = Size(80, 100) if name == "turned" else SIZE
    assert picture.size == picture.original_size == upright


@pytest.mark.parametrize(
    ("data", "suffix", "tolerance"),
    [
        (PLAIN["jpg"], "jpg", 12),
        (PLAIN["png"], "png", 0),
        (PLAIN["webp"], "webp", 60),
        (ODD["turned"], "jpg", 12),
        (ODD["alpha"], "png", 0),
        (ODD["bmp"], "png", 0),
    ],
)
def test_resized_pictures_stay_in_their_family(data, suffix, tolerance):
    picture = make_picture(data, "a", PictureRules(resize=RULE))
    original = probe(data).size
    assert picture.suffix == suffix
    assert picture.original_size == original
    assert picture.size == probe(picture.data).size == RULE.target(original) != original
    expected = resize(decode(data), picture.size).astype(int)
    assert np.abs(decode(picture.data) - expected).max() <= tolerance


def test_a_picture_that_has_the_size_already_is_not_touched():
    data = image_bytes((56, 56), kind="JPEG")
    assert make_picture(data, "a.jpg", PictureRules(resize=RULE)).data is data


@pytest.mark.parametrize("kind", ["jpeg", "webp", "png"])
def test_reencoding_applies_to_every_picture(kind):
    rules = PictureRules(encoding=Encoding(kind, None if kind == "png" else 70), check="header")
    for data in (*PLAIN.values(), *ODD.values()):
        picture = make_picture(data, "a", rules)
        assert probe(picture.data).format == kind.upper()
        assert picture.suffix == {"jpeg": "jpg"}.get(kind, kind)
        assert picture.size == probe(data).size
        assert picture == make_picture(data, "a", rules)


@pytest.mark.parametrize("suffix", PLAIN)
def test_what_is_cut_short_is_refused_at_both_levels(suffix):
    data = PLAIN[suffix]
    for length in (len(data) - 1, len(data) // 2):
        for check in ("decode", "header"):
            with pytest.raises(ImageError) as caught:
                make_picture(data[:length], "a", PictureRules(check=check))
            assert caught.value.cause == "image_truncated"


def test_damaged_pixels_are_found_by_decoding():
    data = bytearray(PLAIN["png"])
    at = data.index(b"IDAT") + 20
    data[at : at + 50] = bytes(50)
    with pytest.raises(ImageError, match="image_truncated"):
        make_picture(bytes(data), "a.png", PictureRules())
    make_picture(bytes(data), "a.png", HEADER)


def test_fingerprints():
    prints = {make_picture(data, "a", HEADER).fingerprint for data in PLAIN.values()}
    assert len(prints) == 3
    assert all(0 <= number < 2**64 for number in prints)
    again = make_picture(bytes(bytearray(PLAIN["png"])), "b", HEADER)
    assert again.fingerprint == make_picture(PLAIN["png"], "a", HEADER).fingerprint


@pytest.mark.parametrize(
    ("path", "inside"),
    [("a.png", "a.png"), ("./a//b.png", "a/b.png"), ("a/../b.png", "b.png"), ("ü 😀", "ü 😀")],
)
def test_good_paths(path, inside):
    assert check_image_path(path) == inside


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        (" ", "image_path_empty"),
        ("s3://bucket/a.png", "image_path_url"),
        ("data:image/png;base64,AA", "image_path_url"),
        ("/a.png", "image_path_absolute"),
        ("\\\\host\\a.png", "image_path_absolute"),
        ("~/a.png", "image_path_absolute"),
        ("..", "image_path_outside"),
        ("a/../../b.png", "image_path_outside"),
        ("a/..", "image_not_file"),
        ("a\0.png", "image_not_found"),
        ("é" * 600, "image_not_found"),
    ],
)
def test_bad_paths(path, cause):
    with pytest.raises(RecordError) as caught:
        check_image_path(path)
    assert caught.value.cause == cause


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/data/images/a.png", "a.png"),
        ("file:///data/images/sub/b%20c.png", "sub/b c.png"),
        ("sub\\b.png", "sub/b.png"),
        (".\\sub\\b.png", "sub/b.png"),
    ],
)
def test_other_ways_to_name_a_file_inside(path, inside):
    assert check_image_path(path, ("/data/images/",)) == inside


@pytest.mark.parametrize(
    "path", ["/data/other/a.png", "file:///etc/hostname", "/data/images/../a.png", "C:\\a.png"]
)
def test_absolute_paths_elsewhere(path):
    with pytest.raises(RecordError, match="image_path_absolute"):
        check_image_path(path, ("/data/images/",))


def test_files_are_found_in_either_unicode_form(tmp_path):
    name = "g\u00e2teau.png"  # one letter
    (tmp_path / unicodedata.normalize("NFD", name)).write_bytes(PLAIN["png"])
    (tmp_path / "back\\slash.png").write_bytes(PLAIN["png"])
    reader = ImageReader(str(tmp_path), HEADER)
    for path in (name, unicodedata.normalize("NFD", name), "back\\slash.png", f"{tmp_path}/{name}"):
        assert reader.load(path).data == PLAIN["png"]
    assert reader.size_of(name) == make_picture(PLAIN["png"], "a", HEADER).size
    with pytest.raises(RecordError, match="image_not_found"):
        reader.load("p\u00e2t\u00e9.png")


def test_percents_stand_for_letters_where_no_file_has_them(tmp_path):
    (tmp_path / "in").mkdir()
    for name, colour in (("my pic.png", "red"), ("in/a b.png", "red"), ("100%.png", "red"),
                         ("b%20c.png", "red"), ("b c.png", "blue")):  # fmt: skip
        (tmp_path / name).write_bytes(image_bytes((8, 6), colour))
    (tmp_path.parent / "outside.png").write_bytes(PLAIN["png"])
    reader = ImageReader(str(tmp_path), HEADER)
    for path in ("my%20pic.png", "in%2Fa%20b.png", "100%.png", "100%25.png", "b%20c.png"):
        assert reader.load(path).data == image_bytes((8, 6), "red")
    for path in ("%2E%2E/outside.png", "..%2Foutside.png", f"%2F{tmp_path}/my pic.png", "a%00.png",
                 "a%0A.png"):  # fmt: skip
        with pytest.raises(RecordError, match="image_not_found"):
            reader.load(path)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("a.png", "a.png"),
        (InlineImage("b.png", b""), "b.png"),
        ([InlineImage("b.png", b""), "a.png"], "b.png"),
        ([], None),
        (7, None),
        ([["a.png"]], None),
    ],
)
def test_image_name(value, name):
    assert image_name(value) == name


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"1")
    for name, cause in [
        ("pipe", "image_not_file"),  # and it does not wait for a writer
        (".", "image_not_file"),
        ("none", "image_not_found"),
        ("file/none", "image_not_found"),
        ("x" * 300, "image_not_found"),
    ]:
        with pytest.raises(RecordError) as caught:
            read_image_file(f"{tmp_path}/{name}", name)
        assert caught.value.cause == cause
    assert read_image_file(f"{tmp_path}/file", "file") == b"1"


class Bucket:
    """A store that is no folder, as far as the reader can see."""

    def __init__(self, folder):
        self.folder_store = LocalStore(folder)
        self.reads = []

    def read(self, name):
        self.reads.append(name)
        if name.startswith("forbidden"):
            raise StoreError("unreadable", "no permission")
        return self.folder_store.read(name)


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(image_bytes((8, 8), (number, 0, 0)))
    (tmp_path / "bad.png").write_bytes(b"<html>")
    return tmp_path


@pytest.fixture
def bucket(folder, monkeypatch):
    bucket = Bucket(folder)
    monkeypatch.setattr(stored_image, "open_store", lambda _: bucket)
    return bucket


class TestImageReader:
    def test_a_folder(self, folder):
        for root in (str(folder), folder.as_uri()):
            reader = ImageReader(root, PictureRules())
            reader.prefetch(["0.png"])
            assert reader.load("sub/../0.png").data == (folder / "0.png").read_bytes()
            with pytest.raises(RecordError, match="image_not_found"):
                reader.load("none.png")
            with pytest.raises(ImageError, match="image_unreadable"):
                reader.load("bad.png")
            reader.close()

    def test_an_image_that_the_record_carries(self, folder):
        reader = ImageReader(str(folder), PictureRules())
        picture = reader.load(InlineImage("../any name.jpg", PLAIN["png"]))
        assert picture.data is PLAIN["png"]
        assert [cause for cause, _ in picture.warnings] == ["image_suffix"]

    def test_pictures_are_made_once_while_there_is_room(self, folder, monkeypatch):
        made = []

        def make(data, name, rules):
            made.append(name)
            return make_picture(data, name, rules)

        monkeypatch.setattr(stored_image, "make_picture", make)
        num_bytes = max(file.stat().st_size for file in folder.iterdir())
        monkeypatch.setattr(stored_image, "_MAX_CACHED_BYTES", 2 * num_bytes)
        reader = ImageReader(str(folder), PictureRules())
        for number in (0, 1, 0, 0, 2, 0, 1):
            reader.load(f"{number}.png")
        assert made == ["0.png", "1.png", "2.png", "0.png", "1.png"]  # the oldest had to go

    def test_a_bucket_is_read_ahead(self, bucket):
        reader = ImageReader("s3://bucket", PictureRules())
        wanted = ["0.png", "0.png", "./1.png", "../x.png", "2.png"]
        reader.prefetch(wanted)
        sizes = [reader.load(path).size for path in wanted if path != "../x.png"]
        assert sizes == [(8, 8)] * 4
        assert sorted(bucket.reads) == ["0.png", "1.png", "2.png"]
        reader.prefetch(["2.png", "3.png"])
        reader.load("3.png")
        assert sorted(bucket.reads) == ["0.png", "1.png", "2.png", "3.png"]
        reader.close()

    def test_what_a_bucket_does_not_hold(self, bucket):
        reader = ImageReader("s3://bucket", PictureRules())
        reader.prefetch(["none.png", "0.png"])
        for path, words in (("none.png", "is not in images-root$"), ("a\nb.png", "is no name of")):
            with pytest.raises(RecordError, match=f"image_not_found: .* {words}"):
                reader.load(path)
        assert reader.load("0.png").size == (8, 8)
        reader.close()

    def test_a_bucket_that_fails_is_not_the_records_fault(self, bucket):
        reader = ImageReader("s3://bucket", PictureRules())
        with pytest.raises(StoreError, match="no permission"):
            reader.load("forbidden.png")

    def test_a_root_that_cannot_be(self):
        with pytest.raises(ConfigError, match="url"):
            ImageReader("ftp://host/images", PictureRules())
