"""The work on one prompt is 1 per phase, whatever G, steps_per_generation and num_iterations."""

import json
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image
from trl import GRPOTrainer

from grpo_stream.train.models.processor import load_processor
from tests.multiprocess.ranks import run_ranks
from tests.train import work_probe
from tests.train.runs import spread_reward
from tests.train.support import write_shapes

ROOT = Path(__file__).resolve().parents[2]
PER_RANK = work_probe.NUM_BATCHES * work_probe.STEPS_PER_GENERATION
"""Prompts that a rank sees."""

ONCE = {
    "fetched": 1,
    "decoded": 1,
    "resized": 1,
    "tower rows, rollout": 1,
    "tower rows, old": 1,
    "tower rows, update": work_probe.NUM_ITERATIONS,
}
"""Phase -> times per prompt."""


def test_one_rank(tiny_folder, tmp_path):
    shards = write_shapes(tmp_path, PER_RANK).shards
    counts, _ = work_probe.run(tiny_folder, shards, tmp_path / "out")
    assert counts == {name: [times] * PER_RANK for name, times in ONCE.items()}


def test_of_trl_itself(tiny_folder, tmp_path):
    """The other column of the table in docs/training.md."""
    shapes = write_shapes(tmp_path, PER_RANK)
    work = work_probe.Work()
    fetched: Counter[int] = Counter()
    processed: Counter[int] = Counter()
    processor = load_processor(tiny_folder, max_pixels=work_probe.MAX_PIXELS)

    def fetch(rows):
        fetched.update(rows["number"])
        images = [Image.open(shapes.images / f"{number:06d}.png") for number in rows["number"]]
        return {"prompt": rows["prompt"], "image": images}

    rows = [
        {"number": number, "prompt": [{"role": "user", "content": record["prompt"]}]}
        for number, record in enumerate(shapes.records)
    ]
    args = work_probe.settings(tmp_path / "out", dataloader_num_workers=0)
    data = Dataset.from_list(rows).with_transform(fetch)
    preprocess = processor.image_processor.preprocess

    def counted(images, **kwargs):
        processed.update(hash(image.tobytes()) for group in images for image in group)
        return preprocess(images, **kwargs)

    processor.image_processor.preprocess = counted
    trainer = GRPOTrainer(str(tiny_folder), spread_reward, args, data, processing_class=processor)
    work.watch(trainer)
    trainer.train()
    group = work_probe.NUM_GENERATIONS
    times = {name: sorted(rows.values()) for name, rows in work.tower_rows.items()}
    assert sorted(fetched.values()) == [group * 4 * 2] * PER_RANK
    assert sorted(processed.values()) == [group * 2] * PER_RANK
    assert times == {
        "rollout": [group] * PER_RANK,
        "old": [group] * PER_RANK,
        "update": [group * work_probe.NUM_ITERATIONS] * PER_RANK,
    }


@pytest.mark.multiprocess
@pytest.mark.slow(reason="trains under ZeRO-3 on two ranks")
def test_two_ranks_under_zero_3_with_a_reference_model(tiny_folder, tmp_path):
    shards = write_shapes(tmp_path, 2 * PER_RANK).shards
    words = ["tests.train.work_probe", tiny_folder, shards, tmp_path]
    run_ranks(lambda _: words, timeout=120)
    for rank in range(2):
        seen = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert seen["counts"] == {name: [times] * PER_RANK for name, times in ONCE.items()}
        # The policy of the beginning, and then of the second generation batch's beginning.
        assert seen["kl"][::2] == pytest.approx([0, 0], abs=1e-6)
        assert min(seen["kl"][1::2]) > 1e-4
