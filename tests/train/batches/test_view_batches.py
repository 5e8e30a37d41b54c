"""View groups: a prompt's views are neighbours, a prefix is a view's, advantages are of all."""

from dataclasses import replace

import pytest
import torch

from grpo_stream.errors import ConfigError
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sample_views import OpenViews, SampleViews
from grpo_stream.stream.sources import ShardSource
from grpo_stream.train.batches.refill import select_prompts
from grpo_stream.train.batches.view_batches import (
    ViewCollator,
    check_view_settings,
    check_views,
    views_in,
)
from grpo_stream.train.observe.difficulty_log import read_difficulty
from grpo_stream.train.setup.arguments import LogArguments
from tests.train.runs import NUM_LANES, SAVING, run, spread_reward, weights_of
from tests.train.support import make_collator, make_stream_sample
from tests.train.vllm_stand_in import install_engine


def views_of(number, num_views):
    views = [
        replace(make_stream_sample(number, (56 + 28 * n, 56)), extra={"view": n, "view_region": []})
        for n in range(num_views)
    ]
    return SampleViews(views[0].key, tuple(views))


def test_each_view_is_an_entry(processor):
    collate = ViewCollator(make_collator(processor))
    batch = collate([views_of(0, 3), views_of(1, 3)])
    assert batch["key"] == ["000000"] * 3 + ["000001"] * 3
    assert [size[0] for size in batch["model_size"]] == [56, 84, 112] * 2
    assert views_in(batch) == 3
    check_views(batch)
    plain = collate([make_stream_sample(0)])
    assert views_in(plain) == 1
    check_views(plain)


@pytest.mark.parametrize(
    "change",
    [
        {"key": ["a", "b", "a", "b"]},
        {"extra": [{"view": n} for n in (0, 0, 0, 1)]},
        {"extra": [{"view": n} for n in (1, 0, 0, 1)]},
        {"extra": [{}] * 4},
    ],
)
def test_views_that_are_not_those_of_one_prompt(processor, change):
    batch = ViewCollator(make_collator(processor))([views_of(0, 2), views_of(1, 2)])
    with pytest.raises(RuntimeError, match="are not those of one prompt"):
        check_views(batch | change)


@pytest.mark.parametrize(
    ("num_views", "words"),
    [(0, "at least 1"), (3, r"must divide num_generations=8: one of \[1, 2, 4, 8\]")],
)
def test_settings_that_cannot_work(num_views, words):
    with pytest.raises(ConfigError, match=words):
        check_view_settings(num_views, 8)
    check_view_settings(1, 8)


def stream_of(shapes):
    config = StreamConfig(num_lanes=NUM_LANES, num_reader_threads=1)
    return PromptStream(ShardSource(str(shapes.shards)), config, open_sample=OpenViews(2))


@pytest.mark.slow(reason="three short trainings")
def test_a_resume_within_a_batch_is_exact(make_trainer, make_args, shapes):
    settings = SAVING | {"num_iterations": 2}  # a checkpoint is within a generation batch
    args = make_args(**settings | {"save_strategy": "no"})
    whole, expected = run(make_trainer, args, train_dataset=stream_of(shapes))
    args = make_args(**settings)
    _, first = run(make_trainer, args, stop_after=1, train_dataset=stream_of(shapes))
    resumed, rest = run(make_trainer, args, resume_from=True, train_dataset=stream_of(shapes))
    assert first + rest == expected
    weights, wanted = weights_of(resumed), weights_of(whole)
    assert [name for name in wanted if not torch.equal(weights[name], wanted[name])] == []


def test_a_prompt_is_chosen_with_all_of_its_views(processor):
    batch = ViewCollator(make_collator(processor))([views_of(n, 2) for n in range(3)])
    part = select_prompts(batch, [2, 0])
    check_views(part)
    assert part["key"] == ["000002"] * 2 + ["000000"] * 2
    assert part["model_size"] == batch["model_size"][:4]
    assert len(part["image_grid_thw"]) == len(part["pixel_values"]) == 4


def test_a_group_without_a_view_that_teaches_is_replaced(make_trainer, make_args, shapes, tmp_path):
    """Rewards that differ between the views of a prompt, and not within one, do teach."""
    rollouts: list[list[tuple[str, int]]] = []

    def reward(completions, key, view, **_):
        rollouts.append(list(zip(key, view, strict=True)))
        return [0.5 if int(name) % 2 else float(n) for name, n in zip(key, view, strict=True)]

    def train(out, *, resume_from=None):
        settings = SAVING | {"num_iterations": 2, "optim": "sgd", "output_dir": str(out)}
        args = make_args(
            num_generations=4,
            per_device_train_batch_size=8,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            **settings,
        )
        config = StreamConfig(num_lanes=6, num_reader_threads=1)
        stream = PromptStream(ShardSource(str(shapes.shards)), config, open_sample=OpenViews(2))
        trainer = make_trainer(
            args, reward_funcs=reward, train_dataset=stream, refill_zero_variance=2
        )
        kept: list[list[str]] = []
        prepare = trainer._prepare_inputs

        def noted(batch):
            inputs = prepare(batch)
            kept.append([batch["key"][2 * number] for number in inputs["kept"]])
            assert inputs["groups"].sizes == [2] * 4
            advantages = inputs["advantages"].reshape(2, 2, 2)
            teaches = torch.tensor([int(name) % 2 == 0 for name in kept[-1]])
            assert torch.equal(advantages.abs().amax(dim=(1, 2)) > 0, teaches)
            return inputs

        trainer._prepare_inputs = noted
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer, kept

    whole, kept = train(tmp_path / "out")
    keys = [sample.key for sample in whole.train_stream.read_batch(0, 0)]
    teaching = [key for key in keys if int(key) % 2 == 0]
    assert set(kept[0]) >= set(teaching[:2])
    first = [key for key, _ in rollouts[0][::4]]
    assert first == keys[:2]
    assert [view for _, view in rollouts[0]] == [0, 0, 1, 1] * 2
    resumed, rest = train(tmp_path / "out", resume_from=str(tmp_path / "out/checkpoint-1"))
    assert rest == kept[1:]
    weights, wanted = weights_of(resumed), weights_of(whole)
    assert [name for name in wanted if not torch.equal(weights[name], wanted[name])] == []


def test_an_engine_gets_each_view_once(make_trainer, make_args, shapes, processor, monkeypatch):
    answer = processor.tokenizer("(8, 16)<|im_end|>", add_special_tokens=False)["input_ids"]
    engines = install_engine(monkeypatch, processor, answer)
    seen: list[tuple[str, int]] = []

    def reward(completions, key, view, **_):
        seen.extend(zip(key, view, strict=True))
        return spread_reward(completions)

    args = make_args(num_generations=4, max_steps=1, use_vllm=True, vllm_mode="colocate")
    config = StreamConfig(num_lanes=NUM_LANES // 2, num_reader_threads=1)
    stream = PromptStream(ShardSource(str(shapes.shards)), config, open_sample=OpenViews(2))
    make_trainer(args, reward_funcs=reward, train_dataset=stream).train()
    (engine,) = engines
    assert {params.n for params in engine.params} == {2}
    assert seen[::2] == [(key, view) for key, _ in seen[::4] for view in (0, 1)]
    assert len(engine.prompts) == len(seen) // 2
    images = [prompt["multi_modal_data"]["image"] for prompt in engine.prompts]
    for whole, crop in zip(images[::2], images[1::2], strict=True):
        assert whole.tobytes() != crop.tobytes()


def train(make_trainer, make_args, shapes, shared_prefix, out):
    """Two global steps of groups of four over two views; what was scored of the first batch."""
    seen = []

    def reward(completions, key, view, view_region, scales, solution, **_):
        seen.append(list(zip(key, view, map(tuple, view_region), scales, strict=True)))
        for (width, height), (x1, y1, x2, y2) in zip(scales, solution, strict=True):
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
        return spread_reward(completions)

    config = StreamConfig(num_lanes=NUM_LANES // 2, num_reader_threads=1)
    stream = PromptStream(ShardSource(str(shapes.shards)), config, open_sample=OpenViews(2))
    args = make_args(
        num_generations=4, optim="sgd", learning_rate=0.5, max_grad_norm=0.0, output_dir=str(out)
    )
    trainer = make_trainer(
        args,
        reward_funcs=reward,
        train_dataset=stream,
        shared_prefix=shared_prefix,
        log=LogArguments(difficulty_log=True),
    )
    encode = trainer.processing_class.tokenizer
    texts = [encode(text)["input_ids"] for text in ("(8, 16)", "no", "(100, 3)", "5")]
    trainer._generate_single_turn = lambda ids, *_, **__: (
        [texts[row % 4] for row in range(len(ids))],
        None,
    )
    scored = []
    sample = trainer._rollout.sample_to_train

    def kept(*given):
        scored.append(sample(*given))
        return dict(scored[-1])

    trainer._rollout.sample_to_train = kept
    trainer.train()
    return trainer, seen, scored[0]


@pytest.mark.slow(reason="two short trainings")
def test_a_group_over_its_views(make_trainer, make_args, shapes, tmp_path):
    on, seen, scored = train(make_trainer, make_args, shapes, "on", tmp_path / "on")
    assert on.shared_prefix
    first = seen[0]
    keys = [key for key, *_ in first]
    assert keys == [key for key in dict.fromkeys(keys) for _ in range(4)]
    assert [view for _, view, *_ in first] == [0, 0, 1, 1] * 2
    assert first[0] == first[1]
    assert first[0][2] != first[2][2]
    # The prompt is computed once for a view, the advantages are those of four.
    assert scored["groups"].sizes == [2] * 4
    assert scored["groups"].keys == tuple(keys[::2])
    advantages = scored["advantages"].reshape(2, 4)
    rewards = torch.tensor([[0.0, 1, 2, 3]] * 2)
    expected = (rewards - 1.5) / (rewards.std(dim=1, keepdim=True) + 1e-4)
    assert torch.allclose(advantages.cpu(), expected, atol=1e-4)
    lines = list(read_difficulty(tmp_path / "on" / "difficulty.jsonl"))
    assert [line.key for line in lines[:2]] == list(dict.fromkeys(keys))
    assert [line.mean for line in lines[:2]] == [1.5, 1.5]

    off, _, _ = train(make_trainer, make_args, shapes, "off", tmp_path / "off")
    weights, wanted = weights_of(on), weights_of(off)
    initial = weights_of(make_trainer(make_args()))
    for name, weight in weights.items():
        moved = (wanted[name] - initial[name]).norm()
        assert moved > 0, name
        assert (weight - wanted[name]).norm() < 1e-3 * moved + 1e-6, name
