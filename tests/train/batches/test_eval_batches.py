import pytest
from trl import GRPOConfig

from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from grpo_stream.train.batches.eval_batches import EvalBatches, EvalLoader
from grpo_stream.train.trainer import PersonalizedGRPOTrainer


def keys_of(samples):
    return {"key": [sample.key for sample in samples]}


@pytest.mark.parametrize(
    ("num_lanes", "world_size", "counted", "sizes"),
    [
        (2, 1, [2] * 6 + [1], [2] * 6 + [1]),
        (4, 1, [4] * 3 + [1], [4] * 3 + [1]),
        (5, 1, [5, 5, 3], [5, 5, 3]),
        (13, 1, [13], [13]),
        (4, 2, [4] * 3 + [1], [4] * 3 + [2]),
        (8, 2, [8, 5], [8, 6]),
        (8, 4, [8, 5], [8, 8]),
    ],
)
def test_every_sample_counts_once(shapes, num_lanes, world_size, counted, sizes):
    """13 samples; a row of a batch is counted where it comes before ``num_prompts``."""
    ranks = []
    for rank in range(world_size):
        config = StreamConfig(num_lanes=num_lanes, num_reader_threads=0, resize=None)
        world = World(rank, world_size)
        stream = PromptStream(ShardSource(str(shapes.shards)), config, world)
        ranks.append(EvalBatches(EvalLoader(stream, keys_of)))
    assert {len(batches) for batches in ranks} == {len(counted)}
    seen = []
    for number in range(len(counted)):
        parts = [batches[number] for batches in ranks]
        assert len({len(part["key"]) for part in parts}) == 1  # ranks work equally often
        assert {part["num_prompts"] for part in parts} == {counted[number]}
        rows = [key for part in parts for key in part["key"]]
        assert len(rows) == sizes[number]
        seen += rows[: counted[number]]
    assert sorted(seen) == [f"{number:06d}" for number in range(13)]


def test_while_training(tiny_folder, processor, shapes, tmp_path):
    """The mean is that of all samples, whatever the batches they are in."""
    seen = []

    def number(key, **_):
        seen.append([int(name.split("_")[0][3:]) for name in key])
        return [float(one) for one in seen[-1]]

    args = GRPOConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=10,
        num_generations=2,
        max_completion_length=2,
    )
    trainer = PersonalizedGRPOTrainer(
        str(tiny_folder),
        number,
        args,
        shapes.records,
        shapes.records,
        processing_class=processor,
        images_root=shapes.images,
    )
    found = trainer.evaluate()
    assert [len(batch) for batch in seen] == [10, 10, 6]
    assert sorted(one for batch in seen for one in batch[::2]) == list(range(13))
    assert found["eval_reward"] == pytest.approx(6)
    assert found["eval_rewards/number/mean"] == pytest.approx(6)
    trainer.close()
