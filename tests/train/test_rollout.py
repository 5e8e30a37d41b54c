"""Sampling and scoring in groups: short runs of the whole trainer."""

from collections import Counter

import numpy as np
import pytest
import torch
from trl import GRPOConfig

from grpo_stream.errors import ConfigError
from grpo_stream.images import decode
from grpo_stream.stream import stream_sample
from grpo_stream.train.models import patches as patches_module
from grpo_stream.train.models.patches import to_patches
from grpo_stream.train.observe.metrics import RunMetrics
from grpo_stream.train.observe.phases import Phases
from grpo_stream.train.prefix import ways
from grpo_stream.train.rollout import GroupRollout, RolloutSettings
from grpo_stream.train.setup.arguments import LogArguments
from tests.train.runs import NUM_LANES, logged, spread_reward, weights_of
from tests.train.support import make_groups, write_shapes


def force_completions(trainer, tokenizer):
    """Gives the same ragged completions whichever way they would have been sampled."""
    table = [tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
             for text in ("(8, 16)", "(100, 3)", "no", "", "(1, 2)", "Click on", "5")]  # fmt: skip
    trainer._generate_single_turn = lambda ids, *_, **__: (
        [table[row % len(table)] for row in range(len(ids))],
        None,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta": 0.1},
        {"num_iterations": 2, "max_steps": 4},
        {"steps_per_generation": 4, "per_device_train_batch_size": 2, "num_generations": 4,
         "gradient_accumulation_steps": 4},
        {"loss_type": "grpo", "top_entropy_quantile": 0.5},
    ],
    ids=["plain", "reference model", "old log-probs", "cut groups", "entropy mask"],
)  # fmt: skip
def test_shared_prefix_changes_nothing_but_the_work(make_trainer, make_args, processor, changes):
    num_lanes = 2 if "per_device_train_batch_size" in changes else NUM_LANES
    args = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, **changes}
    runs = []
    for shared_prefix in ("on", "off"):
        trainer = make_trainer(make_args(**args), shared_prefix=shared_prefix, num_lanes=num_lanes)
        assert trainer.shared_prefix is (shared_prefix == "on")
        force_completions(trainer, processor.tokenizer)
        trainer.train()
        runs.append((trainer, weights_of(trainer)))
    (on, weights), (off, expected) = runs
    for name in ("loss", "entropy", "reward", *(["kl"] if "beta" in changes else [])):
        assert logged(on, name) == pytest.approx(logged(off, name), abs=1e-5), name
    initial = weights_of(make_trainer(make_args(**args), num_lanes=num_lanes))
    for name, weight in weights.items():
        moved = (expected[name] - initial[name]).norm()
        assert moved > 0, name
        assert (weight - expected[name]).norm() < 1e-3 * moved + 1e-6, name


# 112x112 are 64 patches. Per generation batch of 2 prompts: once for sampling, once for the old
# log-probabilities, and a forward for each of 4 micro-steps, 1 prompt each; frozen: once.
@pytest.mark.parametrize(("frozen", "passes"), [(False, 2 + 2 + 4), (True, 2)])
def test_each_record_is_worked_on_once(
    make_trainer, make_args, processor, tmp_path, monkeypatch, frozen, passes
):
    write_shapes(tmp_path, 5)  # one is the reserve
    decoded: Counter[bytes] = Counter()
    monkeypatch.setattr(
        stream_sample, "decode", lambda data, *args: decoded.update([data]) or decode(data, *args)
    )
    args = make_args(
        per_device_train_batch_size=8,
        num_generations=8,
        num_iterations=2,
        max_steps=-1,
        num_train_epochs=1,
        beta=0.0,
    )
    trainer = make_trainer(
        args,
        num_lanes=2,
        folder=tmp_path / "shards",
        freeze_vision_tower=frozen,
        shared_prefix_check=False,  # which would be counted, too
        log=LogArguments(logp_difference_steps=0),  # the same
    )
    images: list[int] = []
    positions: list[int] = []

    def noting(lengths, function):
        def noted(first, *args, **kwargs):
            lengths.append(len(first))
            return function(first, *args, **kwargs)

        return noted

    monkeypatch.setattr(patches_module, "to_patches", noting(images, to_patches))
    backbone = trainer.model.model
    monkeypatch.setattr(backbone, "get_rope_index", noting(positions, backbone.get_rope_index))
    patches = []
    trainer.model.model.visual.register_forward_pre_hook(
        lambda _module, args, kwargs: patches.append((args or tuple(kwargs.values()))[0].size(0)),
        with_kwargs=True,
    )
    trainer.train()
    assert trainer.state.global_step == 4  # 2 generation batches x 4 micro-steps / 2
    assert len(decoded) == 4
    assert set(decoded.values()) == {1}
    assert images == [2, 2]
    assert positions == [1, 1] * 2
    assert sum(patches) == 2 * 64 * passes


def test_what_a_reward_receives(make_trainer, make_args, shapes):
    received = {}

    def spy(completions, **columns):
        received.update(columns)
        return spread_reward(completions)

    make_trainer(make_args(max_steps=1), reward_funcs=spy).train()
    assert {len(received[n]) for n in ("prompts", "key", "solution", "scales", "shape")} == {8}
    by_key = {f"{n:06d}": record for n, record in enumerate(shapes.records)}
    for row, key in enumerate(received["key"]):
        assert received["solution"][row] == by_key[key]["solution"]
        assert received["shape"][row] == by_key[key]["shape"]
        assert tuple(received["scales"][row]) == (112, 112)
        assert received["answer_frame"][row] == "model"
        assert by_key[key]["prompt"] in str(received["prompts"][row])
    assert received["key"][::2] == received["key"][1::2]


def test_vision_tokens_are_never_sampled(make_trainer, processor):
    trainer = make_trainer()
    suppressed = processor.tokenizer.convert_ids_to_tokens(
        trainer.generation_config.suppress_tokens
    )
    assert {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>"} <= set(suppressed)
    assert trainer.generation_kwargs["suppress_tokens"]


def test_shared_prefix_falls_back_with_the_reason(make_trainer, monkeypatch):
    monkeypatch.setattr(ways, "shared_prefix_obstacle", lambda *_: "it is Tuesday")
    assert make_trainer().prefix_way == "forked"
    monkeypatch.setattr(ways, "forked_obstacle", lambda _: "nor on Mondays")
    assert make_trainer().shared_prefix is False
    with pytest.raises(ConfigError, match="not packed, it is Tuesday; not forked, nor on Mondays"):
        make_trainer(shared_prefix="on")


def test_prompts_that_an_evaluation_repeats_have_no_reward(make_trainer):
    def number(key, **_):
        return [float(int(name)) for name in key]

    trainer = make_trainer(reward_funcs=number)
    trainer.model.eval()
    trainer._rollout._batch = {"num_prompts": 2}
    rows = [{"prompt": "", "key": f"{n:09d}"} for n in (1, 1, 2, 2, 1, 1)]
    rewards = trainer._calculate_rewards(rows, [""] * 6, [""] * 6, [[1]] * 6)
    assert rewards[:4, 0].tolist() == [1, 1, 2, 2]
    assert torch.isnan(rewards[4:]).all()


def test_rows_of_other_prompts_are_not_scored(processor):
    settings = RolloutSettings(
        0, [ways.PLAIN], False, False, "eager", 0, ["r"], np.ones(1, np.float32)
    )
    tools = (GRPOConfig("out", use_cpu=True, bf16=False), None, Phases(), RunMetrics({}))
    rollout = GroupRollout(settings, *tools)
    with pytest.raises(RuntimeError, match="2 completions are scored, no prompts were announced"):
        rollout.prompt_rows(2)
    with (
        rollout.scoring(make_groups(processor, num_generations=4)),
        pytest.raises(RuntimeError, match="2 completions are scored, 4 completions were announced"),
    ):
        rollout.prompt_rows(2)
