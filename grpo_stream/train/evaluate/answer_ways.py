"""How a sample is answered: at once, with a closer look, or by a vote of sampled answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_stream.grounding.cases import Case
from grpo_stream.grounding.evaluation.answer_metrics import with_first_look, with_samples
from grpo_stream.grounding.evaluation.region_vote import voted_answer
from grpo_stream.grounding.frames import View
from grpo_stream.grounding.scores import ScoredAnswer
from grpo_stream.images import DEFAULT_LIMITS, ImageLimits
from grpo_stream.shards.sample import Sample
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.targets import target_of
from grpo_stream.train.batches.collate import one_or_list
from grpo_stream.train.evaluate.answer_prompts import score
from grpo_stream.train.evaluate.policy_texts import Texts
from grpo_stream.train.evaluate.second_look import zoom_in


@dataclass(frozen=True)
class AnswerWay:
    """Greedily and at once, unless told otherwise; one of the two at most."""

    zoom: float | None = None
    """A second answer is asked of a crop of a ``zoom``-th of the image's sides."""
    num_samples: int = 1
    """Answers that are sampled; the densest place wins."""
    temperature: float = 1.0
    """Of those."""
    seed: int = 0
    """Of those."""


class Answerer:
    """Answers batches in one way, and scores the answers.

    What a batch is answered depends on its samples and its place in the set alone, not on the
    rank or on what was answered before.

    Args:
        texts: What the policy answers.
        way: How.
        point_radius: See :func:`~grpo_stream.grounding.scores.score_answer`.
        fields: The record's own fields to keep beside each answer.
        limits: What an image may be at most.
    """

    def __init__(
        self,
        texts: Texts,
        way: AnswerWay,
        *,
        point_radius: float | None = None,
        fields: Sequence[str] = (),
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        self._texts, self._collator, self._way = texts, texts.collator, way
        self._radius, self._fields, self._limits = point_radius, fields, limits

    def __call__(
        self, samples: Sequence[StreamSample], stored: Sequence[Sample], first: int
    ) -> list[ScoredAnswer]:
        """One scored answer per sample.

        Args:
            samples: As the model sees them.
            stored: The same, at rest.
            first: The batch's place in the set.
        """
        if self._way.num_samples > 1:
            return self._voted(samples, first)
        answers = self._score(samples, self._texts.greedy(samples))
        return answers if self._way.zoom is None else self._look_again(samples, stored, answers)

    def _voted(self, samples: Sequence[StreamSample], first: int) -> list[ScoredAnswer]:
        way = self._way
        seed = way.seed, first
        rounds = self._texts.sampled(samples, way.num_samples, way.temperature, seed)
        scored = [self._score(samples, texts) for texts in rounds]
        answers = []
        for sample, texts, given in zip(
            samples, zip(*rounds, strict=True), zip(*scored, strict=True), strict=True
        ):
            winner = voted_answer([self._case(sample, text) for text in texts])
            answers.append(with_samples(given[winner], given))
        return answers

    def _case(self, sample: StreamSample, text: str) -> Case:
        target = target_of(sample.solution, sample.extra, len(sample.images))
        frame = self._collator.answer_frame
        sizes = one_or_list(sample.original_sizes), one_or_list(sample.model_sizes)
        return Case(text, target, *sizes, frame)

    def _look_again(
        self,
        samples: Sequence[StreamSample],
        stored: Sequence[Sample],
        answers: list[ScoredAnswer],
    ) -> list[ScoredAnswer]:
        """The answers to closer looks, where the first one is a place and the second one is, too.

        Of several images the look is at the one that the answer is read in; a sample that says of
        none where its place is gets no second look. Where all of several places are wanted, a look
        at one of them would lose the others.
        """
        assert self._way.zoom is not None  # noqa: S101 - only called with a zoom
        places = [
            number
            for number, answer in enumerate(answers)
            if answer.point is not None
            and not answer.is_refusal
            and answer.wanted != "all"
            and (answer.num_images == 1 or answer.solution_images)
        ]
        if not places:
            return answers
        looks: list[tuple[StreamSample, View]] = []
        for number in places:
            point = answers[number].point or (0.0, 0.0)
            rule = self._collator.rule
            image = answers[number].image_number
            shown = samples[number], stored[number], point, self._way.zoom, rule, self._limits
            looks.append(zoom_in(*shown, image))
        texts = self._texts.greedy([crop for crop, _ in looks])
        done = list(answers)
        for number, text, (crop, view) in zip(places, texts, looks, strict=True):
            (second,) = self._score([samples[number]], [text], view, crop)
            region = (view.region.x1, view.region.y1, view.region.x2, view.region.y2)
            chosen = answers[number] if second.point is None or second.is_refusal else second
            done[number] = with_first_look(chosen, answers[number], region)
        return done

    def _score(
        self,
        samples: Sequence[StreamSample],
        texts: Sequence[str],
        view: View | None = None,
        crop: StreamSample | None = None,
    ) -> list[ScoredAnswer]:
        frame = self._collator.answer_frame
        shown = None if crop is None else one_or_list(crop.model_sizes)
        return score(samples, texts, frame, self._radius, self._fields, view=view, shown=shown)
