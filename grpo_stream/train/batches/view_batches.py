"""Batches of view groups: one prompt, V views of it, G/V completions of each.

In a batch each view is an entry like a prompt, the V views of a prompt one behind the other, and
``num_views`` says so. A prefix is shared within a view; advantages are over the whole group, as
its rows are neighbours.
"""

from collections.abc import Callable, Sequence
from typing import Any

from grpo_stream.errors import ConfigError
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sample_views import VIEW_FIELD, OpenViews, SampleViews
from grpo_stream.train.batches.collate import Batch

NUM_VIEWS = "num_views"
"""Of a batch; one without it has a single view of each prompt."""


class ViewCollator:
    """Collates views as samples, and says how many each prompt has.

    Args:
        collate: From samples to a batch.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Batch]) -> None:
        self._collate = collate

    def __call__(self, features: Sequence[Any]) -> Batch:
        """See the class; samples that are no views are collated as ever."""
        if not isinstance(features[0], SampleViews):
            return self._collate(features)
        views = [view for feature in features for view in feature.views]
        return self._collate(views) | {NUM_VIEWS: len(features[0].views)}


def views_in(batch: Batch) -> int:
    """How many views of each prompt a batch has."""
    return int(batch.get(NUM_VIEWS, 1))


def views_of(stream: PromptStream) -> int:
    """How many views a stream opens."""
    opens = stream.open_sample
    return opens.num_views if isinstance(opens, OpenViews) else 1


def check_views(batch: Batch) -> None:
    """Checks that each prompt has all of its views, in their order.

    Raises:
        RuntimeError: naming the first prompt that has not.
    """
    num_views = views_in(batch)
    if num_views == 1:
        return
    for start in range(0, len(batch["key"]), num_views):
        keys = batch["key"][start : start + num_views]
        numbers = [extra.get(VIEW_FIELD) for extra in batch["extra"][start : start + num_views]]
        if len(set(keys)) != 1 or numbers != list(range(num_views)):
            raise RuntimeError(f"views {numbers} of {keys} are not those of one prompt")


def check_view_settings(num_views: int, num_generations: int) -> None:
    """Checks the setting ``num_views``.

    Raises:
        ConfigError: it cannot work, with a value that does.
    """
    if num_views < 1:
        raise ConfigError("num_views", num_views, "must be at least 1, for example 2")
    if num_views == 1:
        return
    if num_generations % num_views:
        fits = [n for n in range(1, num_generations + 1) if num_generations % n == 0]
        expected = f"must divide num_generations={num_generations}: one of {fits}"
        raise ConfigError("num_views", num_views, expected)
