"""From a batch's samples to what the loader's caller wants, whatever a single sample does to it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from grpo_stream.errors import ConfigError
from grpo_stream.stream.prompt_stream import PromptStream, SlotPlace
from grpo_stream.stream.stream_sample import StreamSample

T = TypeVar("T")


def transform_batch(
    stream: PromptStream,
    transform: Callable[[list[StreamSample]], T],
    slots: Sequence[SlotPlace],
    samples: list[StreamSample],
) -> T:
    """The batch; a sample that ``transform`` throws at is bad, and another stands in.

    Args:
        stream: Gives what stands in, and counts.
        transform: From samples to a batch, for example a collator.
        slots: Of the batch.
        samples: One for each slot.

    Raises:
        Exception: of ``transform``, where single samples are not at fault.
        BadSamplesError: too many samples are bad.
    """
    try:
        return transform(samples)
    except (ConfigError, MemoryError):
        raise  # the settings' fault, or the machine's
    except Exception:
        errors = [_thrown_at(transform, sample) for sample in samples]
        if not any(errors) or (all(errors) and len(samples) > 1):
            raise  # the fault is not in single samples
    others = [
        sample if error is None else stream.stand_in(slot, sample.key, error)
        for slot, sample, error in zip(slots, samples, errors, strict=True)
    ]
    return transform_batch(stream, transform, slots, others)


def _thrown_at(
    transform: Callable[[list[StreamSample]], object], sample: StreamSample
) -> Exception | None:
    try:
        transform([sample])
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is: that is the question
        return error
    return None
