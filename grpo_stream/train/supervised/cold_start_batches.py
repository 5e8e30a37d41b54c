"""What a cold start teaches: prompts with their answers, as a model takes them."""

from collections.abc import Sequence

import torch

from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.train.batches.collate import IGNORED_LABEL, Batch, PromptCollator
from grpo_stream.train.models.patches import image_inputs
from grpo_stream.train.supervised.taught_answers import TaughtAnswers


class ColdStartCollator:
    """Prompts with the answer that is taught, for a supervised cold start.

    Args:
        prompts: Encodes the prompts.
        snap: Answers are rounded to multiples of this; see ``prompts.answer_text``.

    Returns a dict of texts, padded on the right: ``input_ids``, ``attention_mask``,
    ``mm_token_type_ids`` and ``labels`` (the answer and the end of turn; -100 elsewhere), int64,
    shape (prompts, longest); ``pixel_values``, ``patch_rule`` and ``image_grid_thw`` as in the
    prompts' batch. :func:`model_inputs` makes of it what a model takes.
    """

    def __init__(self, prompts: PromptCollator, snap: int = 1) -> None:
        self.prompts = prompts
        self._answers = TaughtAnswers(prompts.template, prompts.answer_frame, snap=snap)

    def __call__(self, samples: Sequence[StreamSample]) -> Batch:
        """See the class."""
        batch = self.prompts(samples)
        tokenizer = self.prompts.processor.tokenizer
        rows, labels, types = [], [], []
        for sample, ids, kinds in zip(
            samples, batch["prompt_ids"], batch["mm_token_type_ids"], strict=True
        ):
            text = self._answers.of(sample) + tokenizer.eos_token
            answer = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
            rows.append(torch.cat([ids, answer]))
            labels.append(torch.cat([torch.full_like(ids, IGNORED_LABEL), answer]))
            types.append(torch.cat([kinds, torch.zeros_like(answer)]))
        return {
            "input_ids": _pad_right(rows, tokenizer.pad_token_id),
            "attention_mask": _pad_right([torch.ones_like(row) for row in rows], 0),
            "mm_token_type_ids": _pad_right(types, 0),
            "labels": _pad_right(labels, IGNORED_LABEL),
            **{name: batch[name] for name in ("pixel_values", "patch_rule", "image_grid_thw")},
        }


def model_inputs(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """The arguments of a model for a batch of :class:`ColdStartCollator`, on ``device``."""
    texts = ("input_ids", "attention_mask", "mm_token_type_ids", "labels")
    pixel_values, image_grid_thw = image_inputs(batch, device)
    images = {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw}
    return {
        **{name: batch[name].to(device) for name in texts},
        **(images if len(image_grid_thw) else {}),
    }


def _pad_right(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
