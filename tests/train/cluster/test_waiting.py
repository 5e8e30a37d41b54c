import inspect
import time

import pytest

from grpo_stream.train.cluster.waiting import WaitForFirstStep, waiting_for


def test_says_for_what_after_a_while_and_again(capsys, monkeypatch):
    monkeypatch.setattr("grpo_stream.train.cluster.waiting._NEXT_SECONDS", 0.2)
    monkeypatch.setenv("RANK", "3")
    with waiting_for(lambda: "the others", 0.1):
        time.sleep(0.45)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == second == "rank 3: has waited 0 s for the others"


def test_what_is_quick_says_nothing_and_errors_pass(capsys):
    with pytest.raises(ValueError, match="of the code"), waiting_for("the others", 5):
        raise ValueError("of the code")
    assert capsys.readouterr().err == ""


def test_one_rank_of_a_node_says_it(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with waiting_for("the others", 0.01):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_the_first_step_ends_it(capsys, monkeypatch):
    inner = inspect.unwrap(waiting_for)
    monkeypatch.setattr(inner, "__defaults__", (0.1,))
    monkeypatch.setattr("grpo_stream.train.cluster.waiting._NEXT_SECONDS", 0.1)
    waiting = WaitForFirstStep()
    with waiting:
        while "optimizer, checkpoint and first batch" not in capsys.readouterr().err:
            time.sleep(0.01)
        waiting.on_step_begin(None, None, None)
        capsys.readouterr()
        time.sleep(0.25)
    assert capsys.readouterr().err == ""
