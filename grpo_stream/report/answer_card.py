"""One answer of an evaluation as a card: picture, closer look, verdict and words."""

from PIL import Image

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.report.gallery import GallerySample, card_html
from grpo_stream.report.picks import Answer
from grpo_stream.report.pictures import Mark, Role


def answer_card(answer: Answer, image: Image.Image) -> str:
    """A sample with its true place and what was answered.

    Args:
        answer: The sample's line of ``answers.jsonl``.
        image: The sample's image at any size, RGB.
    """
    original, shown = Size(*answer["scales"]), Size(*image.size)

    def on_image(shape: Box | Point) -> Box | Point:
        return shape.scaled(original, shown, "original")

    role: Role = "right" if answer["is_hit"] else "wrong"
    marks = []
    if answer["box"] is not None:
        marks.append(Mark(on_image(Box(*answer["box"])), role))
    if answer["point"] is not None:
        marks.append(Mark(on_image(Point(*answer["point"])), role))
    solution = answer["solution"]
    truth = Point(*solution) if len(solution) == 2 else Box(*solution)
    facts = [("answer", answer["text"] or "(nothing)"), ("size", answer["size"])]
    if answer["iou"] is not None and answer["box"] is not None:
        facts.append(("IoU", f"{answer['iou']:.3f}"))
    facts += [(name.rpartition(".")[2], str(value)) for name, value in answer["fields"].items()]
    return card_html(
        GallerySample(
            title=answer["key"],
            prompt=answer["prompt"],
            images=[image],
            shapes=[(0, on_image(truth))],
            facts=facts,
            answers=marks,
            verdict=(role, _verdict(answer)),
        )
    )


def _verdict(answer: Answer) -> str:
    if answer["failure"] is not None:
        return f"unreadable: {answer['failure'].replace('_', ' ')}"
    where = f"{answer['distance']:.1%} of the diagonal from the centre"
    if answer["is_hit"] is None:
        return f"answered, {where}"
    beyond = ", outside of the image" if answer["is_outside"] else ""
    return f"{'hit' if answer['is_hit'] else 'miss'}, {where}{beyond}"
