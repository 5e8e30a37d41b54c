"""Which executor is asked for, where there may be no Ray. With Ray: tests/ray."""

import importlib.util

import pytest

from grpo_stream.errors import ConfigError
from shard_builder.build import build_settings
from shard_builder.build.build import build
from tests.shard_builder.support import make_settings, write_raw


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"executor": "ray"}, r"needs ray: pip install 'grpo_stream\[ray\]'"),
        ({"executor": "ray", "dry_run": True}, "goes without --dry-run"),
        ({"executor": "dask"}, "must be one of local, ray"),
        ({"ray_address": "auto"}, "--ray-address='auto': goes with --executor ray"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(tmp_path, monkeypatch, change, words):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        build_settings, "find_spec", lambda name: None if name == "ray" else find(name)
    )
    settings = make_settings(write_raw(tmp_path / "raw", 4), tmp_path / "out", **change)
    with pytest.raises(ConfigError, match=words):
        build(settings)
    assert not (tmp_path / "out").exists()
