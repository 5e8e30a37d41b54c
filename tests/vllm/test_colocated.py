"""An engine in the process that trains: its log-probabilities are the policy's, step by step.

Every run ends with a control, steps before which the engine got no new weights.
"""

import re

import pytest
from peft import LoraConfig
from transformers import PrinterCallback
from trl import GRPOConfig

from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sources import ShardSource
from grpo_stream.train.models.processor import resize_rule
from grpo_stream.train.models.tiny import tiny_config, write_policy
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from grpo_stream.train.vllm import Engine
from tests.train.runs import logged, spread_reward
from tests.train.support import QUIET, write_mixed_set
from tests.train.vllm_stand_in import forget_world
from tests.vllm.engines import EAGER, EXACT, SyncOff, use_engines

NUM_SYNCED, NUM_CONTROL = 4, 2
BOUND = 1e-5
"""Of the mean difference of log-probabilities, in float32."""
TIMES = 100
"""What stale weights are beyond it, at least."""
DIFFERENCE = "sampling/sampling_logp_difference/mean"


def lora(*modules):
    return LoraConfig(r=8, lora_alpha=64, target_modules=list(modules))


@pytest.fixture
def train(folder_of, processor_of, shapes, tmp_path, monkeypatch):
    """A run; the trainer, after its end."""
    made = []

    def train(
        family="qwen2_5_vl",
        *,
        engine=EXACT,
        records=None,
        args=None,
        folder=None,
        reward=spread_reward,
        **changes,
    ):
        forget_world(monkeypatch)
        use_engines(monkeypatch, **engine)
        settings = {
            **QUIET,
            "logging_steps": 1,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 8,
            "max_steps": NUM_SYNCED + NUM_CONTROL,
            "learning_rate": 1e-3,
            "use_vllm": True,
            "vllm_mode": "colocate",
            **(args or {}),
        }
        resume_from = settings.pop("resume_from_checkpoint", None)
        trainer = PersonalizedGRPOTrainer(
            str(folder or folder_of(family)),
            reward,
            GRPOConfig(str(tmp_path), **settings),
            records or shapes.records,
            processing_class=processor_of(family),
            images_root=shapes.images,
            **changes,
        )
        made.append(trainer)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(SyncOff(trainer, NUM_SYNCED))
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer

    yield train
    for trainer in made:
        trainer.close()


def check_differences(trainer, bound=BOUND, times=TIMES):
    """Those of synced steps are small, and those of the control are not."""
    found = logged(trainer, DIFFERENCE)
    synced, control = found[:-NUM_CONTROL], found[-NUM_CONTROL:]
    assert synced
    assert max(synced) < bound
    assert min(control) > times * bound


def test_each_family(train, family):
    trainer = train(family)
    assert trainer.shared_prefix
    check_differences(trainer)


def test_samples_of_none_one_and_several_images(train, processor_of, tmp_path):
    """In shards, in turn; prompts without an image are no part of what the tower does."""
    rule = resize_rule(processor_of("qwen2_5_vl").image_processor)
    config = StreamConfig(num_lanes=2, num_reader_threads=1, resize=rule)
    mixed = write_mixed_set(tmp_path / "mixed", 4)
    check_differences(train(records=PromptStream(ShardSource(str(mixed)), config)))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"shared_prefix": "off"}, id="shared_prefix_off"),
        pytest.param({"freeze_vision_tower": True}, id="frozen_tower"),
        pytest.param({"peft_config": lora("q_proj", "v_proj")}, id="lora"),
        pytest.param({"peft_config": lora("qkv", "q_proj")}, id="lora_in_the_tower"),
    ],
)
def test_what_is_trained(train, changes):
    check_differences(train(**changes))


def test_without_a_reset_images_are_stale(train, monkeypatch):
    """What the bound is worth: the fault that it is there for is over it."""
    monkeypatch.setattr(Engine, "_forget_images_at_sync", lambda _: None)
    first, second, *later = logged(train(), DIFFERENCE)[:NUM_SYNCED]
    assert max(first, second) < BOUND  # images that are new to the engine
    assert min(later) > TIMES * BOUND


def test_as_trl_makes_an_engine(train):
    """In bfloat16, and with log-probabilities among the tokens that are not banned."""
    check_differences(train(engine=EAGER), bound=0.03, times=3)


def test_linear_attention_by_the_kernels_of_vllm(train, processor_of, tmp_path):
    """In bfloat16, of heads that are wide enough for them."""
    tokenizer = processor_of("qwen3_5").tokenizer
    config = tiny_config(tokenizer, "qwen3_5")
    config.text_config.linear_key_head_dim = config.text_config.linear_value_head_dim = 64
    folder = write_policy(tmp_path / "wide", config, tokenizer)
    trainer = train("qwen3_5", engine=EAGER, folder=folder, args={"learning_rate": 3e-3})
    check_differences(trainer, bound=0.03, times=3)


def test_an_engine_that_sleeps_between_rollouts(train, monkeypatch):
    """Its scheduler does; the CPU's worker, which vLLM would not let sleep, keeps its memory.

    Without a control: an engine that gets no weights is not woken up, and waits for ever.
    """
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_sleep_mode_available", lambda _: True)
    trainer = train(args={"vllm_enable_sleep_mode": True, "max_steps": NUM_SYNCED})
    found = logged(trainer, DIFFERENCE)
    assert len(found) == NUM_SYNCED
    assert max(found) < BOUND
    assert trainer.vllm_generation.llm.llm_engine.is_sleeping()


def test_evaluation_between_steps(train, shapes):
    args = {
        "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8,
    }  # fmt: skip
    trainer = train(args=args, eval_dataset=shapes.records)
    check_differences(trainer)
    # Each follows its step's update: the engine gets the new weights before it, not after.
    evaluated = logged(trainer, f"eval_{DIFFERENCE}")
    assert max(evaluated[: NUM_SYNCED - 1]) < BOUND
    assert min(evaluated[-NUM_CONTROL:]) > TIMES * BOUND


def test_several_prompts_on_one_image(train, shapes):
    first = shapes.records[0]
    others = [f"Click on the {word}" for word in ("red circle", "blue square", "green square")]
    records = [first, *({**first, "prompt": prompt} for prompt in others)]
    check_differences(train(records=records))


def test_answers_of_a_form(train):
    """trl's ``vllm_structured_outputs_regex`` reaches the engine that answers a prompt G times."""
    answers: list[str] = []

    def note(completions, **_):
        answers.extend(message["content"] for (message,) in completions)
        return spread_reward(completions)

    form = r"\(\d{1,3}, \d{1,3}\)"
    args = {
        "vllm_structured_outputs_regex": form, "max_completion_length": 16, "max_steps": 2,
    }  # fmt: skip
    train(args=args, reward=note)
    assert len(set(answers)) > 4
    assert all(re.fullmatch(form, answer) for answer in answers)


def test_resuming(train, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    train(args={**saving, "max_steps": 2})
    args = {**saving, "resume_from_checkpoint": str(tmp_path / "checkpoint-2")}
    trainer = train(args=args)
    assert trainer.state.global_step == NUM_SYNCED + NUM_CONTROL
    check_differences(trainer)
