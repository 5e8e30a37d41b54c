"""One contestant of ``benchmarks step``, in a process of its own: our trainer, or trl's.

Both train the same weights on the same prompts with learning rate 0, so that every step does the
same work. The first step takes given completions; its log-probabilities, loss and gradient are kept
to compare. The steps after it sample and are timed.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFile
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpo_stream.boxes import Size
from grpo_stream.grounding.frames import answer_frame_for, frame_size
from grpo_stream.grounding.prompts import load_template, messages
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.record_source import RecordSource
from grpo_stream.train.models.cuda_settings import prepare_cuda
from grpo_stream.train.models.policy import load_policy
from grpo_stream.train.models.processor import load_processor, resize_rule
from grpo_stream.train.trainer import PersonalizedGRPOTrainer

_NUM_UNTIMED = 2  # one to compare, one to warm up
PHASES = ("input", "rollout", "score", "update")


def main(path: str) -> None:
    """Runs the contestant that the JSON file ``path`` describes; prints its figures as JSON."""
    job = json.loads(Path(path).read_text())
    torch.set_num_threads(job["num_threads"])
    prepare_cuda()  # for both, so that what is compared is not cuDNN
    trainer = make_trainer(job)
    clock = _Clock()
    spy = _Spy(job, clock, trainer.model.config.text_config.vocab_size)
    spy.watch(trainer)
    loaded = _peak_bytes(reset=True)
    trainer.train()
    figures = {
        "seconds": clock.steps[_NUM_UNTIMED:],
        "cpu_seconds": clock.cpu[_NUM_UNTIMED:],
        "phases": {name: times[_NUM_UNTIMED:] for name, times in clock.phases.items()},
        "peak_bytes": _peak_bytes() - loaded,
        "num_parameters": sum(p.numel() for p in trainer.model.parameters()),
        "num_prompt_tokens": spy.num_prompt_tokens,
        "way": getattr(trainer, "prefix_way", "trl's"),
    }
    np.savez(job["found"], **spy.found)
    print(json.dumps(figures))


def make_trainer(job: dict[str, Any]) -> Any:
    """Our trainer or trl's, ready.

    Args:
        job: See ``benchmarks.step.step.make_job``; ``who`` is ``ours`` or ``trl``.
    """
    torch.manual_seed(0)
    is_cuda = job["device"] == "cuda"
    model = load_policy(job["model"], dtype=torch.float32)
    processor = load_processor(job["model"], max_pixels=job["max_pixels"])
    args = GRPOConfig(
        output_dir=job["out"],
        use_cpu=not is_cuda,
        bf16=is_cuda,
        report_to=[],
        gradient_checkpointing=job["gradient_checkpointing"],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=job["num_generations"],
        num_generations=job["num_generations"],
        max_completion_length=job["num_tokens"],
        generation_kwargs={"min_new_tokens": job["num_tokens"]},
        max_steps=job["num_steps"] + _NUM_UNTIMED,
        learning_rate=job.get("learning_rate", 0.0),
        max_grad_norm=job.get("max_grad_norm", 0.0),
        beta=job["beta"],
        shuffle_dataset=job["who"] == "ours",  # which has its own order; trl's is to be the same
    )
    rule = resize_rule(processor.image_processor)
    records, root = json.loads(Path(job["records"]).read_text()), Path(job["images_root"])
    config = StreamConfig(num_lanes=1, num_reader_threads=1, resize=rule)
    stream = PromptStream(RecordSource(records, root), config)
    if job["who"] == "ours":
        return PersonalizedGRPOTrainer(
            model,
            _reward,
            args,
            stream,
            processing_class=processor,
            shared_prefix=job["way"],
            decode=job["decode"],
        )
    template, frame = load_template("point"), answer_frame_for(model.config.model_type)
    rows = []
    for number in range(args.max_steps):  # in the order of our stream
        (one,) = stream.slot_places(*stream.plan.place_after(0, 0, number))
        record = records[one.place.sample]
        size = rule.target(Size(record["width"], record["height"]))
        shown = frame_size(frame, model_size=size, original_size=size)
        prompt = _text_only(messages(template, record["prompt"], shown))
        rows.append({"prompt": prompt, "image": str(root / record["image"])})
    data = Dataset.from_list([{"prompt": _text_only(row["prompt"])} for row in rows])
    data = data.add_column("image", [row["image"] for row in rows]).cast_column(
        "image", ImageFile()
    )
    return GRPOTrainer(model, _reward, args, data, processing_class=processor)


def _text_only(prompt: Any) -> list[dict[str, str]]:
    """A conversation as trl takes it: it puts the image's place in front of the first words."""
    texts = []
    for message in prompt:
        parts = message["content"]
        if not isinstance(parts, str):
            parts = "".join(part["text"] for part in parts if part["type"] == "text")
        texts.append({"role": message["role"], "content": parts})
    return texts


def _reward(completions: list[Any], **_: Any) -> list[float | None]:
    return [float(number % 4) for number in range(len(completions))]


class _Clock:
    """Seconds of each step and of its phases, and the CPU seconds of each step, of all threads."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.cpu: list[float] = []
        self.phases: dict[str, list[float]] = {name: [] for name in PHASES}
        self._open: defaultdict[str, float] = defaultdict(float)
        self._started = self._cpu_started = 0.0
        self._depth = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts towards ``name``, unless another phase is running."""
        self._depth += 1
        started = time.perf_counter()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                _wait_for_gpu()
                self._open[name] += time.perf_counter() - started

    def begin(self) -> None:
        """A step begins: the one before has ended."""
        self._open.clear()
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    def got_input(self) -> None:
        """Its batch is there."""
        self._open["input"] += time.perf_counter() - self._started

    def end(self) -> None:
        """It has ended."""
        _wait_for_gpu()
        total = time.perf_counter() - self._started
        self.steps.append(total)
        self.cpu.append(time.process_time() - self._cpu_started)
        for name in PHASES[:3]:
            self.phases[name].append(self._open[name])
        # What is in no other phase: loss, backward and the optimizer.
        self.phases["update"].append(total - sum(self._open[name] for name in PHASES[:3]))


class _Spy(TrainerCallback):  # type: ignore[misc]
    """Gives the first step its completions, keeps what came of it, and marks the steps."""

    def __init__(self, job: dict[str, Any], clock: _Clock, vocabulary: int) -> None:
        self._clock = clock
        self._num_done = 0
        self.num_prompt_tokens = 0
        self.found: dict[str, Any] = {}
        generator = torch.Generator().manual_seed(1)
        shape = (job["num_generations"], job["num_tokens"])
        # Ragged, and no two alike.
        rows = torch.randint(20, vocabulary, shape, generator=generator).tolist()
        self._given = [row[: len(row) - number % 3] for number, row in enumerate(rows)]

    @property
    def is_first(self) -> bool:
        """Whether the step that is compared is running."""
        return self._num_done == 0

    def watch(self, trainer: Any) -> None:
        """Puts itself around the trainer's methods."""
        clock = self._clock
        generate = trainer._generate_single_turn  # noqa: SLF001
        score = trainer._get_per_token_logps_and_entropies  # noqa: SLF001
        tokenize = trainer._tokenize_prompts  # noqa: SLF001
        loss = trainer._compute_loss  # noqa: SLF001
        process = type(trainer.processing_class).__call__

        def generated(ids: Any, *args: Any, **kwargs: Any) -> Any:
            if self.is_first:
                return [list(row) for row in self._given], None
            with clock.phase("rollout"):
                return generate(ids, *args, **kwargs)

        def scored(
            model: Any, input_ids: Any, attention_mask: Any, keep: int, *args: Any, **kw: Any
        ) -> Any:
            with clock.phase("score"):
                result = score(model, input_ids, attention_mask, keep, *args, **kw)
            self.num_prompt_tokens = input_ids.shape[1] - keep
            if self.is_first and torch.is_grad_enabled():
                self.found["tokens"] = input_ids[:, -keep:].float().cpu().numpy()
                mask = attention_mask[:, -keep:]
                self.found["logps"] = (result[0].detach() * mask).float().cpu().numpy()
            return result

        def lost(*args: Any, **kwargs: Any) -> Any:
            with clock.phase("loss"):
                result = loss(*args, **kwargs)
            if self.is_first:
                self.found["loss"] = result.detach().float().cpu().numpy()
            return result

        def tokenized(*args: Any, **kwargs: Any) -> Any:
            with clock.phase("input"):
                return tokenize(*args, **kwargs)

        def processed(*args: Any, **kwargs: Any) -> Any:
            with clock.phase("input"):
                return process(*args, **kwargs)

        trainer._generate_single_turn = generated  # noqa: SLF001
        trainer._get_per_token_logps_and_entropies = scored  # noqa: SLF001
        trainer._compute_loss = lost  # noqa: SLF001
        trainer._tokenize_prompts = tokenized  # noqa: SLF001
        type(trainer.processing_class).__call__ = processed
        trainer.add_callback(self)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """See ``TrainerCallback``."""
        self._clock.begin()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """See ``TrainerCallback``."""
        self._clock.got_input()

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        """See ``TrainerCallback``."""
        if self.is_first:
            grads = [
                p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None
            ]
            self.found["grad"] = torch.cat(grads).float().cpu().numpy().copy()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """See ``TrainerCallback``."""
        self._clock.end()
        self._num_done += 1
        self._clock.begin()


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_bytes(*, reset: bool = False) -> int:
    """The most memory that this process has held since the last reset: of a GPU, else (Linux)."""
    if torch.cuda.is_available():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1])
