import pytest
from trl import GRPOConfig

from grpo_stream.errors import ConfigError
from grpo_stream.train.setup.arguments import LogArguments
from grpo_stream.train.setup.run_plan import parse_settings, plan_run
from grpo_stream.train.setup.settings_checks import (
    check_refill,
    check_settings,
    num_eval_lanes,
    packed_attention,
)
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.support import QUIET

BATCH = {"per_device_train_batch_size": 8, "num_generations": 4}


def make_args(folder, **changes):
    return GRPOConfig(str(folder), **{**QUIET, **BATCH, **changes})


class TestPackedAttention:
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    @pytest.mark.parametrize(
        ("wanted", "expected"), [("auto", "two_part"), ("two_part", "two_part"), ("dense", "dense")]
    )
    def test_is_resolved(self, wanted, expected, device):
        assert packed_attention(wanted, device) == expected

    def test_flex_needs_a_gpu(self):
        assert packed_attention("flex", "cuda") == "flex"
        with pytest.raises(ConfigError, match=r"no backward pass on the CPU.*use two_part"):
            packed_attention("flex", "cpu")

    def test_unknown(self):
        with pytest.raises(ConfigError, match="one of auto, two_part, dense, flex"):
            packed_attention("fast", "cpu")


@pytest.mark.parametrize(
    ("refill", "changes", "field"),
    [
        (-1, {}, "refill_zero_variance"),
        (1, {"scale_rewards": "batch"}, "scale_rewards"),
        (1, {"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation"),
    ],
)
def test_what_cannot_be_refilled(refill, changes, field, tmp_path):
    args = make_args(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        check_refill(refill, args)
    assert caught.value.field == field
    check_refill(0, args)


def test_what_the_checks_work_out(tmp_path):
    def reward(completions, **_):
        return [0.0 for _ in completions]

    found = check_settings(
        make_args(tmp_path),
        LogArguments(),
        ["format_reward", reward],
        shared_prefix="auto",
        shared_prefix_attention="auto",
        refill_zero_variance=2,
        has_eval_data=False,
        num_ranks=3,
    )
    assert (found.num_prompts, found.num_lanes) == (6, 18)
    assert found.packed_attention == "two_part"
    assert [one.__name__ for one in found.rewards] == ["format_reward", "reward"]
    assert found.notes == []


def test_evaluation_is_planned_for_the_ranks_that_are_asked_for(tmp_path):
    args = make_args(tmp_path, per_device_eval_batch_size=8)
    assert (num_eval_lanes(args), num_eval_lanes(args, 4)) == (2, 8)
    args.per_device_eval_batch_size = 6
    with pytest.raises(ConfigError, match=r"per_device_eval_batch_size=6.*for example 4"):
        num_eval_lanes(args)


MISTAKES = [
    ({"use_vllm": True}, {}),
    ({"ignore_data_skip": True}, {}),
    ({"reward_weights": [1.0, 2.0]}, {}),
    ({"eval_strategy": "steps", "eval_steps": 1}, {}),
    ({"gradient_accumulation_steps": 3, "steps_per_generation": 2}, {}),
    ({"deepspeed": {"zero_optimization": {"stage": 7}}}, {}),
    ({"scale_rewards": "batch"}, {"refill_zero_variance": 1}),
    ({}, {"refill_zero_variance": -1}),
    ({}, {"shared_prefix": "maybe"}),
    ({}, {"shared_prefix_attention": "fast"}),
    ({}, {"reward_funcs": ["no_such_reward"]}),
    ({}, {"prompt_template": "no_such_template"}),
    ({}, {"answer_frame": "inches"}),
]


@pytest.mark.parametrize(("changes", "task"), MISTAKES, ids=str)
def test_a_plan_and_a_trainer_refuse_the_same(changes, task, shapes, tiny_folder, tmp_path):
    """In the same words, the trainer before it loads the model."""
    settings = parse_settings(
        [
            *("--model_name_or_path", str(tiny_folder), "--shards", str(shapes.shards)),
            *("--output_dir", str(tmp_path), "--report_to", "none"),
        ],
        use_cpu=True,
    )
    # Set afterwards: GRPOConfig would refuse some of it, or join ranks for DeepSpeed.
    args = make_args(tmp_path)
    for name, value in changes.items():
        setattr(args, name, value)
    plan = {"args": args, "model": settings.model, "data": settings.data, "log": settings.log}
    for name, value in task.items():
        setattr(settings.task, name, value)
    with pytest.raises(ConfigError) as planned:
        plan_run(type(settings)(**plan, task=settings.task, run=settings.run))
    keywords = {"reward_funcs": ["format_reward"], **task}
    with pytest.raises(ConfigError) as trained:
        PersonalizedGRPOTrainer(
            str(tiny_folder),
            args=args,
            train_dataset=shapes.records,
            images_root=shapes.images,
            **keywords,
        )
    assert str(trained.value) == str(planned.value)
