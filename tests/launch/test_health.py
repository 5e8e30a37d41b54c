import json
import time

from grpo_stream.train.observe.heartbeat import Heartbeat
from tests.launch.support import load_script

health = load_script("health")


def test_silent_ranks_are_named(tmp_path, capsys):
    for rank in range(2):
        Heartbeat(tmp_path, rank, 2).beat(9, "rollout")
    assert health.main([str(tmp_path)]) == 0
    path = tmp_path / "heartbeat/rank-00001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time": time.time() - 400}))
    capsys.readouterr()
    assert health.main([str(tmp_path), "--silent-after", "300"]) == 1
    _, first, _, last = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == ["1", "400"]
    assert last.startswith("2 ranks at global steps 9 to 9; 1 silent")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stage": "ended"}))
    assert health.main([str(tmp_path)]) == 0


def test_ranks_that_never_spoke(tmp_path, capsys):
    assert health.main([str(tmp_path)]) == 1
    assert "no rank has begun" in capsys.readouterr().out
    Heartbeat(tmp_path, 0, 3).beat(1, "step")
    assert health.main([str(tmp_path)]) == 1
    assert "2 never heard of [1, 2]" in capsys.readouterr().out
