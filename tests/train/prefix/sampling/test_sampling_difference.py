"""Log-probabilities as they were sampled, against the scored ones; on ranks of ZeRO-3:
tests/multiprocess/test_shared_prefix.py."""

from types import SimpleNamespace

import pytest
import torch
from trl import GRPOConfig

from grpo_stream.train.observe.metrics import RunMetrics
from grpo_stream.train.observe.phases import Phases
from grpo_stream.train.prefix.sampling.group_cache import GroupCache
from grpo_stream.train.prefix.sampling.sampling_difference import SamplingCheck, compare, recorded
from grpo_stream.train.prefix.scoring import GroupScorer
from grpo_stream.train.prefix.ways import FORKED, PLAIN, Packed
from grpo_stream.train.setup.arguments import LogArguments
from tests.train.prefix.sampling.test_generation import MIXED, generation_config
from tests.train.runs import logged
from tests.train.support import make_groups

MEAN, MAX = (f"sampling/sampling_logp_difference/{name}" for name in ("mean", "max"))
WAYS = [Packed("two_part", 0), FORKED, PLAIN]
ALONE = SimpleNamespace(gather=lambda values: values)


def difference(model, processor, way, *, between=lambda: None, **changes):
    """Samples, does something, scores, and compares."""
    temperature = changes.get("temperature", 1.0)
    groups = make_groups(processor, MIXED, 3)
    settings = {"do_sample": True, "top_k": 0, "suppress_tokens": list(range(300, 400)), **changes}
    config = generation_config(processor, **settings)
    torch.manual_seed(0)
    with recorded(model, temperature) as sampled:
        ids = way.sample(model, groups, config, config.pad_token_id)
    between()
    is_end = ids == config.eos_token_id
    is_token = is_end.cumsum(dim=1) - is_end.long() == 0
    assert is_token.sum() > 0
    with torch.no_grad():
        scored, _ = way.score(model, groups, ids, is_token.long(), compute_entropy=False)
    return compare(sampled.read(ids), scored, is_token, ALONE)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_sampling_is_the_scored_policy(model, processor, way):
    found = difference(model, processor, way)
    assert 0 < found.mean < found.max < 1e-5
    assert "_get_logits_processor" not in vars(model)


def test_in_bfloat16(model, processor):
    found = difference(model.bfloat16(), processor, WAYS[0])
    assert 1e-4 < found.mean < 0.05  # docs/logging.md


def test_what_cuts_the_distribution_is_no_difference(model, processor):
    assert difference(model, processor, WAYS[0], top_p=0.5, top_k=20).max < 1e-5


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_other_weights_are_seen(model, processor, way):
    def change():
        with torch.no_grad():
            model.lm_head.weight.mul_(1.5)

    assert difference(model, processor, way, between=change).mean > 1e-3


def test_a_coarser_sampler_is_seen(model, processor, monkeypatch):
    own = GroupCache.update

    def rounded(cache, key, value, *others, **kwargs):
        return own(cache, key.bfloat16().float(), value, *others, **kwargs)

    monkeypatch.setattr(GroupCache, "update", rounded)
    assert difference(model, processor, WAYS[0]).max > 1e-5


def test_the_temperature_is_the_scorings(model, processor):
    assert difference(model, processor, WAYS[0], temperature=0.5).mean > 0.01  # scored with 1


def test_padding_does_not_count():
    sampled, scored = torch.zeros(2, 3), torch.tensor([[0.5, 9, 9], [-0.25, 0.75, 9]])
    is_token = torch.tensor([[1, 0, 0], [1, 1, 0]]).bool()
    assert compare(sampled, scored, is_token, ALONE) == (0.5, 0.75)


@pytest.mark.parametrize(
    ("every", "changes", "steps"),
    [
        (0, {}, []),
        (3, {}, [0, 3, 6]),
        (1, {}, list(range(8))),
        # A rollout for 2 x 2 global steps: at 0, 4, 8, ...
        (6, {"steps_per_generation": 4, "num_iterations": 2}, [0, 8, 12, 20]),
        (2, {"steps_per_generation": 4, "num_iterations": 2}, [0, 4, 8, 12, 16, 20]),
    ],
)
def test_steps(every, changes, steps):
    settings = {"steps_per_generation": 2, "gradient_accumulation_steps": 2, "bf16": False}
    args = GRPOConfig("out", use_cpu=True, per_device_train_batch_size=8, **settings | changes)
    scorer = GroupScorer(None, Phases())
    check = SamplingCheck(every, args, None, scorer, RunMetrics({"train": {}}))
    period = 4 if changes else 1
    rollouts = range(0, 6 * period if changes else 8, period)
    assert [step for step in rollouts if check.is_due(step)] == steps
    assert not check.is_due(None)


@pytest.mark.parametrize("way", ["packed", "forked", "off"])
def test_a_run_logs_it(make_trainer, make_args, way):
    args = make_args(max_steps=3, temperature=0.7, gradient_checkpointing=way == "packed")
    trainer = make_trainer(args, shared_prefix=way, log=LogArguments(logp_difference_steps=2))
    trainer.train()
    means, largest = logged(trainer, MEAN), logged(trainer, MAX)
    assert len(means) == len(largest) == 2  # of three steps
    assert all(0 < mean <= most < 1e-5 for mean, most in zip(means, largest, strict=True))


def test_a_run_may_leave_it(make_trainer, make_args):
    trainer = make_trainer(make_args(max_steps=1), log=LogArguments(logp_difference_steps=0))
    trainer.train()
    assert logged(trainer, MEAN) == []
