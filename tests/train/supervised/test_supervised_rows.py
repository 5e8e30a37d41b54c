"""An image paid once, beside a row for each of its records."""

from dataclasses import replace

import pytest
import torch

from grpo_stream.errors import RecordError
from grpo_stream.train.supervised.supervised_batches import SupervisedCollator
from grpo_stream.train.supervised.supervised_rows import packed_inputs, plain_inputs
from tests.train.supervised.test_supervised_batches import answers
from tests.train.support import (
    CPU,
    load_model,
    make_collator,
    make_mixed_stream,
    make_stream_sample,
)

WORDS = ["Click on the red circle", "the blue square", "Click on it, it is far down on the left"]


@pytest.fixture(scope="module")
def collate(processor):
    return SupervisedCollator(make_collator(processor), answers(), 8)


@pytest.fixture(scope="module")
def groups():
    """Three records over one image, one over another of another size, two over a third."""
    return [
        tuple(
            make_stream_sample(number, size, prompt=words, solution=(1, 2, 9 * turn + 9, 30))
            for turn, words in enumerate(WORDS[:count])
        )
        for number, (size, count) in enumerate([((56, 84), 3), ((84, 56), 1), ((56, 56), 2)])
    ]


def loss_and_gradients(model, inputs):
    """Of the sum over the answers' tokens; the numbers of trl's fused head."""
    model.zero_grad()
    output = model(**inputs, fused_lm_head=True)
    loss = -output.log_probs.sum()
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return output.log_probs[output.label_mask], gradients


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_same_log_probabilities_and_gradients(tiny_folder, collate, groups, checkpointing):
    model = load_model(tiny_folder)
    pad = collate.prompts.processor.tokenizer.pad_token_id
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    (packed,) = collate(groups)["micro_batches"]
    inputs = packed_inputs(model, packed, pad, CPU)
    assert len(inputs["input_ids"]) == 1
    assert inputs["shift_labels"].ne(-100).sum() == packed["labels"].ne(-100).sum()
    log_probs, gradients = loss_and_gradients(model, inputs)

    alone: list[torch.Tensor] = []
    sums: dict[str, torch.Tensor] = {}
    for sample in (sample for group in groups for sample in group):
        (row,) = collate([sample])["micro_batches"]
        found, own = loss_and_gradients(model, plain_inputs(model, row, pad, CPU))
        alone.append(found)
        sums = {name: sums.get(name, 0) + gradient for name, gradient in own.items()}
    torch.testing.assert_close(log_probs, torch.cat(alone), rtol=0, atol=1e-5)
    assert gradients.keys() == sums.keys()
    for name, expected in sums.items():
        assert (gradients[name] - expected).norm() <= 1e-5 * expected.norm() + 1e-7, name


def test_padded_rows_hold_the_same(tiny_folder, collate, groups):
    model = load_model(tiny_folder)
    pad = collate.prompts.processor.tokenizer.pad_token_id
    (batch,) = collate(groups)["micro_batches"]
    packed, padded = packed_inputs(model, batch, pad, CPU), plain_inputs(model, batch, pad, CPU)
    assert len(padded["input_ids"]) == 6
    found, expected = loss_and_gradients(model, packed), loss_and_gradients(model, padded)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)


def test_a_question_sees_no_other(tiny_folder, collate, groups):
    """Another answer to the first question leaves the others' log-probabilities as they are."""
    model = load_model(tiny_folder)
    pad = collate.prompts.processor.tokenizer.pad_token_id
    first, *others = groups[0]
    changed = (make_stream_sample(0, (56, 84), prompt=WORDS[1], solution=(0, 0, 2, 2)), *others)
    before, after = (
        loss_and_gradients(model, packed_inputs(model, part, pad, CPU))[0]
        for part in (collate([one])["micro_batches"][0] for one in ((first, *others), changed))
    )
    torch.testing.assert_close(before[-12:], after[-12:], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:4], after[:4], atol=1e-3)


def test_any_number_of_images(tiny_folder, processor):
    """Records of one, no and two images: each is taught its own answer, packed or alone."""
    model = load_model(tiny_folder)
    samples = [
        replace(one, extra=one.extra | {"words": f"({number}, 3)"})
        for number, one in enumerate(make_mixed_stream(processor, (0, 1, 2)))
    ]
    collate = SupervisedCollator(make_collator(processor), answers(answer_key="words"), 8)
    pad = processor.tokenizer.pad_token_id
    (batch,) = collate(samples)["micro_batches"]
    found, _ = loss_and_gradients(model, packed_inputs(model, batch, pad, CPU))
    alone = [
        loss_and_gradients(model, plain_inputs(model, row, pad, CPU))[0]
        for row in (collate([one])["micro_batches"][0] for one in samples)
    ]
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-5)
    with pytest.raises(RecordError, match=r"no_answer: 000001 has no images and asks for no place"):
        SupervisedCollator(make_collator(processor), answers(), 8)(samples)
