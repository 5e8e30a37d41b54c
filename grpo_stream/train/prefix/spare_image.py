"""A pass without images calls the vision tower all the same, where other ranks have images.

Under ZeRO-3 weights are gathered by all ranks, module by module, in the order of the calls, and
gradients are summed over all of them: a rank whose prompts hold no image has to call what the
others call, where they call it. So right behind the word embeddings, where a model looks at its
images, the tower is run on a small image, and nothing times its features is added.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.base_model import base_model
from grpo_stream.train.prefix.backbone import accepted_media


@contextmanager
def tower_is_called(model: Any, groups: PromptGroups) -> Iterator[None]:
    """Within it, the first pass of ``groups`` calls the vision tower, images or not.

    Args:
        model: Wrapped or not.
        groups: What it computes; without ``spare``, with images or with their features
            nothing is changed.
    """
    spare = groups.spare
    if spare is None or groups.has_images or groups.image_features is not None:
        yield
        return
    base = base_model(model)
    media = accepted_media(model, spare)

    def look(_module: Any, _inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        handle.remove()  # a model looks at its images once, and generates behind them
        encoded = base.get_image_features(**media, return_dict=True)
        layers = [encoded.pooler_output, *(getattr(encoded, "deepstack_features", None) or [])]
        nothing = [0 * features.sum() for layer in layers for features in layer]
        return embedded + torch.stack(nothing).sum().to(embedded.dtype)

    handle = base.get_input_embeddings().register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
