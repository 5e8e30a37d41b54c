import argparse

import pytest

from benchmarks.step import step


@pytest.mark.slow(reason="every measurement is a process that imports both trainers")
@pytest.mark.multiprocess
def test_both_trainers_do_the_same_work():
    parser = argparse.ArgumentParser()
    step.add_command(parser.add_subparsers())
    words = "step --max-pixels 25088 --num-tokens 4 --num-generations 2 --num-steps 1 --rounds 1"
    figures = step.measure(parser.parse_args([*words.split(), "--hidden-size", "64", "--json"]))
    assert figures["max_abs_logprob_diff"] < 1e-5
    assert figures["rel_grad_diff"] < 1e-5
    assert figures["loss_diff"] < 1e-5
    assert all(figures[f"{part}_ratio"] > 0 for part in ("step", "rollout", "score", "update"))
    assert figures["peak_memory_ratio"] > 0
    assert figures["num_prompt_tokens"] > 30
