import json
from typing import Any

import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.prompts import TEMPLATES
from grpo_stream.train.checkpoints.task_file import TASK_NAME, Task, read_task, write_task

WHOLE: dict[str, Any] = {
    "prompt_template": {"system": None, "user": "{instruction}"},
    "answer_frame": "model",
    "chat_template_kwargs": {},
}


def test_what_is_written_is_read_again(tmp_path):
    assert read_task(tmp_path) is None
    for name, template in TEMPLATES.items():
        task = Task(template, "per_mille", {"enable_thinking": False, "name": name})
        write_task(tmp_path, task)
        assert read_task(tmp_path) == task


def test_the_least_that_a_file_holds(tmp_path):
    (tmp_path / TASK_NAME).write_text(json.dumps(WHOLE))
    assert read_task(tmp_path) == Task(TEMPLATES["plain"], "model")


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        "{}",
        json.dumps(WHOLE | {"prompt_template": {"system": None, "user": "no placeholder"}}),
        json.dumps(WHOLE | {"prompt_template": {"user": "{instruction}"}}),
        json.dumps(WHOLE | {"prompt_template": WHOLE["prompt_template"] | {"colour": 1}}),
        json.dumps(WHOLE | {"answer_frame": "metres"}),
        json.dumps(WHOLE | {"chat_template_kwargs": 5}),
    ],
)
def test_a_file_that_is_none(tmp_path, content):
    (tmp_path / TASK_NAME).write_text(content)
    with pytest.raises(ConfigError, match="must hold prompt_template and answer_frame"):
        read_task(tmp_path)
