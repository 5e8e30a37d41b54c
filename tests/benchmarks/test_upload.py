import json

import pytest

from benchmarks.__main__ import main

pytest.importorskip("obstore")


def test_prints_figures_of_both_builds(capsys, tmp_path):
    words = "upload --num-samples 30 --samples-per-shard 10 --latency-ms 10 --rounds 1"
    words += " --check header --workers 1 --json"
    assert main([*words.split(), "--folder", str(tmp_path)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["builds"]) == ["header, 1"]
    found = figures["builds"]["header, 1"]
    # Three files and a result a shard, and what says that it is one data set.
    assert found["requests"] > 3 * 4
    assert found["bucket"] > found["local"] > 0
    assert found["last_shard"] > 3 * 0.010
    assert found["ratio"] == pytest.approx(
        found["bucket"] / (found["local"] + found["last_shard"]), rel=0.05
    )
    assert 0 < found["apart"] < found["ratio"]
    assert figures["settings"]["num_samples"] == "30"
    assert not list(tmp_path.iterdir())


def test_table(capsys, tmp_path):
    words = "upload --num-samples 4 --latency-ms 0 --rounds 1 --check header decode --workers 1"
    assert main([*words.split(), "--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == ["header, 1", "decode, 1"]
