import math

import pytest
import torch

from grpo_stream.errors import ConfigError
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.train.cold_start import ColdStartConfig, cold_start
from grpo_stream.train.supervised.cold_start_batches import ColdStartCollator, model_inputs
from tests.train.support import CPU, make_collator


@pytest.fixture
def loader(processor, shapes):
    config = StreamConfig(num_lanes=4, num_reader_threads=1)  # 3 batches an epoch
    stream = PromptStream(ShardSource(str(shapes.shards)), config)
    with PromptLoader(stream, ColdStartCollator(make_collator(processor), 8)) as opened:
        yield opened


class TestConfig:
    @pytest.mark.parametrize(
        ("step", "share"),
        [(0, 1 / 40), (19, 0.5), (39, 1.0), (40, 1.0), (220, 0.55), (399, 0.1), (400, 0.1)],
    )
    def test_learning_rate(self, step, share):
        config = ColdStartConfig()
        assert config.learning_rate_at(step) == pytest.approx(1e-3 * share, rel=1e-3)

    def test_learning_rate_without_warm_up(self):
        config = ColdStartConfig(max_steps=1, warmup_steps=0, learning_rate=0.5)
        assert config.learning_rate_at(0) == 0.5

    @pytest.mark.parametrize(
        "change", [{"max_steps": 0}, {"eval_steps": 0}, {"learning_rate": 0.0}]
    )
    def test_refuses(self, change):
        with pytest.raises(ConfigError) as info:
            ColdStartConfig(**change)
        assert info.value.field in change


def test_learns_and_looks_at_the_dev_split(model, loader):
    config = ColdStartConfig(max_steps=5, warmup_steps=1, eval_steps=2, learning_rate=3e-3)
    accuracies = iter([0.1, 0.2, 0.3])
    result = cold_start(model, loader, config, lambda: next(accuracies))
    assert result.num_steps == len(result.losses) == 5
    assert result.dev_accuracies == [(2, 0.1), (4, 0.2), (5, 0.3)]
    assert result.dev_accuracy == 0.3
    assert all(map(math.isfinite, result.losses))
    assert result.losses[-1] < result.losses[0]


def test_stops_when_it_is_good_enough(model, loader):
    config = ColdStartConfig(max_steps=50, eval_steps=3, stop_accuracy=0.35)
    accuracies = iter([0.1, 0.34, 0.35, 0.9])
    result = cold_start(model, loader, config, lambda: next(accuracies))
    assert result.dev_accuracies == [(3, 0.1), (6, 0.34), (7, 0.35)]
    assert result.num_steps == 7
    assert result.dev_accuracy == 0.35


def test_the_model_is_in_training_mode_for_every_update(model, loader):
    modes = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    config = ColdStartConfig(max_steps=3, eval_steps=1)
    cold_start(model, loader, config, lambda: float(model.eval().training))
    assert modes == [True] * 3


def test_every_trained_weight_moves_except_those_that_see_nothing(model, loader):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    cold_start(model, loader, ColdStartConfig(max_steps=2, warmup_steps=0), lambda: 0.0)
    unmoved = [n for n, p in model.named_parameters() if torch.equal(p.detach(), before[n])]
    assert unmoved == []


def test_the_loss_is_that_of_the_answers_alone(model, loader):
    batch = model_inputs(next(iter(loader)), CPU)
    labels = batch["labels"]
    with torch.no_grad():
        expected = model(**batch).loss
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    per_token = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    assert torch.allclose(expected, per_token, atol=1e-5)
    loader.load_state_dict(loader.stream.cursor().to_dict())
    config = ColdStartConfig(max_steps=1, warmup_steps=0)
    result = cold_start(model, loader, config, lambda: 0.0)
    assert result.losses[0] == pytest.approx(float(expected), abs=1e-4)
