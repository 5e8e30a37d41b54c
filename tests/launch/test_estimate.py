import functools
import json

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

from grpo_stream.train.setup.deepspeed_config import load_zero_config, sums_in_float32
from grpo_stream.train.setup.memory.memory_estimate import Zero, state_memory
from grpo_stream.train.setup.memory.model_sizes import MetaModel, find_config
from tests.launch.support import ROOT, load_script
from tests.train.setup.small_configs import small_config

estimate = load_script("estimate")
FLOAT32_SUMS = ROOT / "ds_configs/zero3_float32_sums.json"


@functools.cache
def known_model(name):
    return MetaModel(find_config(name))


@pytest.fixture
def _known_models(monkeypatch):
    """A model of a name is made, and its layers are run for a batch, once for all tests."""
    monkeypatch.setattr(estimate, "find_config", str)
    monkeypatch.setattr(estimate, "MetaModel", known_model)


def rows(capsys, *argv):
    assert estimate.main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("_known_models")
def test_a_row_for_each_model_and_number_of_gpus(capsys):
    found = rows(capsys, "--models", "3B", "72B", "--gpus", "8", "64")
    assert [(row["model"], row["gpus"]) for row in found] == [
        ("3B", 8),
        ("3B", 64),
        ("72B", 8),
        ("72B", 64),
    ]
    assert [row["fits"] for row in found] == ["both", "both", "no", "layerwise"]


@pytest.mark.usefixtures("_known_models")
@pytest.mark.parametrize("offload", ["none", "optimizer", "all"])
def test_deepspeeds_estimate_is_its_own(capsys, offload):
    (row,) = rows(capsys, "--models", "7B", "--gpus", "16", "--offload", offload)
    model = MetaModel(find_config("7B"))
    _, on_gpu, _ = estimate_zero3_model_states_mem_needs(
        model.num_weights, model.largest_module_weights, 8, 2, offload != "none", offload == "all"
    )
    assert row["DeepSpeed"] == pytest.approx(on_gpu / 1e9)
    assert (row["states"] == 0) == (offload == "all")


@pytest.mark.usefixtures("_known_models")
@pytest.mark.parametrize("offload", ["none", "optimizer"])
def test_gradients_that_are_summed_in_float32(capsys, offload):
    """Two bytes more for each weight of a rank's share, where gradients are."""
    flags = ["--models", "3B", "--gpus", "8", "--offload", offload]
    (half,) = rows(capsys, *flags)
    (full,) = rows(capsys, *flags, "--grad-accum-dtype", "fp32")
    more = 2 * -(-half["weights_of_model"] // 8)
    assert full["gradients"] - half["gradients"] == (more if offload == "none" else 0)
    assert full["host_optimizer"] - half["host_optimizer"] == (0 if offload == "none" else more)
    assert full["update_peak"] - half["update_peak"] == full["gradients"] - half["gradients"]
    assert full["DeepSpeed"] == half["DeepSpeed"]


@pytest.mark.usefixtures("_known_models")
def test_the_estimate_is_the_preflights(capsys):
    """Both of one DeepSpeed file, with float32 sums and without."""
    (row,) = rows(capsys, "--models", "3B", "--gpus", "8", "--grad-accum-dtype", "fp32")
    cut = Zero(8, gradient_bytes=4 if sums_in_float32(load_zero_config(FLOAT32_SUMS)) else None)
    expected = state_memory(row["weights_of_model"], cut).states
    assert row["states"] * 1e9 == pytest.approx(expected, rel=1e-12)
    (row,) = rows(capsys, "--models", "3B", "--gpus", "8")
    assert not sums_in_float32(load_zero_config(ROOT / "ds_configs/zero3.json"))
    expected = state_memory(row["weights_of_model"], Zero(8)).states
    assert row["states"] * 1e9 == pytest.approx(expected, rel=1e-12)


def test_the_table(capsys):
    assert estimate.main(["--models", "7B", "--gpus", "8", "--no-gradient-checkpointing"]) == 0
    title, heads, line, *legend = capsys.readouterr().out.splitlines()
    assert "gradient checkpointing: off" in title
    assert heads.split()[0] == "model"
    assert line.split()[:3] == ["7B", "8", "16.6"]
    assert {text.split()[0] for text in legend} >= {"states", "update", "layerwise", "fits"}


@pytest.mark.usefixtures("_known_models")
def test_a_colocated_engine(capsys):
    """Takes its share all the time, or while it is awake; the policy's own sampling is left out."""
    engine = "--vllm-gpu-memory-utilization"
    flags = ["--models", "7B", "--gpus", "16"]
    (alone,) = rows(capsys, *flags)
    (beside,) = rows(capsys, *flags, engine, "0.25")
    assert beside["update_peak"] - alone["update_peak"] == 20e9
    largest = MetaModel(find_config("7B")).largest_module_weights
    assert beside["rollout_peak"] == beside["states"] * 1e9 + 20e9 + 2 * largest
    assert (alone["engine"], beside["engine"]) == (0, 20)
    assert (alone["fits"], beside["fits"]) == ("both", "both")
    # 16.6 GB of weights.
    (small,) = rows(capsys, *flags, engine, "0.2")
    assert small["fits"] == "no"
    (asleep,) = rows(capsys, *flags, engine, "0.25", "--vllm-enable-sleep-mode")
    assert asleep["update_peak"] == alone["update_peak"]
    assert asleep["rollout_peak"] == beside["rollout_peak"]
    assert (beside["freed"], asleep["freed"]) == (0, 20)
    (shared,) = rows(capsys, *flags, engine, "0.2", "--vllm-tensor-parallel-size", "2")
    assert shared["fits"] == "both"


@pytest.mark.usefixtures("_known_models")
def test_views_are_prompts_with_their_part_of_the_completions(capsys):
    flags = ["--models", "3B", "--gpus", "8", "--num-generations", "8"]
    (whole,) = rows(capsys, *flags)
    (views,) = rows(capsys, *flags, "--num-views", "2")
    (halves,) = rows(
        capsys, "--models", "3B", "--gpus", "8", "--num-generations", "4",
        "--groups-per-micro-step", "2", "--prompts-per-rollout", "8",
    )  # fmt: skip
    assert views == halves
    assert views["states"] == whole["states"]
    assert views["activations"] > whole["activations"]  # two prefixes
    assert estimate.main([*flags, "--num-views", "3"]) == 2
    assert "must divide num_generations=8" in capsys.readouterr().err


def test_another_family_by_its_configuration_alone(capsys, tmp_path):
    config = small_config("gemma3")
    config.architectures = ["Gemma3ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    (row,) = rows(capsys, "--models", str(tmp_path), "--gpus", "8")
    assert row["layout"] == "forked"
    assert row["weights_of_parts"]["head"] == 0
    assert row["weights_of_model"] - sum(row["weights_of_parts"].values()) == 64
    assert row["activations"] > 0
    assert estimate.main(["--models", str(tmp_path), "--gpus", "8"]) == 0
    assert str(tmp_path) in capsys.readouterr().out


def test_an_unknown_model(capsys):
    assert estimate.main(["--models", "8B"]) == 2
    assert "must be one of 3B" in capsys.readouterr().err
