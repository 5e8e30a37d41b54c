"""A split goes by the images' bytes: those in a bucket are asked for before they are needed."""

from dataclasses import replace

from grpo_stream.records.read_ahead import ReadAhead
from shard_builder.build.build import build
from shard_builder.build.chunk_plan import Splits
from tests.shard_builder.support import files_of, make_settings, write_raw


def test_images_of_a_bucket_are_asked_for_ahead(server, tmp_path, monkeypatch):
    raw = write_raw(tmp_path / "raw", 17)
    for path in (raw / "img").iterdir():
        server.objects[f"bucket/raw/img/{path.name}"] = path.read_bytes()
    settings = make_settings(raw, tmp_path / "out", split=Splits((("val", 0.3),)))
    build(replace(settings, out=str(tmp_path / "here")))
    planned: list[str] = []
    late: list[str] = []
    plan, take = ReadAhead.plan, ReadAhead.take

    def planning(self, names):
        names = list(names)
        planned.extend(names)
        plan(self, names)

    def taking(self, name):
        if planned and name not in self._started:  # before, the evidence for boxes is sampled
            late.append(name)
        return take(self, name)

    monkeypatch.setattr(ReadAhead, "plan", planning)
    monkeypatch.setattr(ReadAhead, "take", taking)
    build(replace(settings, images_root="s3://bucket/raw"))
    assert len(planned) >= 2 * 16  # for the split, and again for the shards
    assert late == []
    assert files_of(tmp_path / "out") == files_of(tmp_path / "here")
