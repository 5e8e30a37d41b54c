"""The page of a training run and its control: accuracies, curves, held-out pictures."""

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
    ("Groups whose rewards are all equal", "share", "frac_reward_zero_std"),
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
    """What a run and its control left behind, as read from their files."""

    title: str
    lead: str
    """What was trained on what, in a sentence or two."""
    evaluations: Mapping[str, Mapping[str, Any]]
    """Name -> what an evaluation's ``results.json`` holds, all of the same set: before GRPO, after
    the control if there is one, and last after GRPO."""
    field: str
    """Field of the records that tells apart the parts of that set."""
    parts: Mapping[str, str]
    """Value of the field -> what the page calls the part; the first one is the page's number."""
    answers: Sequence[Mapping[str, Any]]
    """The lines of ``answers.jsonl`` after GRPO."""
    log_histories: Mapping[str, Sequence[Mapping[str, Any]]]
    """Name -> transformers' ``trainer_state.json``: one mapping per logging step; the run's, and
    its control's if there is one."""
    samples: Sequence[ShownSample]
    """Held-out samples to show, at the model's size."""
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
    """Wall time by phase."""
    notes: Sequence[str] = ()


def training_report(run: TrainingRun) -> Report:
    """Lays a run out as a page."""
    before, *_, after = run.evaluations.values()
    first = next(iter(run.parts))
    low, high = (part_accuracy(results, run.field, first)["value"] for results in (before, after))
    failures = sum(after["failures"].values())
    return Report(
        title=run.title,
        lead=run.lead,
        facts=[
            ("held-out accuracy, before and after", f"{low:.1%} \N{RIGHTWARDS ARROW} {high:.1%}"),
            ("gain", f"{high - low:+.1%}"),
            ("held-out questions", f"{after['figures']['num_samples']}"),
            ("unreadable answers", f"{failures}"),
            ("wall time", f"{sum(run.seconds.values()):.0f} s"),
        ],
        charts=_charts(run),
        pictures=[_picture(sample, run.answers) for sample in run.samples],
        picture_title="Held-out images: the true box and the point that the policy answers",
        tables=[
            _accuracy_table(run),
            Table("Seconds by phase", [(name, f"{s:.1f}") for name, s in run.seconds.items()]),
            Table("Settings", [(name, str(value)) for name, value in run.settings.items()]),
            Table("Versions", list(run.versions.items())),
        ],
        notes=run.notes,
    )


def part_accuracy(results: Mapping[str, Any], field: str, value: str) -> dict[str, Any]:
    """``point_accuracy`` of the samples of an evaluation whose ``field`` has ``value``.

    Returns:
        ``value``, ``low``, ``high`` and ``num_samples``.
    """
    (part,) = [part for part in results["slices"][field] if part["name"] == value]
    accuracy: dict[str, Any] = part["point_accuracy"]
    return accuracy


def _charts(run: TrainingRun) -> list[Svg]:
    charts = [
        bar_chart(
            f"{words}: accuracy",
            [
                _bar(name, part_accuracy(results, run.field, value))
                for name, results in run.evaluations.items()
            ],
            note="greedy answers, point in box; 95 % bootstrap intervals",
        )
        for value, words in run.parts.items()
    ]
    for title, y_label, name in _CURVES:
        curves = [_series(label, log, name) for label, log in run.log_histories.items()]
        if curves[0].xs:
            charts.append(
                line_chart(
                    title,
                    curves,
                    x_label="global step",
                    y_label=y_label,
                    smooth=_SMOOTH_POINTS,
                    y_range=(0.0, 1.0),
                )
            )
    return charts


def _accuracy_table(run: TrainingRun) -> Table:
    rows = []
    for value, words in run.parts.items():
        found = [part_accuracy(one, run.field, value) for one in run.evaluations.values()]
        rows.append((words, *(f"{one['value']:.1%}" for one in found)))
    return Table("Accuracy on held-out images", rows, ("", *run.evaluations))


def _bar(label: str, accuracy: Mapping[str, Any]) -> Bar:
    value, low, high = (accuracy[end] for end in ("value", "low", "high"))
    # A set of one image has no interval.
    return Bar(label, value, 0.0 if low is None else low, 1.0 if high is None else high)


def _series(label: str, log_history: Sequence[Mapping[str, Any]], name: str) -> Series:
    points = [(entry["step"], entry[name]) for entry in log_history if entry.get(name) is not None]
    return Series(label, [x for x, _ in points], [y for _, y in points])


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
