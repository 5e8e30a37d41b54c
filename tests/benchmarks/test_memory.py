import json
import subprocess
import sys

import pytest

from benchmarks.__main__ import main
from benchmarks.build.memory import peak_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MB = 10**6


def test_prints_megabytes_and_bytes_a_record(capsys, tmp_path):
    words = "memory --num-records 100 --samples-per-shard 50 --inputs json --shuffle yes --workers"
    assert main([*words.split(), "2", "--json", "--folder", str(tmp_path)]) == 0
    figures = json.loads(capsys.readouterr().out)["builds"]
    assert list(figures) == ["records.json, shuffled, 2"]
    found = figures["records.json, shuffled, 2"]
    assert 3 * 20 < found["mb_100"] < 3 * 200  # three processes and what watches over them
    difference = (found["mb_2000"] - found["mb_100"]) * MB
    assert found["bytes_per_record"] == pytest.approx(difference / 1900, abs=100)
    assert not list(tmp_path.iterdir())


def test_table(capsys, tmp_path):
    words = "memory --num-records 20 --inputs jsonl --shuffle no --workers 1"
    assert main([*words.split(), "--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["MB", "records.jsonl, 1"]


def test_failing_build_is_no_figure(capfd):
    with pytest.raises(subprocess.CalledProcessError):
        peak_bytes(["build", "nowhere.json", "--images-root", ".", "--out", "x"])
    assert "nowhere.json" in capfd.readouterr().err
