"""The roofline's sums in docs/gpu.md are those of the model's parts."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.device_rates import operations_of_micro_step
from grpo_stream.train.setup.memory.group_memory import Batch
from grpo_stream.train.setup.memory.model_sizes import MetaModel, find_config

PAGE = Path(__file__).parents[2] / "docs/gpu.md"
PROMPT = Batch(prompt_tokens=1300, image_tokens=1196)  # 4,784 patches


@pytest.fixture(scope="module")
def model():
    return MetaModel(find_config("3B"))


@pytest.fixture(scope="module")
def rows():
    """Arithmetic and seconds, by part."""
    text = PAGE.read_text(encoding="utf-8").partition("## The roofline")[2].partition("##")[0]
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip("| "): (row[1], row[-1].strip("| ")) for row in cells}


def test_an_update_is_the_sum_of_its_parts(model, rows):
    parts = [rows[f"update, {part}"] for part in ("layers", "tower", "head")]
    operations = sum(float(re.findall(r"= ([\d.]+e\d+)", words)[0]) for words, _ in parts)
    batch = replace(PROMPT, groups_per_micro_step=4)
    expected = operations_of_micro_step(model, batch, checkpointing=True)
    assert operations == pytest.approx(expected, rel=0.02)
    seconds = sum(float(cell) for _, cell in parts)
    assert seconds == pytest.approx(expected / 400e12, abs=0.01)


def test_checkpointing_is_a_third_more_but_in_the_head(model):
    kept, again = (
        operations_of_micro_step(model, PROMPT, checkpointing=wanted) for wanted in (False, True)
    )
    head = 6 * model.head.numel() * PROMPT.num_generations * PROMPT.completion_tokens
    assert again - head == pytest.approx((kept - head) * 8 / 6)


def test_a_rollout_reads_text_model_and_head(model, rows):
    read = 2 * (model.parts["layers"] + model.head.numel())
    words, cell = rows["rollout"]
    assert "64 tokens x 6.2 GB" in words
    assert read == pytest.approx(6.2e9, rel=0.01)
    assert float(cell) == pytest.approx(64 * read / 3.35e12, abs=0.005)
