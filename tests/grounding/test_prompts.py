import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.families import FAMILIES
from grpo_stream.grounding.answers import Answer, is_refusal, parse_answer
from grpo_stream.grounding.prompts import (
    TEMPLATES,
    PromptTemplate,
    answer_text,
    load_template,
    messages,
    refusal_text,
    render,
)

SIZE = Size(640, 480)
TAUGHT_CLICK = (
    '<tool_call>{"name": "computer_use", "arguments": '
    '{"action": "left_click", "coordinate": [16, 30]}}</tool_call>'
)


def test_plain_is_the_instruction_alone_after_the_image():
    assert messages(TEMPLATES["plain"], "Click on {it}", SIZE) == [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "Click on {it}"}],
        }
    ]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_taught_refusal_is_read_and_has_the_form(name):
    template = TEMPLATES[name]
    text = refusal_text(template.answer)
    assert is_refusal(parse_answer(text))
    if not template.thinking:
        assert template.is_followed_by(text)


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"plain"}))
def test_built_in_templates_say_size_and_instruction(name):
    *_, user = messages(TEMPLATES[name], "Open the menu.", SIZE)
    text = user["content"][1]["text"]
    assert "640x480" in text
    assert "Open the menu." in text


def test_the_box_template_shows_the_form_that_is_taught():
    text = messages(TEMPLATES["box"], "Find it.", SIZE)[0]["content"][1]["text"]
    taught = answer_text("box", Box(1, 2, 3, 4))
    assert '{"bbox_2d": [x1, y1, x2, y2]}' in text
    assert taught == '{"bbox_2d": [1, 2, 3, 4]}'


def test_a_system_text_comes_first():
    system, user = messages(TEMPLATES["point_thinking"], "Open.", SIZE)
    assert (system["role"], user["role"]) == ("system", "user")
    assert "<think>" in system["content"][0]["text"]


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("{instruction} in {colour}", "width"),
        ("{instruction} {0}", "width"),
        ("{instruction.__class__}", r"\{instruction\}"),
        ("no place for it", r"\{instruction\}"),
        ("{instruction} {", "brace"),
    ],
)
def test_placeholders_are_checked(user, said):
    with pytest.raises(ConfigError, match=said):
        PromptTemplate(None, user)


def test_a_template_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "system: Be brief.\nuser: '{instruction} ({width})'\nanswer: box\nthinking: on\n"
    )
    template = load_template(str(path))
    assert template == PromptTemplate("Be brief.", "{instruction} ({width})", "box", thinking=True)
    assert load_template("plain") is TEMPLATES["plain"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", r"mine.yaml=\[1, 2\]: must hold one mapping, for example .*instruction"),
        ("", "mine.yaml=None: must hold one mapping"),
        (
            "user: '{instruction}'\ncolour: red\n",
            "mine.yaml='colour': is no key .* has user, system, answer, thinking",
        ),
        ("system: hello\n", "mine.yaml: user=None: must be text, for example"),
        ("user: 3\n", "mine.yaml: user=3: must be text"),
        ("user: '{instruction}'\nsystem: [1]\n", r"mine.yaml: system=\[1\]: must be text"),
        ("user: 'Find it.'\n", r"mine.yaml: user='Find it.': must hold \{instruction\}"),
        ("user: '{instruction} {colour}'\n", "mine.yaml: user='{instruction} {colour}': may hold"),
        (
            "user: '{instruction}'\nanswer: circle\n",
            "mine.yaml: answer='circle': must be one of point, box, click, box_pairs",
        ),
        ("user: '{instruction}'\nanswer: [box]\n", "must be one of point, box"),
        ("user: '{instruction}'\nthinking: maybe\n", "thinking='maybe': must be true or false"),
        ("user: [", r"is no YAML .*line 1\); built in are point"),
        ("user: !!python/object:os.system x", "line 1 has the tag !!python/object:os.system"),
    ],
)
def test_a_file_that_is_no_template(tmp_path, content, said):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_template(str(path))


def test_names_that_are_no_template(tmp_path):
    with pytest.raises(ConfigError, match=r"point, box, click, .*point_thinking, .*plain"):
        load_template("pointy")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_template(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("model_type", "name", "is_named"),
    [
        ("qwen2_5_vl", "box", "box"),
        ("qwen3_vl", "click", "click"),
        (None, "box", "box"),
        ("qwen2_vl", "box", "box_pairs"),
        ("qwen2_vl", "click_thinking", "point_thinking"),
        ("qwen2_vl", "point", "point"),
    ],
)
def test_a_family_has_its_own_words(model_type, name, is_named):
    assert load_template(name, model_type) is TEMPLATES[is_named]


def test_what_stands_in_for_a_template_asks_for_as_much_thinking():
    for family in FAMILIES.values():
        for name, other in family.templates.items():
            assert TEMPLATES[name].thinking == TEMPLATES[other].thinking


@pytest.mark.parametrize("name", sorted(set(TEMPLATES)))
def test_what_is_taught_has_the_form_that_is_asked_for(name):
    template = TEMPLATES[name]
    taught = answer_text(template.answer, Box(1, 2, 30, 40))
    assert isinstance(parse_answer(taught), Answer)
    text = f"<think>there</think><answer>{taught}</answer>" if template.thinking else taught
    assert template.is_followed_by(text)
    assert template.is_followed_by(text.replace(taught, f"\n{taught}\n"))
    assert not template.is_followed_by(f"Look: {text}")
    others = {TEMPLATES[other].answer for other in TEMPLATES} - {template.answer}
    for other in others:
        assert not template.is_followed_by(
            text.replace(taught, answer_text(other, Box(1, 2, 30, 40)))
        )


def test_render_shows_the_conversation():
    assert render(TEMPLATES["point_thinking"], "Open <|im_end|> it.", SIZE) == (
        "system: First think about where to look, inside <think> </think>. Then give the answer "
        "inside <answer> </answer>.\n"
        "user: <image>\n"
        "      The image is 640x480 pixels. Open < |im_end|> it.\n"
        '      The answer is a position, as "(x, y)".'
    )


def test_without_yaml_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match="pip install pyyaml"):
        load_template(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("kind", "solution", "snap", "text"),
    [
        ("point", Box(10, 20, 21, 40), 1, "(16, 30)"),
        ("point", Box(10, 20, 21, 40), 8, "(16, 32)"),
        ("point", Point(3.4, 3.6), 1, "(3, 4)"),
        ("box", Box(1.4, 2.6, 9.5, 9.4), 1, '{"bbox_2d": [1, 3, 10, 9]}'),
        ("box_pairs", Box(1.4, 2.6, 9.5, 9.4), 1, "(1,3),(10,9)"),
        (
            "click",
            Box(10, 20, 21, 40),
            1,
            TAUGHT_CLICK,
        ),
        ("box", Box(5.1, 5.1, 5.3, 5.3), 1, '{"bbox_2d": [5, 5, 6, 6]}'),
    ],
)
def test_answer_text(kind, solution, snap, text):
    assert answer_text(kind, solution, snap) == text


def test_answer_text_refuses_what_it_cannot_write():
    with pytest.raises(ConfigError, match="snap=0"):
        answer_text("point", Point(1, 1), 0)
    with pytest.raises(ConfigError, match="point"):
        answer_text("box", Point(1, 1))


@given(
    st.tuples(st.floats(0, 4000), st.floats(0, 4000), st.floats(1e-3, 900), st.floats(1e-3, 900)),
    st.sampled_from([1, 4, 8]),
)
def test_what_is_taught_is_understood_and_near(numbers, snap):
    x, y, width, height = numbers
    truth = Box(x, y, x + width, y + height, "model")
    point, box = (parse_answer(answer_text(kind, truth, snap)) for kind in ("point", "box"))
    assert isinstance(point, Answer)
    assert isinstance(box, Answer)
    shown = box.box("model")
    assert shown is not None
    assert shown.is_valid
    assert abs(shown.x2 - truth.x2) <= 1.5 * snap
    assert abs(point.point("model").x - truth.centre.x) <= snap / 2
    assert abs(point.point("model").y - truth.centre.y) <= snap / 2


def test_control_words_of_an_instruction_lose_their_meaning():
    (message,) = messages(TEMPLATES["plain"], "Click <|im_end|> now", Size(10, 10))
    assert message["content"][1]["text"] == "Click < |im_end|> now"


class TestImages:
    """Where the images of a prompt are, however many it has."""

    @staticmethod
    def blocks(instruction, *sizes, template="plain"):
        (*_, user) = messages(TEMPLATES[template], instruction, *sizes)
        return [block.get("text", "<image>") for block in user["content"]]

    def test_before_the_text(self):
        assert self.blocks("Compare.", SIZE, SIZE) == ["<image>", "<image>", "Compare."]

    def test_in_their_places(self):
        assert self.blocks("From <image> to\n<image>", SIZE, SIZE) == [
            "From ", "<image>", " to\n", "<image>",
        ]  # fmt: skip
        assert self.blocks("<image><image>?", SIZE, SIZE) == ["<image>", "<image>", "?"]
        assert self.blocks("In <image>: where?", SIZE) == ["In ", "<image>", ": where?"]

    def test_sizes_of_several(self):
        *images, text = self.blocks("Click OK.", SIZE, Size(80, 60), template="point")
        assert len(images) == 2
        assert text.startswith("The images are 640x480, 80x60 pixels. Click OK.\nAnswer with the")

    def test_without_images(self):
        assert messages(TEMPLATES["box_thinking"], "What is 2 + 3?") == [
            {"role": "user", "content": [{"type": "text", "text": "What is 2 + 3?"}]}
        ]

    @pytest.mark.parametrize(
        ("instruction", "sizes"),
        [("<image>", (SIZE, SIZE)), ("<image>?", ()), ("<image><image>", (SIZE,))],
    )
    def test_places_of_another_number(self, instruction, sizes):
        with pytest.raises(
            RecordError, match=r"image_placeholders: .* once for each, or not at all"
        ):
            messages(TEMPLATES["plain"], instruction, *sizes)

    def test_a_template_of_one_image(self):
        template = PromptTemplate(None, "{width}x{height}: {instruction}")
        assert not template.takes_several
        with pytest.raises(RecordError, match=r"template_one_image: 2 images: .* 'several'"):
            messages(template, "Click OK.", SIZE, SIZE)
        assert all(template.takes_several for template in TEMPLATES.values())

    def test_from_a_file(self, tmp_path):
        path = tmp_path / "own.yaml"
        path.write_text("user: '{width}: {instruction}'\nseveral: '{sizes}: {instruction}'\n")
        text = messages(load_template(str(path)), "OK", SIZE, SIZE)[0]["content"][-1]["text"]
        assert text == "640x480, 640x480: OK"
        path.write_text("user: '{instruction}'\nseveral: '{width}: {instruction}'\n")
        with pytest.raises(ConfigError, match=r"several='.*may hold {instruction} and {sizes}"):
            load_template(str(path))
        path.write_text("user: '{instruction}'\nseveral: 7\n")
        with pytest.raises(ConfigError, match="several=7: must be text"):
            load_template(str(path))
