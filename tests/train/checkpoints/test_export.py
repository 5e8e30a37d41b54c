import shutil

import pytest
import torch

from grpo_stream.errors import CheckpointError, ConfigError
from grpo_stream.train.checkpoints.export import export
from grpo_stream.train.checkpoints.whole_checkpoint import seal
from grpo_stream.train.models.policy import load_policy
from grpo_stream.train.models.processor import load_processor
from tests.launch.support import load_script


@pytest.fixture
def checkpoint(tiny_folder, tmp_path):
    """What the trainer writes without DeepSpeed, as far as an export looks at it."""
    folder = tmp_path / "out/checkpoint-3"
    shutil.copytree(tiny_folder, folder)
    (folder / "optimizer.pt").write_bytes(b"moments")
    seal(folder, num_ranks=1, zero_stage=None)
    return folder


def test_whole_weights_are_copied(checkpoint, tmp_path, capsys):
    target = tmp_path / "models/plain"
    words = ["--checkpoint", str(checkpoint), "--to", str(target)]
    assert load_script("export").main(words) == 0
    assert "plain: whole weights" in capsys.readouterr().out
    names = {path.name for path in target.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not names & {"optimizer.pt", "complete.json"}
    model, expected = (load_policy(folder, dtype="auto") for folder in (target, checkpoint))
    ids = torch.arange(5)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)
    processors = [load_processor(folder).tokenizer for folder in (target, checkpoint)]
    assert processors[0].get_vocab() == processors[1].get_vocab()
    assert processors[0].chat_template == processors[1].chat_template
    assert [path.name for path in target.parent.iterdir()] == ["plain"]


def test_another_type_is_asked_for(checkpoint, tmp_path, capsys):
    target = tmp_path / "half"
    words = ["--checkpoint", str(checkpoint), "--to", str(target), "--dtype", "bfloat16"]
    assert load_script("export").main(words) == 0
    assert "whole weights, in bfloat16" in capsys.readouterr().out
    model, expected = (load_policy(folder, dtype="auto") for folder in (target, checkpoint))
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, theirs.to(torch.bfloat16))
    assert (target / "tokenizer.json").is_file()


def test_a_lora_adapter_is_merged(checkpoint, tiny_folder, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(load_policy(tiny_folder, dtype="auto"), config).eval()
    ids = torch.arange(5)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint)
    seal(checkpoint, num_ranks=1, zero_stage=None)
    assert "merged into" in export(checkpoint, tmp_path / "merged")
    merged = load_policy(tmp_path / "merged", dtype="auto").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_folder_may_be_empty_but_not_in_use(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    export(checkpoint, tmp_path / "empty")
    for used in (tmp_path / "empty", checkpoint / "config.json"):
        with pytest.raises(ConfigError, match="is there already"):
            export(checkpoint, used)


def test_a_partial_checkpoint_is_refused(checkpoint, tmp_path):
    (checkpoint / "complete.json").unlink()
    with pytest.raises(CheckpointError, match="is no whole checkpoint"):
        export(checkpoint, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_without_weights_or_with_a_full_disk_nothing_is_left(checkpoint, tmp_path, monkeypatch):
    def copy(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", copy)
        with pytest.raises(OSError, match="No space left"):
            export(checkpoint, tmp_path / "models/plain")
    assert list((tmp_path / "models").iterdir()) == []
    (checkpoint / "model.safetensors").unlink()
    seal(checkpoint, num_ranks=1, zero_stage=None)
    with pytest.raises(CheckpointError, match="holds no model"):
        export(checkpoint, tmp_path / "models/plain")
