"""Forked groups: a graph's tokens are those of ``generate`` behind the same prompt's cache."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from grpo_stream.families import PREFIX_LMS
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.processor import known_rule, load_processor
from grpo_stream.train.models.tiny import TINY_FAMILIES, make_tiny_policy
from grpo_stream.train.prefix.sampling import decoder, fixed_cache, forked_step
from grpo_stream.train.prefix.sampling.decoder import Decoder
from grpo_stream.train.prefix.sampling.token_attention import attend_from_token, token_attention
from grpo_stream.train.prefix.ways import FORKED
from tests.train.prefix.sampling.test_generation import generation_config
from tests.train.support import TASK_TEXTS, load_model, make_groups

SAMPLED = {"do_sample": True, "top_k": 0}
FEW = ("qwen3_5", "gemma3")  # states of fixed size; windows
OTHERS = [name for name in TINY_FAMILIES if name not in {*PREFIX_LMS, *FEW}]


@pytest.fixture(scope="module")
def policy_of(tmp_path_factory):
    made = {}

    def load(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = make_tiny_policy(folder, TASK_TEXTS, family=family)
        return load_model(made[family], is_prepared=False).eval(), load_processor(made[family])

    return load


@pytest.fixture(autouse=True)
def counters(monkeypatch):
    """Of compilations alone; rooms are small, so that they grow."""
    monkeypatch.setattr(fixed_cache, "_FIRST_ROOM", 3)
    torch._dynamo.reset()
    found = torch._dynamo.utils.counters
    found.clear()
    return found


def ragged(processor, num_generations=3):
    rule = known_rule(processor.image_processor)
    side = 28 if rule is None else rule.multiple
    sizes = [(3 * side, 2 * side), (side, 4 * side), (2 * side, 2 * side), (side, side)]
    groups = make_groups(processor, sizes, num_generations)
    assert len({len(ids) for ids in groups.prompt_ids}) > 1
    return groups


def words_alone(lengths, num_generations=2):
    numbers = torch.Generator().manual_seed(0)
    ids = [torch.randint(20, 400, (length,), generator=numbers) for length in lengths]
    nothing = [torch.zeros_like(one) for one in ids]
    sizes = [num_generations] * len(ids)
    return PromptGroups(ids, nothing, [{} for _ in ids], sizes, types_name=None)


def sample(model, groups, config, chosen):
    torch.manual_seed(0)
    return FORKED.sample(model, groups, config, config.pad_token_id, chosen)


def check_equal(model, groups, config, chosen, reference="eager"):
    beside = Decoder("compiled", "eager") if reference == "in place" else Decoder(reference)
    expected = sample(model, groups, config, beside)
    found = sample(model, groups, config, chosen)
    assert chosen.is_compiled, chosen.fallback
    assert torch.equal(found, expected)
    assert len({tuple(row) for row in found.tolist()}) > 1 or not config.do_sample


@pytest.mark.parametrize(
    "family",
    [*FEW, *(pytest.param(name, marks=pytest.mark.slow(reason="13 models")) for name in OTHERS)],
)
def test_one_graph_samples_generates_tokens(policy_of, family, counters):
    model, processor = policy_of(family)
    config = generation_config(processor, **SAMPLED, min_new_tokens=8)
    check_equal(model, ragged(processor), config, Decoder("compiled", "eager"))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_windows_of_any_fill_share_a_graph(policy_of, counters):
    """Of 24 tokens: filled by the completion, and full from the start."""
    model, processor = policy_of("gemma3")
    config = generation_config(processor, **SAMPLED, min_new_tokens=28, max_new_tokens=28)
    groups = words_alone([5, 20, 24, 60])
    check_equal(model, groups, config, Decoder("compiled", "eager"))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow(reason="torch.compile makes kernels")
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("qwen3_5", kind) for kind in ("float32", "bfloat16", "LoRA", "autocast")),
        *(("gemma3", kind) for kind in ("float32", "bfloat16")),
    ],
)
def test_kernels_sample_generates_tokens(policy_of, family, kind):
    model, processor = policy_of(family)
    if kind == "bfloat16":
        model = model.bfloat16()
    if kind == "LoRA":
        lora = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
        model = get_peft_model(model, lora).eval()
    if kind == "autocast":
        accelerator = Accelerator(mixed_precision="bf16", cpu=True)
        model = accelerator.unwrap_model(accelerator.prepare_model(model, evaluation_mode=True))
    groups, chosen = ragged(processor), Decoder("compiled")
    check_equal(model, groups, generation_config(processor), chosen)
    # Slots that nobody sees change how attention rounds 16 bits: a draw that is close to an edge
    # may fall on its other side. Beside the same slots, operation by operation, none does.
    reference = "in place" if kind in {"bfloat16", "autocast"} else "eager"
    config = generation_config(processor, **SAMPLED)
    check_equal(model, groups, config, chosen, reference)


class TestWhatCannotBeAGraph:
    """It is sampled by ``generate``, and the reason is kept."""

    @pytest.fixture
    def gemma(self, policy_of):
        model, processor = policy_of("gemma3")
        groups, config = words_alone([30, 9]), generation_config(processor, **SAMPLED)
        return model, groups, config, sample(model, groups, config, Decoder("eager"))

    def check(self, gemma, reason):
        model, groups, config, expected = gemma
        chosen = Decoder("compiled", "eager")
        assert torch.equal(sample(model, groups, config, chosen), expected)
        assert not chosen.is_compiled
        assert reason in str(chosen.fallback)

    def test_a_layer_of_unknown_shapes(self, gemma, monkeypatch):
        monkeypatch.setattr(fixed_cache, "DynamicSlidingWindowLayer", None)
        self.check(gemma, "not known to keep its shapes: DynamicSlidingWindowLayer")

    def test_positions_that_are_not_the_models_own(self, gemma, monkeypatch):
        own = forked_step._positions
        monkeypatch.setattr(forked_step, "_positions", lambda *args: own(*args) + 3)
        self.check(gemma, "logits differ from those of a cache that grows by")

    def test_an_argument_that_it_does_not_have(self, gemma, monkeypatch):
        monkeypatch.setattr(fixed_cache.FixedCache, "inputs", lambda _: {"past_key_values": 1})
        self.check(gemma, "Error: ")

    def test_a_break_of_the_graph(self, gemma, monkeypatch):
        monkeypatch.setattr(decoder, "_logits", broken)
        self.check(gemma, "Unsupported: ")


logits_of = decoder._logits


def broken(*args):
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break()
    return logits_of(*args)


@pytest.mark.parametrize("repeats", [1, 4])
def test_heads_that_share_keys(repeats):
    query = torch.randn(3, 8, 1, 8)
    key, value = torch.randn(2, 3, 8 // repeats, 5, 8)
    mask = torch.tensor([True, True, True, False, False]).expand(3, 1, 1, 5)
    module: Any = SimpleNamespace(num_key_value_groups=repeats, is_causal=True)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    found, _ = attend_from_token(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, expected)


def test_attention_is_the_models_own_again(policy_of):
    model, _ = policy_of("gemma3")
    layer = model.model.language_model.layers[0].self_attn
    with token_attention(model):
        assert layer.config._attn_implementation == "token_sdpa"
    assert layer.config._attn_implementation == "sdpa"
