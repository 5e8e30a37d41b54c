"""From a planned evaluation to its files: answering, gathering, figures, page."""

import importlib.metadata
import platform
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import grpo_stream
from grpo_stream.grounding.evaluation.answer_metrics import first_look_of
from grpo_stream.grounding.evaluation.evaluation_files import write_run
from grpo_stream.grounding.evaluation.evaluation_metrics import compare_answers, evaluation_figures
from grpo_stream.grounding.scores import ScoredAnswer
from grpo_stream.report.answer_cards import answer_card, pick_answers
from grpo_stream.report.evaluation_page import evaluation_page
from grpo_stream.stream.ordered_reader import OrderedReader, read_at
from grpo_stream.stream.stream_sample import StreamSample
from grpo_stream.train.batches.collate import PromptCollator
from grpo_stream.train.evaluate.answer_prompts import (
    Evaluation,
    answer_share,
    check_bad_samples,
    gather_shares,
    join_ranks,
)
from grpo_stream.train.evaluate.answer_ways import Answerer, AnswerWay
from grpo_stream.train.evaluate.engine_texts import EngineTexts, make_engine
from grpo_stream.train.evaluate.evaluation_arguments import EvaluateArguments
from grpo_stream.train.evaluate.evaluation_plan import EvaluationPlan
from grpo_stream.train.evaluate.policy_texts import PolicyTexts, Texts
from grpo_stream.train.models.policy import load_policy
from grpo_stream.train.models.vision_attention import batch_windows
from grpo_stream.train.setup.open_data import image_limits

_BOX_FORMS = ("box", "box_pairs")


def run_evaluation(plan: EvaluationPlan) -> tuple[dict[str, Any], Path] | None:
    """Answers this rank's share; rank 0 then writes the results.

    Returns:
        On rank 0 what ``results.json`` holds and the path of the page; None on the others.

    Raises:
        GrpoStreamError: samples cannot be read.
    """
    with closing(plan.source):
        return _run(plan)


def _run(plan: EvaluationPlan) -> tuple[dict[str, Any], Path] | None:
    args, world = plan.args, plan.world
    join_ranks(world)
    device = _device(plan)
    collator = PromptCollator(
        plan.processor,
        plan.task.template,
        plan.task.answer_frame,
        chat_template_kwargs=plan.task.chat_template_kwargs,
    )
    limits = image_limits(args.data())
    reader = OrderedReader(
        plan.source,
        collator.rule,
        args.batch_size,
        world,
        limits=limits,
        num_reader_threads=args.num_reader_threads,
        num_fetch_threads=args.num_fetch_threads,
        max_total_pixels=args.max_total_pixels,
    )
    started = time.monotonic()
    ranks = "" if world.world_size == 1 else f", rank 0 of {world.world_size}"
    with _texts(plan, collator, device) as texts:
        answer = Answerer(
            texts,
            AnswerWay(args.zoom, args.num_samples, args.temperature or 1.0, args.seed),
            point_radius=args.point_radius,
            fields=plan.fields,
            limits=limits,
        )
        share = answer_share(
            reader,
            answer,
            max_bad_samples=args.max_bad_samples,
            title=None if world.rank else f"evaluate{ranks}",
        )
    evaluation = gather_shares(share, world)
    if evaluation is None:
        return None
    check_bad_samples(evaluation, args.max_bad_samples)
    seconds = time.monotonic() - started
    results = _results(plan, evaluation, collator, seconds) | {"device": str(device)}
    page = _page(plan, evaluation, results)
    return results, write_run(args.report, results, evaluation.answers, page)


def _packages(args: EvaluateArguments) -> tuple[str, ...]:
    """What answers depend on."""
    return ("torch", "transformers", *(["vllm"] if args.use_vllm else []))


def _device(plan: EvaluationPlan) -> torch.device:
    wanted = plan.args.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", plan.world.local_rank % max(1, torch.cuda.device_count()))


@contextmanager
def _texts(plan: EvaluationPlan, collator: PromptCollator, device: torch.device) -> Iterator[Texts]:
    """The policy, ready to answer; an engine ends with it."""
    args = plan.args
    dtype = args.dtype
    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" else "bfloat16"
    if args.use_vllm:
        engine = make_engine(
            args.model,
            dtype,
            args.seed,
            collator.rule,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            max_model_length=args.vllm_max_model_length,
        )
        with closing(EngineTexts(engine, collator, args.max_completion_length)) as texts:
            yield texts
        return
    more = (
        {}
        if args.attn_implementation is None
        else {"attn_implementation": args.attn_implementation}
    )
    model = load_policy(args.model, dtype=dtype, **more).to(device)
    batch_windows(model)
    yield PolicyTexts(model, collator, args.max_completion_length)


def _results(
    plan: EvaluationPlan, evaluation: Evaluation, collator: PromptCollator, seconds: float
) -> dict[str, Any]:
    args, answers = plan.args, evaluation.answers
    bootstrap: dict[str, Any] = {
        "asks_boxes": plan.task.template.answer in _BOX_FORMS,
        "num_resamples": args.num_resamples,
        "seed": args.seed,
    }
    rule = collator.rule
    return {
        "model": args.model,
        "data": {
            "names": plan.data_names,
            "digest": plan.source.digest,
            "num_samples": len(answers),
            "num_bad_samples": len(evaluation.bad_samples),
        },
        **evaluation_figures(answers, args.by, **bootstrap),
        "comparisons": [
            {"path": path, "model": model, **compare_answers(answers, others, **bootstrap)}
            for path, model, others in _others(plan, answers)
        ],
        "bad_samples": evaluation.bad_samples,
        "task": {
            "template": plan.template_name,
            **asdict(plan.task.template),
            "answer_frame": plan.task.answer_frame,
            "chat_template_kwargs": plan.task.chat_template_kwargs,
            "min_pixels": None if rule is None else rule.min_pixels,
            "max_pixels": None if rule is None else rule.max_pixels,
        },
        "settings": args.shown() | {"world_size": plan.world.world_size},
        "versions": {
            "grpo_stream": grpo_stream.__version__,
            **{name: importlib.metadata.version(name) for name in _packages(args)},
            "python": platform.python_version(),
        },
        "timing": {
            "seconds": round(seconds, 1),
            "samples_per_second": round(len(answers) / seconds, 3),
        },
    }


def _others(
    plan: EvaluationPlan, answers: list[ScoredAnswer]
) -> Iterator[tuple[str, str, list[ScoredAnswer]]]:
    """What the answers are compared with: path, model, answers; its own first look, too."""
    if plan.args.zoom is not None:
        yield "this evaluation", "the first look", [first_look_of(answer) for answer in answers]
    for other in plan.others:
        yield other.path, other.results["model"], other.answers


def _page(plan: EvaluationPlan, evaluation: Evaluation, results: dict[str, Any]) -> str:
    rows = [answer.to_dict() for answer in evaluation.answers]
    galleries = []
    for pick in pick_answers(rows, plan.args.num_pictures):
        # One image at a time: pictures are small, images are not.
        cards = [answer_card(rows[place], _image(plan, evaluation, place)) for place in pick.places]
        galleries.append((pick.title, pick.note, cards))
    return evaluation_page(results, rows, galleries)


def _image(plan: EvaluationPlan, evaluation: Evaluation, place: int) -> Image.Image:
    """The stored image of an answer's target, not resized: small ones are shown enlarged."""
    limits, ordinal = image_limits(plan.args.data()), evaluation.ordinals[place]
    sample = StreamSample.from_sample(read_at(plan.source, ordinal), None, limits)
    if not sample.images:
        return Image.new("RGB", (320, 200), "white")
    return Image.fromarray(sample.images[evaluation.answers[place].image_number])
