"""From an instruction to chat messages, and from a solution to the answer that is taught."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.families import FAMILIES
from grpo_stream.grounding.answers import MAX_ANSWER_CHARS
from grpo_stream.grounding.template_words import (
    NEEDS_SEVERAL,
    blocks_of,
    check_words,
    fields_of,
)
from grpo_stream.yaml_files import read_yaml

AnswerKind = Literal["point", "box", "click", "box_pairs"]
"""The forms that are asked for and taught; :func:`answer_text` writes each of them."""

_CALL = '{{"name": "computer_use", "arguments": {{"action": "left_click", "coordinate": {0}}}}}'
_NUMBER = r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?"
_PAIR = rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"
_LIST = rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{%d}}\s*\]"
_CALL_PATTERN = re.escape(_CALL.format("@")).replace(r"\ ", r"\s*").replace("@", _LIST % 1)
_PATTERNS: dict[AnswerKind, re.Pattern[str]] = {
    "point": re.compile(_PAIR),
    "box": re.compile(rf'\{{\s*"bbox_2d"\s*:\s*{_LIST % 3}\s*\}}'),
    "click": re.compile(rf"(?:<tool_call>)?\s*{_CALL_PATTERN}\s*(?:</tool_call>)?"),
    "box_pairs": re.compile(rf"{_PAIR}\s*,\s*{_PAIR}"),
}
_FENCE = re.compile(r"```(?:json)?\n(.*)\n```", re.DOTALL)


@dataclass(frozen=True)
class PromptTemplate:
    """The words around an instruction.

    Args:
        system: Text of the system message; None for no such message.
        user: Text after the image, with the placeholders ``{instruction}`` (needed), ``{width}``
            and ``{height}`` (of the image in the frame that the answer is in). A literal brace is
            written twice. ``<image>`` is the image's place, where it is not before the text.
        answer: What the text asks for: ``point``, ``box``, ``click`` (a tool call) or
            ``box_pairs`` (a box as two corners).
        thinking: The text asks for ``<think>`` and ``<answer>``.
        several: As ``user``, for samples of several images, with ``{sizes}`` of all of them (as in
            ``640x480, 800x600``) in the place of width and height. None: ``user`` is for these,
            too, unless it names a width or height.

    A sample without images is asked with its instruction alone.

    Raises:
        ConfigError: a placeholder is unknown, ``{instruction}`` is missing, ``answer`` is no such
            form, or ``thinking`` is no truth value.
    """

    system: str | None
    user: str
    answer: AnswerKind = "point"
    thinking: bool = False
    several: str | None = None

    def __post_init__(self) -> None:
        check_words("user", self.user, ("width", "height"))
        if self.several is not None:
            check_words("several", self.several, ("sizes",))
        if self.answer not in get_args(AnswerKind):
            expected = f"must be one of {', '.join(get_args(AnswerKind))}"
            raise ConfigError("answer", self.answer, expected)
        if not isinstance(self.thinking, bool):
            raise ConfigError("thinking", self.thinking, "must be true or false")

    @property
    def takes_several(self) -> bool:
        """Whether samples of several images can be asked about."""
        return self.several is not None or not {"width", "height"} & set(fields_of(self.user))

    def words(self, instruction: str, sizes: Sequence[Size]) -> str:
        """The text about images of ``sizes``, in the frame that the answer is in.

        Raises:
            RecordError: cause ``template_one_image``: there are several, and the text names the
                width and height of one.
        """
        if not sizes:
            return instruction
        if len(sizes) == 1:
            (size,) = sizes
            return self.user.format(instruction=instruction, width=size[0], height=size[1])
        if not self.takes_several:
            raise RecordError("template_one_image", f"{len(sizes)} images: {NEEDS_SEVERAL}")
        listed = ", ".join(f"{width}x{height}" for width, height in sizes)
        return (self.several or self.user).format(instruction=instruction, sizes=listed)

    def is_followed_by(self, text: str) -> bool:
        """Whether a completion's text has the form that is asked for, and nothing besides.

        White space and a code fence do not count. With ``thinking`` that is some thoughts up to
        ``</think>``, then ``<answer>`` with the form, then ``</answer>``; the opening ``<think>``
        may be missing, because some chat templates write it in the prompt.
        """
        if len(text) > MAX_ANSWER_CHARS:
            return False
        text = text.strip()
        if self.thinking:
            thoughts, _, text = text.removeprefix("<think>").partition("</think>")
            text = text.strip()
            is_tagged = text.startswith("<answer>") and text.endswith("</answer>")
            if not thoughts.strip() or "<think>" in thoughts or not is_tagged:
                return False
            text = text.removeprefix("<answer>").removesuffix("</answer>").strip()
        fenced = _FENCE.fullmatch(text)
        text = text if fenced is None else fenced[1].strip()
        return _PATTERNS[self.answer].fullmatch(text) is not None


_ASKED: dict[AnswerKind, tuple[str, str]] = {
    "point": ("position", '"(x, y)"'),
    "box": ("bounding box", 'JSON: {{"bbox_2d": [x1, y1, x2, y2]}}'),
    "click": ("left click", f"<tool_call>{_CALL.replace('{0}', '[x, y]')}</tool_call>"),
    "box_pairs": ("bounding box", '"(x1,y1),(x2,y2)"'),
}
_SIZE_AND_TASK = "The image is {width}x{height} pixels. {instruction}\n"
_SIZES_AND_TASK = "The images are {sizes} pixels. {instruction}\n"
_THINK_FIRST = (
    "First think about where to look, inside <think> </think>. Then give the answer "
    "inside <answer> </answer>."
)


def _built_in(kind: AnswerKind, *, thinking: bool) -> PromptTemplate:
    noun, form = _ASKED[kind]
    system, task = None, f"Answer with the {noun} alone, as {form}."
    if thinking:
        system, task = _THINK_FIRST, f"The answer is a {noun}, as {form}."
    several = f"{_SIZES_AND_TASK}{task}"
    return PromptTemplate(system, f"{_SIZE_AND_TASK}{task}", kind, thinking, several)


TEMPLATES: dict[str, PromptTemplate] = {
    **{kind: _built_in(kind, thinking=False) for kind in _ASKED},
    **{f"{kind}_thinking": _built_in(kind, thinking=True) for kind in _ASKED},
    "plain": PromptTemplate(system=None, user="{instruction}"),
}
"""The built-in templates by name."""


def load_template(name_or_path: str, model_type: str | None = None) -> PromptTemplate:
    """A built-in template by name, or one of a YAML file.

    The file holds the text ``user`` and may hold ``system``, ``answer``, ``thinking`` and
    ``several``; see :class:`PromptTemplate`.

    Args:
        name_or_path: A name of :data:`TEMPLATES`, or a file.
        model_type: ``config.model_type`` of transformers; its family may be asked with another
            built-in template instead (:attr:`grpo_stream.families.Family.templates`).

    Raises:
        ConfigError: no such template, an unreadable file, or one that is no template.
    """
    if name_or_path in TEMPLATES:
        family = FAMILIES.get(model_type or "")
        return TEMPLATES[
            family.templates.get(name_or_path, name_or_path) if family else name_or_path
        ]
    path = Path(name_or_path)
    known = ", ".join(TEMPLATES)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError("prompt_template", name_or_path, f"must be one of {known}, or a .yaml")
    try:
        content = read_yaml("prompt_template", path, f"built in are {known}")
    except ImportError as error:
        raise ConfigError(
            "prompt_template", name_or_path, "needs PyYAML to be read: pip install pyyaml"
        ) from error
    return _template_of(content, name_or_path)


def messages(template: PromptTemplate, instruction: str, *sizes: Size) -> list[dict[str, Any]]:
    """The conversation that is put to the model.

    ``<image>`` in the text is an image's place; without it all images come before the text.
    Control words in the instruction, such as ``<|im_end|>`` or ``<|image_pad|>``, get a space
    behind the ``<`` and so lose their meaning: a record can neither end its turn nor ask for a
    second image.

    Args:
        template: The words around the instruction.
        instruction: The sample's prompt.
        *sizes: Size of each image in the frame of the answer:
            :func:`grpo_stream.grounding.frames.frame_size`. Without images the instruction is all.

    Returns:
        Messages whose ``content`` is a list of blocks ``{"type": "image"}`` and
        ``{"type": "text", "text": ...}``.

    Raises:
        RecordError: causes ``image_placeholders`` (the text has places for another number of
            images) and ``template_one_image``.
    """
    text = template.words(instruction.replace("<|", "< |"), sizes)
    user = {"role": "user", "content": blocks_of(text, len(sizes))}
    if template.system is None or not sizes:
        return [user]
    return [{"role": "system", "content": [{"type": "text", "text": template.system}]}, user]


def render(template: PromptTemplate, instruction: str, *sizes: Size) -> str:
    """The conversation as text for people; the model's own chat template adds its control words.

    Args:
        template: The words around an instruction.
        instruction: The sample's prompt.
        *sizes: Size of each image in the frame of the answer.

    Example:
        >>> print(render(TEMPLATES["plain"], "Open the menu.", Size(640, 480)))
        user: <image>
              Open the menu.
    """
    lines = []
    for message in messages(template, instruction, *sizes):
        blocks = [str(block.get("text", "<image>")) for block in message["content"]]
        label = f"{message['role']}: "
        lines.append(label + "\n".join(blocks).replace("\n", "\n" + " " * len(label)))
    return "\n".join(lines)


def answer_text(kind: AnswerKind, solution: Point | Box, snap: int = 1) -> str:
    """The answer that supervised fine-tuning teaches; thoughts are not written.

    Args:
        kind: :attr:`PromptTemplate.answer`.
        solution: The truth in the frame that the model answers in.
        snap: Numbers are rounded to multiples of this; a small policy learns a coarse grid sooner.

    Returns:
        ``(x, y)`` of the point or centre, a tool call that clicks there,
        ``{"bbox_2d": [x1, y1, x2, y2]}`` or ``(x1,y1),(x2,y2)``.

    Raises:
        ConfigError: ``snap`` is below 1, or a box is asked for and the solution is a point.
    """
    if snap < 1:
        raise ConfigError("snap", snap, "must be at least 1, for example 1")
    if kind in {"point", "click"}:
        point = solution.centre if isinstance(solution, Box) else solution
        x, y = _snapped(point.x, snap), _snapped(point.y, snap)
        if kind == "click":
            return f"<tool_call>{_CALL.format(f'[{x}, {y}]')}</tool_call>"
        return f"({x}, {y})"
    if isinstance(solution, Point):
        raise ConfigError("answer", kind, 'needs boxes and this solution is a point; use "point"')
    x1, y1 = _snapped(solution.x1, snap), _snapped(solution.y1, snap)
    # Rounding must not take a thin box's area away.
    x2 = max(_snapped(solution.x2, snap), x1 + snap)
    y2 = max(_snapped(solution.y2, snap), y1 + snap)
    if kind == "box_pairs":
        return f"({x1},{y1}),({x2},{y2})"
    return f'{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}}'


def refusal_text(kind: AnswerKind) -> str:
    """The refusal that supervised fine-tuning teaches: the template's form, all numbers -1."""
    form = {
        "point": "(-1, -1)",
        "box": '{"bbox_2d": [-1, -1, -1, -1]}',
        "click": f"<tool_call>{_CALL.format('[-1, -1]')}</tool_call>",
        "box_pairs": "(-1,-1),(-1,-1)",
    }
    return form[kind]


def _snapped(value: float, snap: int) -> int:
    return math.floor(value / snap + 0.5) * snap


def _template_of(content: object, source: str) -> PromptTemplate:
    allowed = ("user", "system", "answer", "thinking", "several")
    if not isinstance(content, Mapping):
        expected = f"must hold one mapping, for example {_EXAMPLE!r}"
        raise ConfigError(source, content, expected)
    unknown = [name for name in content if name not in allowed]
    if unknown:
        raise ConfigError(
            source, unknown[0], f"is no key of a template; it has {', '.join(allowed)}"
        )
    system, user, several = content.get("system"), content.get("user"), content.get("several")
    if not isinstance(user, str):
        raise ConfigError(f"{source}: user", user, f"must be text, for example {_EXAMPLE!r}")
    if not (system is None or isinstance(system, str)):
        raise ConfigError(f"{source}: system", system, 'must be text, for example "Be brief."')
    if not (several is None or isinstance(several, str)):
        raise ConfigError(f"{source}: several", several, f"must be text, for example {_EXAMPLE!r}")
    try:
        answer, thinking = content.get("answer", "point"), content.get("thinking", False)
        return PromptTemplate(system, user, answer, thinking, several)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.field}", error.value, error.expected) from error


_EXAMPLE = "user: 'Click: {instruction}'"
