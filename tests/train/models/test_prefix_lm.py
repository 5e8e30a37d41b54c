"""PaliGemma, whose prompt sees itself in both directions: its groups are plain, and right."""

import pytest
import torch
from PIL import Image
from trl.trainer.utils import add_fused_lm_head

from grpo_stream.errors import ConfigError
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.models.tiny import make_tiny_policy
from grpo_stream.train.prefix.ways import PLAIN
from tests.train.models.test_families import make_args, train_ours
from tests.train.prefix.test_packing import make_completions
from tests.train.support import TASK_TEXTS, load_model, make_groups

pytestmark = pytest.mark.slow(reason="a training, and a model for each of three tests")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("paligemma")
    return make_tiny_policy(made, TASK_TEXTS, family="paligemma")


@pytest.fixture
def model(folder):
    made = load_model(folder, is_prepared=False)
    add_fused_lm_head(made, outputs=("log_probs", "entropy"))
    return made.eval()


def test_rows_are_those_of_its_own_processor(folder, model):
    """By the processor's own rule for training: prompt and ``suffix``, the answer."""
    processor = load_processor(folder)
    asked = {"images": Image.new("RGB", (56, 56)), "text": ["<image>Click"], "return_tensors": "pt"}
    prompt, whole = processor(**asked), processor(**asked, suffix=["(8, 16)"])
    (ids,), types = prompt["input_ids"], prompt["token_type_ids"]
    answer = whole["input_ids"][:, len(ids) :]
    media = {"pixel_values": prompt["pixel_values"]}
    groups = PromptGroups([ids], [types[0]], [media], [1], types_name="token_type_ids")
    found, _ = PLAIN.score(model, groups, answer, torch.ones_like(answer), compute_entropy=False)
    assert whole.pop("labels")[0, len(ids) :].tolist() == answer[0].tolist()
    with torch.no_grad():
        log_probs = model(**whole).logits[0, len(ids) - 1 : -1].log_softmax(dim=-1)
    expected = log_probs.gather(1, answer[0, :, None])[:, 0]
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)


def test_an_answer_does_not_see_what_comes(folder, model):
    groups = make_groups(load_processor(folder), [(56, 56)], 2)
    ids, mask = make_completions(groups, [6, 6])
    ids[1] = ids[0]
    ids[1, -1] += 1
    found, _ = PLAIN.score(model, groups, ids, mask, compute_entropy=False)
    torch.testing.assert_close(found[0, :-1], found[1, :-1], rtol=0, atol=1e-6)


def test_its_groups_are_plain(folder, shapes, tmp_path, caplog):
    (loss, changes), *_ = train_ours(folder, shapes, make_args(tmp_path))
    assert loss != 0
    assert all(change.isfinite().all() for change in changes.values())
    assert any(change.any() for change in changes.values())
    assert "sees itself in both directions" in caplog.text
    with pytest.raises(ConfigError, match="without its last token it is another"):
        train_ours(folder, shapes, make_args(tmp_path), shared_prefix="forked")
