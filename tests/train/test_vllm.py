"""What vLLM is handed, checked by stand-ins for engine and server; real ones: tests/vllm."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from trl import GRPOConfig

from grpo_stream.errors import ConfigError, GrpoStreamError
from grpo_stream.families import NO_VLLM
from grpo_stream.stream.world import World
from grpo_stream.train.engine_inputs import banning_kwargs, engine_images
from grpo_stream.train.evaluate.evaluation_arguments import EvaluateArguments
from grpo_stream.train.evaluate.evaluation_plan import plan_evaluation
from grpo_stream.train.models.expert_weights import as_in_files
from grpo_stream.train.models.policy import policy_config
from grpo_stream.train.models.processor import load_processor, resize_rule
from grpo_stream.train.models.tiny import make_tiny_policy
from grpo_stream.train.setup.engine_checks import check_engine
from grpo_stream.train.setup.settings_checks import check_policy, check_supported
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from grpo_stream.train.vllm import Engine
from tests.train.runs import logged, spread_reward
from tests.train.support import QUIET, TASK_TEXTS
from tests.train.vllm_stand_in import Server, install_client, install_engine

NUM_GENERATIONS = 4
MAX_PIXELS = 84 * 84  # below the images' 112 x 112: the stream resizes them


@pytest.fixture
def processor(tiny_folder):
    return load_processor(tiny_folder, max_pixels=MAX_PIXELS)


@pytest.fixture
def answer(processor):
    return processor.tokenizer("(8, 16)<|im_end|>", add_special_tokens=False)["input_ids"]


@pytest.fixture
def make_trainer(tiny_folder, shapes, tmp_path, processor):
    made = []

    def make(rewards=None, records=None, task=None, **changes):
        settings = {
            **QUIET,
            "logging_steps": 1,
            "per_device_train_batch_size": 8,
            "num_generations": NUM_GENERATIONS,
            "max_completion_length": 8,
            "max_steps": 2,
            "use_vllm": True,
            "vllm_mode": "colocate",
        }
        trainer = PersonalizedGRPOTrainer(
            str(tiny_folder),
            rewards or spread_reward,
            GRPOConfig(str(tmp_path), **settings | changes),
            records or shapes.records,
            processing_class=processor,
            images_root=shapes.images,
            **(task or {}),
        )
        made.append(trainer)
        return trainer

    yield make
    for trainer in made:
        trainer.close()


@pytest.fixture
def server(processor, answer, monkeypatch):
    server = Server(processor, answer)
    install_client(monkeypatch, server)
    yield server
    server.close()


def read_images(trainer):
    """Pixels by key, as the stream reads them."""
    stream = trainer.train_stream
    samples = [sample for batch in range(2) for sample in stream.read_batch(0, batch)]
    return {sample.key: sample.pixels for sample in samples}


def test_a_colocated_engine_gets_each_prompt_once(make_trainer, processor, answer, monkeypatch):
    engines = install_engine(monkeypatch, processor, answer)
    seen = []

    def spy(key, completion_ids, **_):
        seen.extend(key)
        assert completion_ids == [answer] * len(key)
        return spread_reward(completion_ids)

    trainer = make_trainer(spy)
    trainer.train()
    (engine,) = engines
    keys = seen[::NUM_GENERATIONS]
    assert len(engine.prompts) == len(keys) == len(set(keys)) == 4
    rule = resize_rule(processor.image_processor)
    image_token = processor.image_token_id
    images = read_images(trainer)
    for key, prompt in zip(keys, engine.prompts, strict=True):
        image = prompt["multi_modal_data"]["image"]
        np.testing.assert_array_equal(np.asarray(image), images[key])
        assert (image.width % 28, image.height % 28) == (0, 0)
        assert image.width * image.height <= MAX_PIXELS
        limits = {"min_pixels": rule.min_pixels, "max_pixels": MAX_PIXELS}
        assert prompt["mm_processor_kwargs"] == limits
        # An engine repeats the token itself.
        assert prompt["prompt_token_ids"].count(image_token) == 1
    # At its start it makes room for nothing larger than what may come.
    assert engine.settings["limit_mm_per_prompt"] == {"video": 0}
    assert engine.settings["mm_processor_kwargs"] == limits
    names = [name for name, _ in trainer.model.named_parameters()]
    assert engine.syncs == [names, names]
    assert engine.num_resets == 2
    for params in engine.params:
        assert (params.n, params.max_tokens, params.logprobs) == (NUM_GENERATIONS, 8, 0)
        banned = processor.tokenizer.convert_ids_to_tokens(sorted(params.logit_bias))
        assert {"<|image_pad|>", "<|vision_start|>", "<|video_pad|>"} <= set(banned)
        assert set(params.logit_bias.values()) == {-100.0}
    assert len(logged(trainer, "loss")) == 2
    # The policy's own log-probabilities were compared with the engine's.
    (first, _) = logged(trainer, "sampling/sampling_logp_difference/mean")
    assert first > 0
    # And what they differ in is corrected for, without being asked for.
    ratios = logged(trainer, "sampling/importance_sampling_ratio/mean")
    assert len(ratios) == 2
    assert all(ratio != 1 for ratio in ratios)


def test_a_server_gets_each_image_once(make_trainer, server, processor, answer):
    trainer = make_trainer(
        vllm_mode="server", vllm_server_base_url=server.url, generation_kwargs={"seed": 7}
    )
    trainer.train()
    images = read_images(trainer)
    assert len(server.images) == len(server.requests) == len(images) == 4
    left = [pixels.tobytes() for pixels in images.values()]
    for pixels in server.images:
        left.remove(pixels.tobytes())
    assert {limits["max_pixels"] for limits in server.limits_seen} == {MAX_PIXELS}
    for request in server.requests:
        sampling = request["sampling_params"]
        assert (sampling["n"], sampling["seed"]) == (NUM_GENERATIONS, 7)
        assert sampling["logit_bias"][str(processor.image_token_id)] == -100.0
        (place,) = request["features"]["mm_placeholders"]["image"]
        ids = request["token_ids"]
        assert set(ids[place["offset"] : place["offset"] + place["length"]]) == {
            processor.image_token_id
        }
        assert ids.count(processor.image_token_id) == place["length"] == 9
    assert len(server.syncs) == 2
    sent = logged(trainer, "vllm/image_megabytes_sent")
    assert sum(sent) * 1e6 == pytest.approx(server.num_image_bytes)
    # As text, 4/3 of a PNG, which is not larger than its pixels by more than its head.
    assert server.num_image_bytes < 4 * (MAX_PIXELS * 3 * 4 / 3 + 2000)


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_another_number_of_image_tokens_is_named(
    make_trainer, processor, answer, monkeypatch, mode
):
    wrong = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    server = Server(processor, answer, wrong)
    try:
        if mode == "colocate":
            engines = install_engine(monkeypatch, processor, answer)
            trainer = make_trainer()
            trainer._rollout._engine.limits.update(wrong)
            assert engines
        else:
            install_client(monkeypatch, server)
            trainer = make_trainer(vllm_mode="server", vllm_server_base_url=server.url)
        key = trainer.train_stream.read_batch(0, 0)[0].key
        words = f"sample '{key}': vLLM makes 4 image tokens of its image, training 9; .*max_pixels="
        with pytest.raises(GrpoStreamError, match=words):
            trainer.train()
    finally:
        server.close()


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_an_image_that_comes_again_is_looked_at_by_the_new_tower(
    make_trainer, shapes, server, processor, answer, monkeypatch, mode
):
    engines = install_engine(monkeypatch, processor, answer)
    changes = {} if mode == "colocate" else {"vllm_server_base_url": server.url}
    make_trainer(records=shapes.records[:2], max_steps=4, vllm_mode=mode, **changes).train()
    encoded = engines[0].encoded if mode == "colocate" else server.encoded
    assert encoded.ages == [0] * 8
    assert encoded.num_resets == 4


def test_a_tower_that_is_not_trained_need_not_look_again(
    make_trainer, shapes, processor, answer, monkeypatch
):
    engines = install_engine(monkeypatch, processor, answer)
    task = {"freeze_vision_tower": True}
    make_trainer(records=shapes.records[:2], task=task, max_steps=4).train()
    (engine,) = engines
    assert engine.encoded.num_resets == 0
    assert max(engine.encoded.ages) == 3


def test_a_colocated_engine_ends_with_its_trainer(make_trainer, processor, answer, monkeypatch):
    """Before the process groups: vLLM's own hook runs at exit, when they have gone."""
    engines = install_engine(monkeypatch, processor, answer)
    trainer = make_trainer()
    assert engines[0].is_open
    trainer.close()
    assert not engines[0].is_open


def test_a_prompt_of_another_rank_is_named(monkeypatch):
    """An engine over two ranks gets the prompts of both."""

    def gather(parts, own, group):
        assert group == "both"
        parts[:] = [[("a", None), ("b", None)], own]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    generation = SimpleNamespace(
        mode="colocate", llm=None, generation_kwargs={}, tensor_parallel_size=2, tp_group="both",
        sync_weights=lambda: None,
    )  # fmt: skip
    engine = Engine(generation, image_token_id=7, limits={"max_pixels": 1})
    engine.begin(["c", "d"], 2)
    with pytest.raises(GrpoStreamError, match="sample 'c': vLLM makes 2 image tokens"):
        engine.compare(2, 2, [7])


def engine_of(load_weights=None, **changes):
    """One that no prompt is sampled by."""
    model = SimpleNamespace(load_weights=load_weights or (lambda _: {"a"}))
    worker = SimpleNamespace(model_runner=SimpleNamespace(model=model))
    executor = SimpleNamespace(driver_worker=worker)
    llm = SimpleNamespace(llm_engine=SimpleNamespace(model_executor=executor))
    weights = {"layers.0.mlp.experts.down_proj": torch.rand(2, 3, 4), "norm": torch.rand(3)}
    generation = SimpleNamespace(
        mode="colocate", llm=llm, generation_kwargs={}, tensor_parallel_size=1,
        sync_weights=lambda: None, _iter_named_params=lambda: iter(weights.items()),
    )  # fmt: skip
    return Engine(generation, image_token_id=7, limits={}, **changes), model, weights


@pytest.mark.parametrize("model_type", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_experts_are_handed_over_as_in_the_hubs_files(model_type):
    engine, _, weights = engine_of(model_type=model_type)
    handed = dict(engine.generation._iter_named_params())
    name, other = weights
    turned = weights[name].transpose(1, 2) if model_type == "qwen3_vl_moe" else weights[name]
    torch.testing.assert_close(handed[name], turned)
    assert handed[name].is_contiguous()
    torch.testing.assert_close(handed[other], weights[other])


def test_a_towers_weights_are_handed_over_by_the_names_of_the_hubs_files():
    """Where transformers has no ``vision_model`` any more, and vLLM has."""
    weight = torch.ones(1)
    named = {"model.vision_tower.post_layernorm.bias": weight, "lm_head.weight": weight}
    names = [name for name, _ in as_in_files("gemma3", iter(named.items()))]
    assert names == ["model.vision_tower.vision_model.post_layernorm.bias", "lm_head.weight"]
    again = ((name, weight) for name in names)
    assert [name for name, _ in as_in_files("gemma3", again)] == names
    assert [name for name, _ in as_in_files("idefics3", iter(named.items()))] == list(named)


def test_a_weight_that_an_engine_passes_over_is_named():
    _, model, _ = engine_of(lambda pairs: {name for name, _ in pairs if name != "odd.bias"})
    model.load_weights([("norm", torch.ones(1))])
    with pytest.raises(GrpoStreamError, match=r"no weight by the name of odd\.bias"):
        model.load_weights([("odd.bias", torch.ones(1))])


def test_prompts_as_an_engine_takes_them():
    """Several images and none, each image's token once; or as the processor tells them."""
    engine, _, _ = engine_of()
    engine.begin(["a", "b"], 2)
    assert engine.short_ids(0, [1, 7, 7, 2, 3, 7, 2, 4]) == [1, 7, 2, 3, 7, 2, 4]
    assert engine.short_ids(1, [1, 4]) == [1, 4]
    engine.begin(["a"], 2, [torch.tensor([1, 7, 7])])
    assert engine.short_ids(0, [1, 7, 7, 7, 7]) == [1, 7, 7]


def test_another_prompt_with_as_many_image_tokens_is_named():
    engine, _, _ = engine_of()
    engine.begin(["a"], 2)
    engine.compare_ids(0, [1, 7, 2], [1, 7, 2])
    with pytest.raises(GrpoStreamError, match=r"sample 'a': vLLM makes another .* from token 2"):
        engine.compare_ids(0, [1, 7, 3], [1, 7, 2])


def test_a_text_alone_on_a_server():
    placed = []
    generation = SimpleNamespace(
        mode="server", generation_kwargs={}, sync_weights=lambda: None,
        _place_features=lambda *given: placed.append(given),
    )  # fmt: skip
    Engine(generation, image_token_id=7, limits={"max_pixels": 1})
    generation._place_features(None, [1, 4])
    assert placed == [(None, [1, 4])]


@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        *((name, {}, f"use_vllm=True.*'{name}'.*; use False") for name in NO_VLLM),
        ("internvl", {"vllm_mode": "server"}, "vllm_mode='server'.*'internvl'.*use 'colocate'"),
        ("qwen2_vl", {"vllm_model_impl": "transformers"}, "vllm_model_impl=.*; use 'vllm'"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(model_type, changes, words):
    settings = {"use_vllm": True, "vllm_mode": "colocate", "vllm_model_impl": "vllm"}
    with pytest.raises(ConfigError, match=words):
        check_engine(model_type, SimpleNamespace(**settings | changes))
    check_engine("internvl", SimpleNamespace(**settings))
    check_engine(model_type, SimpleNamespace(use_vllm=False))


def test_llava_is_refused_though_it_has_no_row(tmp_path, monkeypatch):
    """Before its weights are loaded, while training and while evaluating."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    folder = make_tiny_policy(tmp_path / "llava", TASK_TEXTS, family="llava")
    (folder / "model.safetensors").unlink()
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, use_vllm=True, vllm_mode="colocate")
    with pytest.raises(ConfigError, match=r"use_vllm=True.*'llava'.*PixtralRotaryEmbedding"):
        check_policy(policy_config(folder), args, prompt_template="point", answer_frame="model")
    evaluation = EvaluateArguments(model=str(folder), report=str(tmp_path / "r"), use_vllm=True)
    with pytest.raises(ConfigError, match=r"use_vllm=True.*'llava'.*PixtralRotaryEmbedding"):
        plan_evaluation(evaluation, World(0, 1))


SYNC = ["wake up weights", "load", "reset prefixes", "reset images"]
ROLLOUT = ["wake up kv_cache", "generate", "sleep"]


def test_an_engine_sleeps_but_for_a_rollout(make_trainer, shapes, processor, answer, monkeypatch):
    """It wakes up in two parts: weights for the new ones, the cache when they are there.

    An image that comes again is looked at by them, as without sleep. Sleep discards the weights, so
    a second rollout at the same step, as in an evaluation of two batches, gets them again.
    """
    engines = install_engine(monkeypatch, processor, answer)
    trainer = make_trainer(
        records=shapes.records[:2],
        vllm_enable_sleep_mode=True,
        task={"eval_dataset": shapes.records[:4]},
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=8,
    )
    (engine,) = engines
    assert engine.settings["enable_sleep_mode"] is True
    assert engine.settings["tensor_parallel_size"] == 1
    assert engine.calls == ["sleep"]
    asleep = []
    step = trainer.training_step

    def spy(*args, **kwargs):
        loss = step(*args, **kwargs)
        asleep.append(not engine.awake)
        return loss

    monkeypatch.setattr(trainer, "training_step", spy)
    trainer.train()
    num_rollouts = 2 + 2  # two steps, two batches of evaluation
    assert engine.calls == ["sleep", *(SYNC + ROLLOUT) * num_rollouts]
    assert asleep == [True, True]
    assert engine.encoded.ages == [0] * len(engine.prompts)


def test_floats_of_a_collator_are_refused():
    with pytest.raises(ConfigError, match="data_collator"):
        engine_images(torch.zeros(4, 1176), ["a"], 2)


def test_a_groups_image_is_one_object():
    pixels = [torch.zeros(28, 28, 3, dtype=torch.uint8)] * 2
    images = engine_images(pixels, ["a", "b"], 3)
    assert [image is images[3 * (row // 3)] for row, image in enumerate(images)] == [True] * 6
    assert isinstance(images[0][0], Image.Image)


def test_what_a_user_biases_wins():
    found = banning_kwargs([1, 2], {"seed": 3, "logit_bias": {2: 5.0, 4: -1.0}})
    assert found == {"seed": 3, "logit_bias": {1: -100.0, 2: 5.0, 4: -1.0}}


def test_vllm_must_be_there(tmp_path):
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, use_vllm=True)
    with pytest.raises(ConfigError, match="pip install 'trl"):
        check_supported(args)
