"""From what a trainer is given to what it runs on."""

import json
from typing import Any

import pytest
from datasets import Dataset
from torch.utils.data import IterableDataset

from grpo_stream.errors import ConfigError
from grpo_stream.images import ResizeRule
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.stream.world import World
from grpo_stream.train.batches.collate import PromptCollator
from grpo_stream.train.models.patches import image_inputs
from grpo_stream.train.models.processor import load_processor
from tests.train.runs import NUM_LANES, KeySpy, spread_reward


class Streamed(IterableDataset[Any]):
    """What a trainer of texts would stream from."""

    def __iter__(self):
        return iter([])


class TestRawRecords:
    def test_train_from_json_and_images_root(self, make_trainer, make_args, shapes):
        spy = KeySpy()
        trainer = make_trainer(
            make_args(),
            reward_funcs=spy,
            train_dataset=json.loads(json.dumps(shapes.records)),
            images_root=shapes.images,
        )
        trainer.train()
        keys = [key for batch in spy.batches for key in batch]
        assert len(keys) == len(set(keys)) == 8
        assert all(key.split("_")[1] == key.split("_")[0][3:] for key in keys)  # "000000003_000003"

    def test_another_image_processor_decides_the_size(
        self, make_trainer, make_args, shapes, tiny_folder
    ):
        image_processor = load_processor(tiny_folder, max_pixels=56 * 56).image_processor
        sizes = []

        def spy(completions, model_size, **_):
            sizes.extend(model_size)
            return spread_reward(completions)

        make_trainer(
            make_args(max_steps=1),
            reward_funcs=spy,
            train_dataset=shapes.records,
            images_root=shapes.images,
            image_processor=image_processor,
        ).train()
        assert {tuple(size) for size in sizes} == {(56, 56)}

    def test_absolute_paths_need_no_images_root(self, make_trainer, make_args, shapes):
        records = [one | {"image": str(shapes.images / one["image"])} for one in shapes.records]
        make_trainer(make_args(max_steps=1), train_dataset=records).train()

    def test_images_root_is_needed(self, make_trainer, shapes):
        with pytest.raises(ConfigError, match="images_root"):
            make_trainer(train_dataset=shapes.records)

    @pytest.mark.parametrize("kind", ["datasets", "torch", "generator", "dict", "path"])
    def test_what_is_no_sequence_is_refused(self, make_trainer, shapes, kind):
        data = {
            "datasets": lambda: Dataset.from_list(shapes.records).to_iterable_dataset(),
            "torch": Streamed,
            "generator": lambda: iter(shapes.records),
            "dict": lambda: {"train": shapes.records},
            "path": lambda: "records.json",
        }[kind]()
        message = f"train_dataset='{type(data).__name__}': is neither .*shard-builder build.*list"
        with pytest.raises(ConfigError, match=message):
            make_trainer(train_dataset=data, images_root=shapes.images)

    def test_a_table_is_a_sequence(self, make_trainer, make_args, shapes):
        table = Dataset.from_list(shapes.records)
        make_trainer(make_args(max_steps=1), train_dataset=table, images_root=shapes.images).train()

    @pytest.mark.parametrize("makes_patches", [False, True], ids=["images", "patches"])
    def test_another_collator_is_used(self, make_trainer, make_args, processor, makes_patches):
        seen = []
        collator = PromptCollator(processor, make_trainer().data_collator.template, "model")

        def collate(samples):
            seen.append(len(samples))
            batch = collator(samples)
            if makes_patches:
                batch["pixel_values"] = image_inputs(batch, "cpu")[0]
                del batch["patch_rule"]
            return batch

        make_trainer(make_args(max_steps=1), data_collator=collate).train()
        assert set(seen) == {4}


class TestStreams:
    def test_another_rank_of_the_stream_is_refused(self, make_trainer, shapes):
        source = ShardSource(str(shapes.shards))
        stream = PromptStream(source, StreamConfig(num_lanes=NUM_LANES), World(1, 2))
        with pytest.raises(ConfigError, match="world="):
            make_trainer(train_dataset=stream)

    @pytest.mark.parametrize("rule", [None, ResizeRule(multiple=32)])
    def test_a_stream_of_other_sizes_is_refused(self, make_trainer, make_args, shapes, rule):
        config = StreamConfig(num_lanes=NUM_LANES, resize=rule)
        stream = PromptStream(ShardSource(str(shapes.shards)), config)
        with pytest.raises(ConfigError, match=r"resize=.*multiples of 28"):
            make_trainer(train_dataset=stream)
        make_trainer(train_dataset=stream, data_collator=list)  # may take images of any size
