"""Scored answers for tests of figures and reports."""

from grpo_stream.boxes import Size
from grpo_stream.grounding.scores import score_answer

IMAGE = Size(400, 300)  # its diagonal is 500


def answer(text, solution=(100, 100, 200, 200), *, key="k", image="i", size=IMAGE, **changes):
    """The score of ``text``, whose numbers are original pixels."""
    return score_answer(
        text,
        solution,
        key=key,
        prompt=f"Click {key}",
        scales=size,
        model_size=size,
        answer_frame="original",
        image=image,
        **changes,
    )
