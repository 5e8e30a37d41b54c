import math
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOTrainer

from grpo_stream.errors import BadStepsError, ConfigError, RewardError
from grpo_stream.train.observe.bad_steps import BadSteps
from tests.train.runs import SAVING, logged, run, spread_reward, weights_of


def spoil_loss(monkeypatch, value, *, steps):
    """Makes the loss of the first micro-step of some global steps infinite or NaN."""
    upstream = GRPOTrainer._compute_loss

    def compute(self, model, inputs):
        loss = upstream(self, model, inputs)
        is_first = self._step % self.args.gradient_accumulation_steps == 0
        return loss * value if is_first and self.state.global_step + 1 in steps else loss

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", compute)


def spoil_gradient(trainer, value, *, steps):
    """Makes one entry of one gradient infinite or NaN; the loss stays as it is."""
    weight = next(w for n, w in trainer.model.named_parameters() if "norm" in n and w.requires_grad)

    def spoil(grad):
        spoilt = grad.clone()
        spoilt.view(-1)[0] = value if trainer.state.global_step + 1 in steps else spoilt.view(-1)[0]
        return spoilt

    weight.register_hook(spoil)


@pytest.fixture(scope="module")
def known_weights():
    """After one step, by the settings: whatever spoils the second one."""
    return {}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"max_grad_norm": 0.0}], ids=str)
def test_a_loss_that_is_not_finite(
    make_trainer, make_args, known_weights, monkeypatch, caplog, value, changes
):
    with monkeypatch.context() as patch:
        spoil_loss(patch, value, steps=(2,))
        trainer, batches = run(make_trainer, make_args(**changes, max_steps=2))
    if str(changes) not in known_weights:
        once, _ = run(make_trainer, make_args(**changes, max_steps=2), stop_after=1)
        known_weights[str(changes)] = weights_of(once)
    wanted = known_weights[str(changes)]
    assert [n for n, w in weights_of(trainer).items() if not torch.equal(w, wanted[n])] == []
    assert logged(trainer, "update/num_bad_steps") == [0, 1]
    keys = batches[1]
    assert f"global step 2: the loss of samples {', '.join(keys[:2])} is not finite" in caplog.text
    assert not any(key in caplog.text for key in keys[2:])


def test_the_next_step_is_as_if_nothing_had_been(make_trainer, make_args, monkeypatch):
    """Moments and schedule as well: without its second step the run is one of constant data."""
    with monkeypatch.context() as patch:
        spoil_loss(patch, math.nan, steps=(2,))
        trainer, _ = run(make_trainer, make_args(max_steps=3))
    assert logged(trainer, "learning_rate") == pytest.approx([1e-3, 2e-3 / 3, 2e-3 / 3])
    states = trainer.optimizer.state.values()
    assert {int(state["step"]) for state in states} == {2}
    assert all(bool(w.isfinite().all()) for w in weights_of(trainer).values())


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite(make_trainer, make_args, caplog, value):
    trainer = make_trainer(make_args(max_steps=3))
    spoil_gradient(trainer, value, steps=(1, 3))
    before = weights_of(trainer)
    trainer.train()
    assert logged(trainer, "update/num_bad_steps") == [1, 1, 2]
    assert "global step 3: the gradient of samples 0" in caplog.text
    weights = weights_of(trainer)
    assert all(bool(w.isfinite().all()) for w in weights.values())
    assert any(not torch.equal(w, before[name]) for name, w in weights.items())


def test_too_many_end_the_run(make_trainer, make_args, monkeypatch):
    spoil_loss(monkeypatch, math.nan, steps=(1, 2, 3))
    with pytest.raises(BadStepsError, match=r"global step 2: .* had 2 .* max_bad_steps=1"):
        run(make_trainer, make_args(max_steps=3), max_bad_steps=1)


def test_they_are_counted_over_all_starts(make_trainer, make_args, monkeypatch):
    spoil_loss(monkeypatch, math.nan, steps=(1, 3))
    run(make_trainer, make_args(**SAVING), stop_after=2, max_bad_steps=1)
    with pytest.raises(BadStepsError, match=r"global step 3: .* had 2"):
        run(make_trainer, make_args(**SAVING), resume_from=True, max_bad_steps=1)


def test_the_setting(make_trainer):
    with pytest.raises(ConfigError, match="max_bad_steps=-1"):
        make_trainer(max_bad_steps=-1)


class TestFloat16:
    """Its scaler looks for a scale by steps that fail: no GPU is needed to see whose they are."""

    def judge(self, scale, loss=1.0):
        bad, model = BadSteps(3), torch.nn.Linear(1, 1)
        bad.guard(torch.tensor(loss), ["a"])
        scaler = SimpleNamespace(get_scale=lambda: scale)
        bad.judge(math.inf, SimpleNamespace(scaler=scaler), model, None, global_step=1)
        return bad.num

    def test_a_search_is_no_bad_step(self):
        assert self.judge(65536.0) == 0

    def test_that_has_come_to_its_end(self):
        assert self.judge(1.0) == 1

    def test_nor_is_it_one_where_the_loss_itself_is_wrong(self):
        assert self.judge(65536.0, math.nan) == 1

    def test_of_deepspeed(self):
        bad = BadSteps(3)
        for scale, num in ((2.0, 0), (1.0, 1)):
            optimizer = SimpleNamespace(step_was_skipped=True)
            engine = SimpleNamespace(optimizer=SimpleNamespace(loss_scale=scale))
            bad.judge(math.inf, optimizer, torch.nn.Linear(1, 1), engine, global_step=1)
            assert bad.num == num


def test_an_optimizer_that_deepspeed_steps_without_a_look():
    weight = torch.nn.Parameter(torch.ones(2))
    inner = torch.optim.AdamW([weight], lr=0.1)
    bad, optimizer = BadSteps(3), SimpleNamespace(optimizer=inner, step_was_skipped=False)
    bad.watch(optimizer)
    bad.watch(optimizer)
    engine = SimpleNamespace(optimizer=inner)
    for gradient, num in (([1.0, math.nan], 1), ([1.0, 1.0], 1)):
        weight.grad = torch.tensor(gradient)
        inner.step()
        bad.judge(1.0, optimizer, torch.nn.Linear(1, 1), engine, global_step=1)
        assert bad.num == num
    assert bool(weight.isfinite().all())
    assert inner.state[weight]["step"] == 1


class TestRewards:
    @pytest.mark.parametrize("value", [math.inf, -math.inf, 1e39])
    @pytest.mark.parametrize("scale_rewards", ["group", "none"])
    def test_infinite_ones_are_named(self, make_trainer, make_args, value, scale_rewards):
        def broken(completions, key, **_):
            rewards = spread_reward(completions)
            rewards[key.index("000003") if "000003" in key else 0] = value
            return rewards

        trainer = make_trainer(
            make_args(scale_rewards=scale_rewards), reward_funcs=[spread_reward, broken]
        )
        words = rf"the reward broken is -?inf for sample \d+ .* 1 of {8} completions"
        with pytest.raises(RewardError, match=words):
            trainer.train()

    def test_none_and_nan_do_not_apply(self, make_trainer, make_args):
        def partial(completions, **_):
            return [None, math.nan, *spread_reward(completions)[2:]]

        trainer = make_trainer(make_args(), reward_funcs=[spread_reward, partial])
        trainer.train()
        assert all(bool(w.isfinite().all()) for w in weights_of(trainer).values())

    def test_a_weight_makes_one_too_large(self, make_trainer, make_args):
        args = make_args(reward_weights=[1e10])
        trainer = make_trainer(
            args, reward_funcs=lambda completions, **_: [3e30] * len(completions)
        )
        with pytest.raises(RewardError, match=r"weight 1e\+10"):
            trainer.train()

    def test_of_an_evaluation(self, make_trainer, make_args, shapes):
        trainer = make_trainer(
            make_args(per_device_eval_batch_size=4),
            reward_funcs=lambda completions, **_: [math.inf] * len(completions),
            eval_dataset=shapes.records[:2],
            images_root=shapes.images,
        )
        with pytest.raises(RewardError):
            trainer.evaluate()
