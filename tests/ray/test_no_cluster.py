"""Ray is installed, but no cluster runs."""

import pytest

from shard_builder.cli import main
from tests.shard_builder.support import write_raw

pytestmark = pytest.mark.slow(reason="Ray looks for a cluster on this machine")


def test_where_no_cluster_answers_nothing_is_written(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", 4)
    words = ["build", str(raw / "records.json"), "--images-root", str(raw), "--quiet"]
    words += ["--out", str(tmp_path / "out"), "--executor", "ray"]
    assert main([*words, "--ray-address", "auto"]) == 2
    assert "no Ray cluster answers there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
