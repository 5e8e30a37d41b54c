"""Evaluation through an engine: greedy answers are the policy's own, with closer looks too."""

import json

import pytest
import torch
import vllm
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from grpo_stream.families import FAMILIES as ROWS
from grpo_stream.train.models.policy import load_policy
from tests.launch.support import load_script
from tests.train.support import write_mixed_set
from tests.train.vllm_stand_in import forget_world

script = load_script("evaluate")
EXACT = {"enforce_eager": True, "max_model_len": 1024, "max_num_batched_tokens": 1024}


@pytest.fixture
def evaluate(folder_of, tmp_path, monkeypatch):
    """The script's results and answers, on one set, by any flags."""
    forget_world(monkeypatch)
    made = vllm.LLM
    engines = []

    def small(**settings):
        engines.append(made(**settings | EXACT))
        return engines[-1]

    monkeypatch.setattr(vllm, "LLM", small)
    shards = write_mixed_set(tmp_path / "mixed", 12)

    def run(name, *flags, family="qwen2_5_vl", model=None):
        report, model = tmp_path / name, model or folder_of(family)
        words = [
            *("--model", str(model), "--shards", str(shards), "--report", str(report)),
            *("--batch-size", "5", "--max-completion-length", "12"),
            *("--num-pictures", "0", "--num-resamples", "100", "--dtype", "float32"),
        ]
        if ROWS[family].processor is not None:  # others have sizes of their own
            words += ["--min-pixels", "3136", "--max-pixels", "12544"]
        assert script.main([*words, *flags]) == 0
        results = json.loads((report / "results.json").read_text())
        rows = (report / "answers.jsonl").read_text().splitlines()
        return results, [json.loads(row) for row in rows]

    yield run
    assert engines
    assert not torch.distributed.is_initialized()  # an engine's groups end with it


def test_greedy_answers_are_the_policys_own(evaluate, family):
    """Of samples of one image, none, two and three."""
    _, own = evaluate("own", family=family)
    results, engines = evaluate("engine", "--use_vllm", "true", family=family)
    assert engines == own
    assert len({answer["text"] for answer in own}) > 3
    assert results["versions"]["vllm"].startswith(vllm.__version__)
    assert results["settings"]["use_vllm"] is True


def test_an_adapter_is_merged_in_memory(evaluate, folder_of, tmp_path):
    """Also in the tower, whose layers an engine packs together."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "qkv"], init_lora_weights=False)
    adapter = tmp_path / "adapter"
    get_peft_model(load_policy(folder_of("qwen2_5_vl")), config).save_pretrained(adapter)
    _, base = evaluate("base")
    _, own = evaluate("own", model=adapter)
    _, engines = evaluate("engine", "--use_vllm", "true", model=adapter)
    assert engines == own
    assert engines != base


def test_closer_looks_are_the_policys_own(evaluate, monkeypatch):
    """Of a policy whose tokens are read as places: a new one's texts are none."""

    def decode(_, rows, **__):
        return [f"({sum(map(int, row)) % 56}, {int(row[0]) * 7 % 56})" for row in rows]

    monkeypatch.setattr(PreTrainedTokenizerBase, "batch_decode", decode)
    _, own = evaluate("own", "--zoom", "2")
    _, engines = evaluate("engine", "--zoom", "2", "--use_vllm", "true")
    assert engines == own
    looks = [answer for answer in engines if answer["first_look"] is not None]
    assert len(looks) == 9  # all but those without images
    assert any(answer["text"] != answer["first_look"]["text"] for answer in looks)


def test_a_vote_of_the_engines_answers(evaluate):
    """Of more tokens at a time than the engine computes in one go."""
    flags = [
        "--use_vllm",
        "true",
        "--num-samples",
        "4",
        "--temperature",
        "1.0",
        "--batch-size",
        "12",
    ]
    results, first = evaluate("first", *flags)
    _, again = evaluate("again", *flags)
    assert first == again  # the seed is each prompt's own
    assert all(len(answer["sampled"]) == 4 for answer in first)
    assert len({one["text"] for answer in first for one in answer["sampled"]}) > 12
    assert "pass_4" in results["figures"]
