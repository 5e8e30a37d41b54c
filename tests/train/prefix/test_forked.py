"""The forked prefix of a hybrid family: attention beside layers with states of fixed size."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache
from trl.trainer.utils import add_fused_lm_head

from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.models.tiny import make_tiny_policy
from grpo_stream.train.prefix import forked
from grpo_stream.train.prefix.forked_cache import new_cache, repeated, snapshot
from grpo_stream.train.prefix.ways import FORKED, PLAIN
from tests.train.prefix.sampling.test_generation import generation_config
from tests.train.prefix.test_packing import LENGTHS, gradients, make_completions
from tests.train.support import TASK_TEXTS, load_model, make_groups

SIZES = ((64, 64), (96, 32))
# Linear attention works in chunks of 64 tokens, in float32 whatever the model's precision, and they
# begin elsewhere behind a prefix: in float64 the difference is the same.
ROUNDING = 3e-5


@pytest.fixture(scope="module")
def hybrid_folder(tmp_path_factory):
    return make_tiny_policy(tmp_path_factory.mktemp("hybrid"), TASK_TEXTS, family="qwen3_5")


@pytest.fixture(scope="module")
def hybrid_processor(hybrid_folder):
    return load_processor(hybrid_folder)


@pytest.fixture
def hybrid(hybrid_folder):
    model = load_model(hybrid_folder, is_prepared=False)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model.eval()


def length(found):
    return torch.cat([gradient.flatten() for gradient in found.values()]).norm()


def difference(found, expected):
    return length({name: found[name] - own for name, own in expected.items()}) / length(expected)


@pytest.mark.parametrize(
    ("num_generations", "lengths"),
    [
        (1, [4, 7]),
        (8, [*LENGTHS, *reversed(LENGTHS)]),
        (2, [3, 0, 5, 4]),
        (2, [0, 0, 5, 4]),
        (2, [1, 1, 1, 1]),
    ],
    ids=["G=1", "G=8", "an empty one", "an empty group", "one token"],
)
def test_equals_plain_rows(hybrid, hybrid_processor, num_generations, lengths):
    groups = make_groups(hybrid_processor, SIZES, num_generations)
    ids, mask = make_completions(groups, lengths)
    expected = PLAIN.score(hybrid, groups, ids, mask, compute_entropy=True)
    expected_gradients = gradients(hybrid, expected[0])
    found = FORKED.score(hybrid, groups, ids, mask, compute_entropy=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ROUNDING)
    assert not found[0][mask == 0].any()
    assert difference(gradients(hybrid, found[0]), expected_gradients) < ROUNDING


def test_a_part_of_a_group(hybrid, hybrid_processor):
    groups = make_groups(hybrid_processor, SIZES, 4)
    ids, mask = make_completions(groups, list(LENGTHS))
    with torch.no_grad():
        whole, _ = FORKED.score(hybrid, groups, ids, mask, compute_entropy=False)
        part, entropy = FORKED.score(
            hybrid, groups.rows(2, 6), ids[2:6], mask[2:6], compute_entropy=False
        )
    assert entropy is None
    torch.testing.assert_close(part, whole[2:6], rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["in_proj_qkv", "q_proj"])
def test_lora_and_checkpointing(hybrid, hybrid_processor, target):
    lora = LoraConfig(target_modules=[target], r=2, init_lora_weights=False)
    model = get_peft_model(hybrid, lora).train()
    model.enable_input_require_grads()
    groups = make_groups(hybrid_processor, SIZES, 4)
    ids, mask = make_completions(groups, list(LENGTHS))
    expected = gradients(model, PLAIN.score(model, groups, ids, mask, compute_entropy=False)[0])
    found = gradients(model, FORKED.score(model, groups, ids, mask, compute_entropy=False)[0])
    assert difference(found, expected) < ROUNDING
    # Reentrant checkpointing would cut the graph at the cache; trl asks for it under ZeRO-3.
    model.base_model.activation_checkpointing_enable({"use_reentrant": True})
    again = gradients(model, FORKED.score(model, groups, ids, mask, compute_entropy=False)[0])
    assert all(torch.equal(again[name], own) for name, own in found.items())


def test_a_prompt_that_is_not_kept_is_an_error(hybrid, hybrid_processor, monkeypatch):
    """As under transformers' own checkpointing, which takes the cache away without an error."""
    hybrid.train().activation_checkpointing_enable()
    groups = make_groups(hybrid_processor, SIZES[:1], 2)
    monkeypatch.setattr(forked, "checkpointing_keeps_cache", lambda _: torch.enable_grad())
    with pytest.raises(RuntimeError, match="has kept 0 of a prompt's"):
        FORKED.score(hybrid, groups, *make_completions(groups, [3, 2]), compute_entropy=False)


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "top_k": 0}, {"max_new_tokens": 1}])
def test_samples_what_plain_prompts_sample(hybrid, hybrid_processor, sampling):
    groups = make_groups(hybrid_processor, SIZES, 3)
    config = generation_config(hybrid_processor, **sampling)
    found = []
    for way in (PLAIN, FORKED):
        torch.manual_seed(0)
        found.append(way.sample(hybrid, groups, config, config.pad_token_id))
    assert torch.equal(*found)
    assert found[0].size(0) == groups.num_rows
    assert len({tuple(row) for row in found[0].tolist()}) > 1 or not sampling.get("do_sample")


class TestCache:
    @pytest.fixture
    def past(self, hybrid, hybrid_processor):
        (ids,) = make_groups(hybrid_processor, SIZES[:1], 1).prompt_ids
        past = new_cache(hybrid.config)
        text = ids[ids < hybrid.config.image_token_id][None]
        hybrid(input_ids=text, past_key_values=past, use_cache=True, logits_to_keep=1)
        return past

    def test_is_transformers_own_but_for_what_is_overwritten(self, hybrid):
        own = DynamicCache(config=hybrid.config)
        for layer, other in zip(new_cache(hybrid.config).layers, own.layers, strict=True):
            assert isinstance(layer, type(other))
        assert [type(layer) for layer in DynamicCache(config=hybrid.config).layers] == [
            type(layer) for layer in own.layers
        ]  # transformers' table of layers has not changed

    def test_an_update_of_a_snapshot_stays_in_it(self, hybrid, past):
        seen, taken = past.get_seq_length(), snapshot(past)
        before = [dict(vars(layer)) for layer in past.layers]
        hybrid(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=taken, use_cache=True)
        assert (past.get_seq_length(), taken.get_seq_length()) == (seen, seen + 3)
        for layer, values in zip(past.layers, before, strict=True):
            assert all(getattr(layer, name) is value for name, value in values.items())

    @pytest.mark.parametrize("is_written", [False, True])
    def test_every_tensor_is_repeated(self, past, is_written):
        for layer, many in zip(past.layers, repeated(past, 3, is_written=is_written).layers,
                               strict=True):  # fmt: skip
            for one, three in zip(tensors(layer), tensors(many), strict=True):
                assert three.shape == (3, *one.shape[1:])
                assert torch.equal(three[2], one[0])
                assert (three[0].data_ptr() == three[2].data_ptr()) is not is_written


def tensors(layer):
    flat = [
        one
        for value in vars(layer).values()
        for one in (value.values() if isinstance(value, dict) else [value])
    ]
    found = [one for one in flat if isinstance(one, torch.Tensor) and one.dim() > 1]
    assert found
    return found
