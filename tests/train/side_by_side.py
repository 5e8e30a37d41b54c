"""Runs of this trainer and of trl's own on the same weights, prompts and completions."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from datasets import Image as ImageFile
from PIL import Image
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpo_stream.boxes import Size
from grpo_stream.grounding.prompts import load_template, messages
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.support import QUIET, load_model, make_stream_sample

SIZES = ((56, 56), (112, 84), (84, 140), (112, 112))  # no processor has anything left to resize
NUM_PROMPTS = 2  # of a generation batch
LONGEST = 7  # completion, in tokens


@dataclass
class Seen:
    """What a run computed. Completions are keys, since trl shuffles rows."""

    log_probs: list[dict[tuple[int, ...], torch.Tensor]] = field(default_factory=list)
    """Of each forward of the policy; completion -> shape (its tokens,)."""
    entropies: list[dict[tuple[int, ...], torch.Tensor]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradients: list[torch.Tensor] = field(default_factory=list)
    """Of each global step, all weights one behind the other."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """At the end."""


class Watch(TrainerCallback):
    """Gives a trainer its completions and notes what it makes of them."""

    def __init__(self, trainer: Any) -> None:
        self.seen = Seen()
        self._num_generations = 0
        score, loss = trainer._get_per_token_logps_and_entropies, trainer._compute_loss

        def scored(model: Any, ids: Any, mask: Any, keep: int, *args: Any, **kwargs: Any) -> Any:
            result = score(model, ids, mask, keep, *args, **kwargs)
            if torch.is_grad_enabled():
                completions = zip(ids[:, -keep:], mask[:, -keep:].bool(), strict=True)
                keys = [tuple(row[kept].tolist()) for row, kept in completions]
                for noted, values in zip(
                    (self.seen.log_probs, self.seen.entropies), result[:2], strict=True
                ):
                    rows = zip(keys, values.detach(), strict=True)
                    noted.append({key: row[: len(key)].clone() for key, row in rows})
            return result

        def lost(*args: Any, **kwargs: Any) -> Any:
            result = loss(*args, **kwargs)
            self.seen.losses.append(result.item())
            return result

        trainer._generate_single_turn = self._generate
        trainer._get_per_token_logps_and_entropies = scored
        trainer._compute_loss = lost
        trainer.add_callback(self)

    def _generate(self, ids: list[Any], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        """Random completions, no two alike, of 1 to :data:`LONGEST` tokens."""
        generator = torch.Generator().manual_seed(self._num_generations)
        self._num_generations += 1
        tokens = torch.randint(20, 400, (len(ids), LONGEST), generator=generator).tolist()
        return [row[: 1 + number * 3 % LONGEST] for number, row in enumerate(tokens)], None

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        named = sorted(model.named_parameters())
        grads = [p.grad.float().flatten() for _, p in named if p.grad is not None]
        self.seen.gradients.append(torch.cat(grads).clone())

    def on_train_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.seen.weights = {n: p.detach().clone() for n, p in model.named_parameters()}


def graded(completions: list[Any], **_: Any) -> list[float | None]:
    """A reward that differs within each group, whatever the order of rows."""
    return [float(len(str(completion)) % 5) for completion in completions]


class SideBySide:
    """Trains the tiny policy with either trainer."""

    def __init__(self, policy: Any, processor: Any, folder: Any) -> None:
        self.policy, self._processor, self._folder = policy, processor, folder
        self._records = []
        for number, size in enumerate(SIZES):
            sample = make_stream_sample(number, size)
            name = f"{number}.png"
            Image.fromarray(sample.pixels).save(folder / name)
            record = {"image": name, "prompt": sample.prompt, "solution": [1, 2, 20, 30]}
            self._records.append(record)

    def ours(self, prepare: Callable[[Any], None] | None = None, **changes: Any) -> Seen:
        """A run of this trainer; ``changes`` of its own arguments or of trl's settings."""
        own = ("shared_prefix_attention", "freeze_vision_tower")
        kwargs = {name: changes.pop(name) for name in own if name in changes}
        trainer = self._our_trainer(changes, **kwargs)
        if prepare is not None:
            prepare(trainer)
        seen = _train(trainer)
        trainer.close()
        return seen

    def theirs(self, **changes: Any) -> Seen:
        """A run of ``trl.GRPOTrainer`` on the prompts of ours, in the same order."""
        frozen = changes.pop("freeze_vision_tower", False)
        peft_config = changes.pop("peft_config", None)
        ours = self._our_trainer({})
        places = [
            place.place.sample
            for number in range(changes.get("max_steps", 2))
            for place in ours.train_stream.slot_places(
                *ours.train_stream.plan.place_after(0, 0, number)
            )
        ]
        ours.close()
        template = load_template("point")
        rows = []
        for place in places:
            prompt = messages(template, self._records[place]["prompt"], Size(*SIZES[place]))
            rows.append([_text_only(message) for message in prompt])
        paths = [str(self._folder / self._records[place]["image"]) for place in places]
        data = Dataset.from_dict({"prompt": rows}).add_column("image", paths)
        trainer = GRPOTrainer(
            self._model(),
            graded,
            self._args({"shuffle_dataset": False, **changes}),
            data.cast_column("image", ImageFile()),
            processing_class=self._processor,
            peft_config=peft_config,
        )
        if frozen:
            trainer.model.model.visual.requires_grad_(requires_grad=False)
        return _train(trainer)

    def _our_trainer(self, changes: dict[str, Any], **kwargs: Any) -> Any:
        kwargs["peft_config"] = changes.pop("peft_config", None)
        return PersonalizedGRPOTrainer(
            self._model(),
            graded,
            self._args(changes),
            json.loads(json.dumps(self._records)),
            processing_class=self._processor,
            images_root=self._folder,
            shared_prefix="on",
            **kwargs,
        )

    def _model(self) -> Any:
        torch.manual_seed(0)  # of LoRA's weights
        return load_model(self.policy, is_prepared=False)

    def _args(self, changes: dict[str, Any]) -> GRPOConfig:
        num_generations = changes.get("num_generations", 2)
        settings: dict[str, Any] = {
            "output_dir": str(self._folder / "out"),
            **QUIET,
            "logging_strategy": "no",
            "per_device_train_batch_size": NUM_PROMPTS * num_generations,
            "gradient_accumulation_steps": 1,
            "steps_per_generation": 1,
            "num_generations": num_generations,
            "max_completion_length": LONGEST,
            "max_steps": 2,
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "max_grad_norm": 0.0,
        }
        return GRPOConfig(**(settings | changes))


def _train(trainer: Any) -> Seen:
    watch = Watch(trainer)
    trainer.train()
    return watch.seen


def _text_only(message: Any) -> dict[str, str]:
    """A message as trl takes it: it puts the image's place in front of the first words."""
    content = message["content"]
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    return {"role": message["role"], "content": content}
