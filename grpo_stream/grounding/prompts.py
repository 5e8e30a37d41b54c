"""From an instruction to chat messages, and from a solution to the answer that is taught."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal, get_args

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.errors import ConfigError

AnswerKind = Literal["point", "box"]
_PLACEHOLDERS = ("instruction", "width", "height")


@dataclass(frozen=True)
class PromptTemplate:
    """The words around an instruction.

    Args:
        system: Text of the system message; None for no such message.
        user: Text after the image, with the placeholders ``{instruction}`` (needed), ``{width}``
            and ``{height}`` (of the image in the frame that the answer is in). A literal brace is
            written twice.
        answer: What the text asks for, ``point`` or ``box``.

    Raises:
        ConfigError: a placeholder is unknown, ``{instruction}`` is missing, or ``answer`` is
            neither kind.
    """

    system: str | None
    user: str
    answer: AnswerKind = "point"

    def __post_init__(self) -> None:
        expected = "may hold {instruction}, {width} and {height}; write a literal brace twice: {{"
        try:
            fields = [name for _, name, _, _ in Formatter().parse(self.user) if name is not None]
        except ValueError as error:
            raise ConfigError("user", self.user, f"{expected} ({error})") from error
        if "instruction" not in fields:
            raise ConfigError("user", self.user, "must hold {instruction}")
        if not set(fields) <= set(_PLACEHOLDERS):
            raise ConfigError("user", self.user, expected)
        if self.answer not in get_args(AnswerKind):
            raise ConfigError("answer", self.answer, 'must be "point" or "box"')


TEMPLATES: dict[str, PromptTemplate] = {
    "point": PromptTemplate(
        system=None,
        user="The image is {width}x{height} pixels. {instruction}\n"
        'Answer with the position alone, as "(x, y)".',
    ),
    "box": PromptTemplate(
        system=None,
        user="The image is {width}x{height} pixels. {instruction}\n"
        'Answer with the bounding box alone, as JSON: {{"bbox_2d": [x1, y1, x2, y2]}}.',
        answer="box",
    ),
    "point_thinking": PromptTemplate(
        system="First think about where to look, inside <think> </think>. Then give the answer "
        "inside <answer> </answer>.",
        user="The image is {width}x{height} pixels. {instruction}\n"
        'The answer is a position, as "(x, y)".',
    ),
    "plain": PromptTemplate(system=None, user="{instruction}"),
}
"""The built-in templates by name."""


def load_template(name_or_path: str) -> PromptTemplate:
    """A built-in template by name, or a YAML file with ``system``, ``user`` and ``answer``.

    Raises:
        ConfigError: no such template, an unreadable file, or one that is no template.
    """
    if name_or_path in TEMPLATES:
        return TEMPLATES[name_or_path]
    path = Path(name_or_path)
    known = ", ".join(TEMPLATES)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError("prompt_template", name_or_path, f"must be one of {known}, or a .yaml")
    try:
        import yaml  # noqa: PLC0415 - only templates from files need it
    except ImportError as error:
        raise ConfigError(
            "prompt_template", name_or_path, "needs PyYAML to be read: pip install pyyaml"
        ) from error
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            "prompt_template", name_or_path, f"cannot be read ({error}); built in are {known}"
        ) from error
    return _template_of(content, name_or_path)


def messages(template: PromptTemplate, instruction: str, size: Size) -> list[dict[str, Any]]:
    """The conversation that is put to the model; the image comes before the text.

    Control words in the instruction, such as ``<|im_end|>`` or ``<|image_pad|>``, get a space
    behind the ``<`` and so lose their meaning: a record can neither end its turn nor ask for a
    second image.

    Args:
        template: The words around the instruction.
        instruction: The sample's prompt.
        size: Image size in the frame of the answer:
            :func:`grpo_stream.grounding.frames.frame_size`.

    Returns:
        Messages whose ``content`` is a list of blocks ``{"type": "image"}`` and
        ``{"type": "text", "text": ...}``.
    """
    plain = instruction.replace("<|", "< |")
    text = template.user.format(instruction=plain, width=size[0], height=size[1])
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    if template.system is None:
        return [user]
    return [{"role": "system", "content": [{"type": "text", "text": template.system}]}, user]


def answer_text(kind: AnswerKind, solution: Point | Box, snap: int = 1) -> str:
    """The answer that a supervised cold start teaches; thoughts are not written.

    Args:
        kind: :attr:`PromptTemplate.answer`.
        solution: The truth in the frame that the model answers in.
        snap: Numbers are rounded to multiples of this; a small policy learns a coarse grid sooner.

    Returns:
        ``(x, y)`` of the point or centre, or ``{"bbox_2d": [x1, y1, x2, y2]}``.

    Raises:
        ConfigError: ``snap`` is below 1, or a box is asked for and the solution is a point.
    """
    if snap < 1:
        raise ConfigError("snap", snap, "must be at least 1, for example 1")
    if kind == "point":
        point = solution.centre if isinstance(solution, Box) else solution
        return f"({_snapped(point.x, snap)}, {_snapped(point.y, snap)})"
    if isinstance(solution, Point):
        raise ConfigError("answer", kind, 'needs boxes and this solution is a point; use "point"')
    x1, y1 = _snapped(solution.x1, snap), _snapped(solution.y1, snap)
    # Rounding must not take a thin box's area away.
    x2 = max(_snapped(solution.x2, snap), x1 + snap)
    y2 = max(_snapped(solution.y2, snap), y1 + snap)
    return f'{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}}'


def _snapped(value: float, snap: int) -> int:
    return math.floor(value / snap + 0.5) * snap


def _template_of(content: object, source: str) -> PromptTemplate:
    allowed = {"system", "user", "answer"}
    if not isinstance(content, Mapping) or not set(content) <= allowed or "user" not in content:
        raise ConfigError("prompt_template", source, "must hold the keys user, system and answer")
    system, user = content.get("system"), content["user"]
    if not isinstance(user, str) or not (system is None or isinstance(system, str)):
        raise ConfigError("prompt_template", source, "system and user must be text")
    return PromptTemplate(system, user, content.get("answer", "point"))
