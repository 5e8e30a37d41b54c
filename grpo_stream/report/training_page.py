"""The page of a training run: before and after, the reward's curve, held-out pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from grpo_stream.boxes import Point, Size
from grpo_stream.images import Pixels
from grpo_stream.report.charts import Bar, Series, Svg, bar_chart, line_chart
from grpo_stream.report.html_page import PictureCard, Report, Table
from grpo_stream.report.marked_image import Mark, draw_marks, encode_picture
from grpo_stream.targets import read_target

_SMOOTH_POINTS = 5
_CURVES = (
    ("Reward while training (sampled)", "mean reward", "reward"),
    ("Groups whose rewards are all equal: they teach nothing", "share", "frac_reward_zero_std"),
    ("Entropy of the policy, per answer token", "nats", "entropy"),
)
"""Title, y label and logged name of each curve."""


class ShownSample(Protocol):
    """What a picture needs of a sample; the stream's ``StreamSample`` has it all."""

    @property
    def key(self) -> str:
        """Unique name in the data set; an evaluation's predictions carry it too."""

    @property
    def pixels(self) -> Pixels:
        """uint8, shape (height, width, 3)."""

    @property
    def prompt(self) -> str:
        """The instruction."""

    @property
    def solution(self) -> tuple[Any, ...]:
        """Numbers of the true place, or of several, in the frame ``original``."""

    @property
    def scales(self) -> Size:
        """Width and height of the original image in pixels."""


@dataclass(frozen=True)
class TrainingRun:
    """What a run left behind, as read from its files."""

    title: str
    lead: str
    """What was trained on what, in a sentence or two."""
    before: Mapping[str, Any]
    """What an evaluation's ``results.json`` holds, before GRPO."""
    after: Mapping[str, Any]
    """The same of the same set after GRPO."""
    answers: Sequence[Mapping[str, Any]]
    """The lines of ``answers.jsonl`` after GRPO."""
    log_history: Sequence[Mapping[str, Any]]
    """transformers' ``trainer_state.json``: one mapping per logging step."""
    samples: Sequence[ShownSample]
    """Held-out samples to show, at the model's size."""
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
    """Wall time by phase."""
    notes: Sequence[str] = ()


def training_report(run: TrainingRun) -> Report:
    """Lays a run out as a page."""
    before, after = (
        float(results["figures"]["point_accuracy"]["value"]) for results in (run.before, run.after)
    )
    num_samples = int(run.after["figures"]["num_samples"])
    failures = sum(run.after["failures"].values())
    return Report(
        title=run.title,
        lead=run.lead,
        facts=[
            (
                "held-out accuracy, before and after",
                f"{before:.1%} \N{RIGHTWARDS ARROW} {after:.1%}",
            ),
            ("gain", f"{after - before:+.1%}"),
            ("held-out samples", f"{num_samples}"),
            ("unreadable answers", f"{failures}"),
            ("wall time", f"{sum(run.seconds.values()):.0f} s"),
        ],
        charts=_charts(run),
        pictures=[_picture(sample, run.answers) for sample in run.samples],
        picture_title="Held-out images: the true box and the point that the policy answers",
        tables=[
            Table("Seconds by phase", [(name, f"{s:.1f}") for name, s in run.seconds.items()]),
            Table("Settings", [(name, str(value)) for name, value in run.settings.items()]),
            Table("Versions", list(run.versions.items())),
        ],
        notes=run.notes,
    )


def _charts(run: TrainingRun) -> list[Svg]:
    charts = [
        bar_chart(
            "Held-out accuracy (greedy, point in box)",
            [_bar("before GRPO", run.before), _bar("after GRPO", run.after)],
            note="bars: 95 % bootstrap interval",
        )
    ]
    for title, y_label, name in _CURVES:
        curve = _series(run.log_history, name)
        if curve.xs:
            charts.append(
                line_chart(
                    title,
                    [curve],
                    x_label="global step",
                    y_label=y_label,
                    smooth=_SMOOTH_POINTS,
                    y_range=(0.0, 1.0),
                )
            )
    return charts


def _bar(label: str, results: Mapping[str, Any]) -> Bar:
    accuracy = results["figures"]["point_accuracy"]
    value, low, high = (accuracy[end] for end in ("value", "low", "high"))
    # A set of one image has no interval.
    return Bar(label, value, 0.0 if low is None else low, 1.0 if high is None else high)


def _series(log_history: Sequence[Mapping[str, Any]], name: str) -> Series:
    points = [(entry["step"], entry[name]) for entry in log_history if entry.get(name) is not None]
    return Series(name, [x for x, _ in points], [y for _, y in points])


def _picture(sample: ShownSample, answers: Sequence[Mapping[str, Any]]) -> PictureCard:
    (prediction,) = [answer for answer in answers if answer["key"] == sample.key]
    height, width = sample.pixels.shape[:2]
    original, shown = Size(*sample.scales), Size(width, height)
    target = read_target(sample.solution).scaled(original, shown, "model")
    marks = [Mark(shape, "truth") for shape in target.shapes] or [Mark(None, "truth")]
    is_correct = bool(prediction["is_hit"])
    if prediction["point"] is not None:
        point = Point(*prediction["point"]).scaled(original, shown, "model")
        marks.append(Mark(point, "right" if is_correct else "wrong"))
    caption = f"{sample.prompt} \N{RIGHTWARDS ARROW} {prediction['text'] or '(no answer)'}"
    picture = encode_picture(draw_marks(sample.pixels, marks))
    return PictureCard(picture, caption, is_correct)
