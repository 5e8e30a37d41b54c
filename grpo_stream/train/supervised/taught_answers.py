"""The text that supervised fine-tuning teaches as the answer to a prompt."""

from dataclasses import dataclass

from grpo_stream.boxes import Frame, Point
from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.grounding.frames import from_original
from grpo_stream.grounding.prompts import PromptTemplate, answer_text, refusal_text
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.targets import bounds_of, target_of


@dataclass(frozen=True)
class TaughtAnswers:
    """Writes the answer of a sample: its solution, or a text of the record's own.

    Raises:
        ConfigError: the template asks for thoughts, and nothing says where they are; or ``snap`` is
            below 1.
    """

    template: PromptTemplate
    """Its ``answer`` is the form of the solution: point, box in JSON, tool call, two corners."""
    frame: Frame
    """That the model answers in."""
    answer_key: str | None = None
    """Field of the record that holds the whole answer; None renders the solution."""
    snap: int = 1
    """Rendered numbers are rounded to multiples of this."""

    def __post_init__(self) -> None:
        if self.snap < 1:
            raise ConfigError("snap", self.snap, "must be at least 1, for example 1")
        if self.template.thinking and self.answer_key is None:
            expected = (
                "asks for thoughts, which a solution does not hold: name the field that has them "
                "as answer_key, or take the template without _thinking, for example point"
            )
            raise ConfigError("prompt_template", "thinking", expected)

    def of(self, sample: StreamSample) -> str:
        """The answer, without the end of turn.

        Raises:
            RecordError: cause ``no_answer``: the record has no text under ``answer_key``, or it
                asks for no place and there is no ``answer_key``.
            ConfigError: a box is asked for, and the solution is a point.
        """
        if self.answer_key is not None:
            text = sample.extra.get(self.answer_key)
            if not isinstance(text, str) or not text.strip():
                detail = f"{sample.key}: no text under answer_key={self.answer_key!r}: {text!r}"
                raise RecordError("no_answer", detail)
            return text.replace("<|", "< |")  # as in prompts: no control words from a record
        kind, frame = self.template.answer, self.frame
        target = target_of(sample.solution, sample.extra, len(sample.images))
        if not target.asks_place:
            detail = f"{sample.key} has no images and asks for no place: name its answer's field"
            raise RecordError("no_answer", f"{detail} as answer_key")
        if target.is_absent:
            return refusal_text(kind)
        first = target.shapes[0]  # any of several is right, and a template has room for one
        number = target.image_of(0)
        model, original = sample.model_sizes[number], sample.original_sizes[number]
        sizes = {"model_size": model, "original_size": original}
        if isinstance(first, Point):
            return answer_text(kind, from_original(first, frame, **sizes), self.snap)
        return answer_text(kind, from_original(bounds_of(first), frame, **sizes), self.snap)
