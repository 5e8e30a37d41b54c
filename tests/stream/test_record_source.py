import hashlib
import json
from datetime import date
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, ImageError, RecordError
from grpo_stream.images import ImageLimits, ResizeRule, decode
from grpo_stream.records.validate import Rules
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.record_source import RecordSource, sample_from_record
from tests.shards.support import image_bytes
from tests.stream.support import make_config

RECORD = {"image": "a.png", "prompt": "Click", "solution": [1, 2, 7, 5], "id": 3}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a.png").write_bytes(image_bytes((8, 6)))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jpg").write_bytes(image_bytes((20, 10), "blue", "JPEG"))
    (tmp_path / "broken.png").write_bytes(b"no image")
    return tmp_path


def test_reads_records_as_the_builder_would_store_them(root):
    source = RecordSource([RECORD, RECORD | {"image": "sub/b.jpg"}], root)
    assert source.shard_counts.tolist() == [2]
    first, second = source.read(0, 0), source.read(0, 1)
    assert (first.key, second.key) == ("000000000_a", "000000001_b")
    assert first.image == image_bytes((8, 6))
    assert (first.solution, first.size, first.original_size) == ((1, 2, 7, 5), (8, 6), (8, 6))
    assert first.extra == {"image": "a.png", "id": 3}
    assert second.size == Size(20, 10)


def test_exif_orientation_is_applied(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "turned.jpg").write_bytes(image_bytes((8, 6), kind="JPEG", exif=exif))
    record = {"image": "turned.jpg", "prompt": "Click", "solution": [1, 6]}
    sample = sample_from_record(record, root, None)
    assert sample.scales == sample.model_size == Size(6, 8)


def test_records_are_judged_when_they_are_read(root):
    records: list[Any] = [RECORD, {"prompt": "no image"}, "no record"]
    source = RecordSource(records, root)
    source.read(0, 0)
    with pytest.raises(RecordError, match="image_missing"):
        source.read(0, 1)
    with pytest.raises(RecordError, match="record_not_object"):
        source.read(0, 2)


@pytest.mark.parametrize(
    ("change", "error", "cause"),
    [
        ({"image": "../a.png"}, RecordError, "image_path_outside"),
        ({"image": "sub/../../a.png"}, RecordError, "image_path_outside"),
        ({"image": "/etc/passwd"}, RecordError, "image_path_absolute"),
        ({"image": "https://example.org/a.png"}, RecordError, "image_path_url"),
        ({"image": "missing.png"}, RecordError, "image_not_found"),
        ({"image": "sub"}, RecordError, "image_not_file"),
        ({"image": "broken.png"}, ImageError, "image_unreadable"),
        ({"image": 5}, RecordError, "image_not_text"),
        ({"prompt": " "}, RecordError, "prompt_blank"),
        ({"solution": [1, 2, 3]}, RecordError, "solution_length"),
        ({"solution": [100, 100, 120, 120]}, RecordError, "box_outside"),
    ],
)
def test_refuses(root, change, error, cause):
    with pytest.raises(error) as info:
        RecordSource([RECORD | change], root).read(0, 0)
    assert info.value.cause == cause


def test_rules_say_how_records_are_written(root):
    record = {"file": "a.png", "text": "Click", "box": [1, 2, 6, 3]}
    rules = Rules(image_key="file", prompt_key="text", solution_key="box", box_format="xywh")
    sample = RecordSource([record], root, rules).read(0, 0)
    assert (sample.prompt, sample.solution) == ("Click", (1, 2, 7, 5))


def test_any_mapping_is_a_record(root):
    assert RecordSource([MappingProxyType(RECORD)], root).read(0, 0).prompt == "Click"


def test_the_digest_changes_with_the_records(root):
    base = RecordSource([RECORD, RECORD], root).digest
    assert RecordSource([RECORD, dict(reversed(RECORD.items()))], root).digest == base
    others = ([RECORD], [RECORD, RECORD | {"id": 4}], [RECORD, RECORD | {"prompt": "Klick"}])
    digests = {RecordSource(records, root).digest for records in others}
    assert len(digests | {base}) == 4
    RecordSource([RECORD | {"prompt": "\ud800"}], root)  # only reading it fails


class TestFromFile:
    @pytest.mark.parametrize(
        "text",
        [json.dumps([RECORD, RECORD]), f"{json.dumps(RECORD)}\n" * 2],
        ids=["array", "lines"],
    )
    def test_array_and_lines(self, root, text):
        path = root / "data.json"
        path.write_text(text)
        assert RecordSource.from_file(path, root).digest == RecordSource([RECORD] * 2, root).digest

    @pytest.mark.parametrize(
        ("content", "error", "words"),
        [
            ("", RecordError, "input_empty"),
            ("[]", ConfigError, "at least one record"),
            (f"{json.dumps(RECORD)}\n{{,}}\n", RecordError, "line 2"),
        ],
    )
    def test_refuses(self, root, content, error, words):
        path = root / "data.json"
        path.write_text(content)
        with pytest.raises(error, match=words):
            RecordSource.from_file(path, root)

    def test_no_such_file(self, root):
        with pytest.raises(ConfigError, match=r"json=.*missing\.json"):
            RecordSource.from_file(root / "missing.json", root)


@pytest.mark.parametrize("missing", [None, "nowhere"])
def test_images_root_must_be_a_folder(root, missing):
    folder = missing and root / missing
    with pytest.raises(ConfigError, match="images_root"):
        RecordSource([RECORD], folder)
    with pytest.raises(ConfigError, match="images_root"):
        sample_from_record(RECORD, folder, None)


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_absolute_paths_need_no_folder(root, form):
    records: list[Any] = [RECORD | {"image": form.format(root / "a.png")}, {"prompt": "no image"}]
    source = RecordSource(records, None)
    assert source.read(0, 0).image == image_bytes((8, 6))
    assert sample_from_record(records[0], None, None).model_size == Size(8, 6)
    assert RecordSource(records, root).read(0, 0).image == image_bytes((8, 6))  # inside one
    with pytest.raises(RecordError, match="image_path_absolute"):
        RecordSource(records, root / "sub").read(0, 0)
    with pytest.raises(ConfigError, match="images_root"):
        RecordSource([*records, RECORD], None)


def test_sample_from_record(root):
    sample = sample_from_record(RECORD, str(root), ResizeRule())
    assert sample.model_size == ResizeRule().target(Size(8, 6))
    assert sample.solution == (1, 2, 7, 5)
    plain = sample_from_record(RECORD, root, None)
    assert (plain.pixels == decode(image_bytes((8, 6)))).all()


def test_a_bad_record_is_replaced_in_the_stream(root):
    records = [RECORD | {"id": number} for number in range(5)]
    records[2] = RECORD | {"image": "missing.png"}
    stream = PromptStream(RecordSource(records, root), make_config(num_lanes=1))
    keys = [stream.read_batch(0, batch)[0].key for batch in range(5)]
    assert len(set(keys)) == 4
    assert stream.counters.num_bad_by_cause == {"image_not_found": 1}
    assert list(stream.counters.quarantine) == ["record 2"]


def test_the_digest_is_the_same_in_every_process(root):
    record = RECORD | {"when": date(2024, 1, 2), "where": np.int64(3), "raw": b"\x00"}
    plain = RECORD | {"when": "2024-01-02", "where": 3, "raw": hashlib.sha256(b"\x00").hexdigest()}
    assert RecordSource([record], root).digest == RecordSource([plain], root).digest
    with pytest.raises(ConfigError, match=r"records='object'.*values that JSON knows"):
        RecordSource([RECORD | {"thing": object()}], root)


def test_images_are_held_to_the_streams_limits(root):
    with pytest.raises(ImageError, match="image_too_large"):
        RecordSource([RECORD], root, limits=ImageLimits(max_image_pixels=47)).read(0, 0)
    assert RecordSource([RECORD], root, limits=ImageLimits(max_image_pixels=48)).read(
        0, 0
    ).size == (8, 6)
