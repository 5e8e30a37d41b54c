"""The files in ds_configs/ are accepted by DeepSpeed, and their README tells every value."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from grpo_stream.errors import ConfigError
from grpo_stream.train.setup.deepspeed_config import check_zero_config, load_zero_config

FOLDER = Path(__file__).parents[3] / "ds_configs"
FILES = sorted(path.name for path in FOLDER.glob("*.json"))
ON_CPU = "zero3_cpu.json"


def leaves(node, prefix=""):
    """Dotted key and value of everything that is no object."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def table():
    """Rows of the README's table of values: key -> (value cell, all other cells)."""
    rows = {}
    for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        key = re.fullmatch(r"`([a-z0-9_.]+)`", cells[0])
        if key and len(cells) == 5:
            assert key[1] not in rows, f"{key[1]} has two rows"
            rows[key[1]] = (cells[1], cells[2:])
    return rows


def told(cell, name):
    """The value that a cell such as "`auto`; `zero2.json`: `2`" tells for the file ``name``."""
    default, *exceptions = cell.split("; ")
    by_file = dict(part.split(": ") for part in exceptions)
    return by_file.get(f"`{name}`", default)


def test_every_file_is_there():
    kinds = ("cpu", "float32_sums", "multinode", "nvme", "offload", "zeropp")
    expected = ["zero2.json", "zero3.json", *(f"zero3_{kind}.json" for kind in kinds)]
    assert expected == FILES


@pytest.mark.parametrize("name", FILES)
def test_the_readme_tells_each_value_of_each_file(name):
    rows = table()
    config = load_zero_config(FOLDER / name)
    for key, value in leaves(config):
        assert key in rows, f"{name}: {key} is not in the README"
        assert told(rows[key][0], name).strip("`") == str(value).lower(), f"{name}: {key}"


def test_the_readme_tells_of_nothing_else():
    used = {key for name in FILES for key, _ in leaves(load_zero_config(FOLDER / name))}
    assert set(table()) == used


@pytest.mark.parametrize(("key", "row"), table().items())
def test_each_row_has_unit_reason_and_source(key, row):
    unit, reason, source = row[1]
    assert unit
    assert len(reason) > 5, key
    assert re.search(r"\b(DS|HF)\b", source), key


@pytest.mark.parametrize("name", FILES)
def test_deepspeed_accepts_each_file(name):
    zero = load_zero_config(FOLDER / name)["zero_optimization"]
    accepted = DeepSpeedZeroConfig(**{key: v for key, v in zero.items() if v != "auto"})
    assert accepted.stage == zero["stage"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("world_size", [1, 2, 64])
def test_each_file_fits_any_batch_size(name, world_size):
    notes = check_zero_config(
        load_zero_config(FOLDER / name),
        per_device_train_batch_size=6,
        gradient_accumulation_steps=5,
        world_size=world_size,
        bf16=name != ON_CPU,
        fp16=False,
        max_grad_norm=0.2,
    )
    assert len(notes) == (name == "zero2.json")


@pytest.mark.parametrize("name", FILES)
def test_transformers_fills_every_auto(name):
    config = HfTrainerDeepSpeedConfig(str(FOLDER / name))
    run = SimpleNamespace(
        world_size=4,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=5,
        max_grad_norm=0.2,
        learning_rate=1e-6,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        save_on_each_node=False,
        fp16=False,
        fp16_full_eval=False,
        bf16=name != ON_CPU,
        bf16_full_eval=False,
        get_warmup_steps=lambda _: 0,
    )
    model = SimpleNamespace(config=SimpleNamespace(text_config=SimpleNamespace(hidden_size=2048)))
    config.trainer_config_process(run)
    config.trainer_config_finalize(run, model, num_training_steps=10)
    filled = dict(leaves(config.config))
    assert "auto" not in filled.values()
    assert filled["train_batch_size"] == 4 * 6 * 5
    assert filled["gradient_clipping"] == 0.2
    if name == "zero3_offload.json":  # as the README says of the 3B model
        assert filled["zero_optimization.reduce_bucket_size"] == 2048**2
        assert filled["zero_optimization.stage3_param_persistence_threshold"] == 20480


def test_a_tiny_model_is_partitioned_on_cpu():
    zero = load_zero_config(FOLDER / ON_CPU)["zero_optimization"]
    a_tiny_projection = 32 * 32
    assert zero["stage3_param_persistence_threshold"] < a_tiny_projection


@pytest.mark.parametrize("name", ["zero3_multinode.json", "zero3_zeropp.json"])
def test_a_second_copy_lies_in_whole_nodes(name):
    config = load_zero_config(FOLDER / name)
    run: dict[str, Any] = {
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 5,
        "max_grad_norm": 0.2,
    }
    for world_size in (1, 4, 8, 16):
        check_zero_config(config, **run, world_size=world_size, bf16=True, fp16=False)
    with pytest.raises(ConfigError, match="hpz_partition_size=8: must divide the 12 ranks"):
        check_zero_config(config, **run, world_size=12, bf16=True, fp16=False)


@pytest.mark.parametrize("name", FILES)
def test_values_are_written_as_whole_numbers(name):
    """A bucket of 5e8 is a float to JSON; the README and DeepSpeed speak of counts."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=2) + "\n"
    assert not any(isinstance(value, float) for _, value in leaves(json.loads(text)))
