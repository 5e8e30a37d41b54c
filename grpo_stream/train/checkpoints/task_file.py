"""How a policy was asked, kept beside its weights, so that evaluation asks it the same way."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from grpo_stream.boxes import Frame
from grpo_stream.errors import ConfigError
from grpo_stream.grounding.frames import answer_frame_for
from grpo_stream.grounding.prompts import PromptTemplate

TASK_NAME = "task.json"
"""File of a checkpoint that holds a task; the sizes of images are in the processor's own files."""


@dataclass(frozen=True)
class Task:
    """How a policy is asked."""

    template: PromptTemplate
    answer_frame: Frame
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further variables of the model's chat template."""


def write_task(folder: str | Path, task: Task) -> None:
    """Writes :data:`TASK_NAME` into a checkpoint's folder."""
    content = {
        "prompt_template": asdict(task.template),
        "answer_frame": task.answer_frame,
        "chat_template_kwargs": task.chat_template_kwargs,
    }
    path = Path(folder) / TASK_NAME
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_task(folder: str | Path) -> Task | None:
    """How the policy in ``folder`` was asked; None where nothing tells.

    Raises:
        ConfigError: the file is none that :func:`write_task` wrote.
    """
    path = Path(folder) / TASK_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        template = PromptTemplate(**content["prompt_template"])
        frame = answer_frame_for("", str(content["answer_frame"]))
        return Task(template, frame, dict(content["chat_template_kwargs"]))
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        expected = f"must hold prompt_template and answer_frame, as training writes them ({error})"
        raise ConfigError(str(path), None, expected) from error
