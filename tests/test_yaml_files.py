import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.yaml_files import read_yaml


def test_plain_values(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("a: 1\nb: [x, 2.5, null]\nc: {a: yes}\nshared: &one {d: 1}\nother: *one\n")
    plain = {"a": 1, "b": ["x", 2.5, None], "c": {"a": True}, "shared": {"d": 1}, "other": {"d": 1}}
    assert read_yaml("config", path, "see docs") == plain
    path.write_text("")
    assert read_yaml("config", path, "see docs") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 1\nshards: !env DATA\n",
            "line 2 has the tag !env, and tags are not read; write the v",
        ),
        (
            "a: !!python/object/apply:os.system ['touch owned']",
            "line 1 has the tag !!python/object",
        ),
        ("a:\n  b: !!python/name:os.x", "line 2 has the tag !!python/name:os.x"),
        ("seed: 1\nb: 2\nseed: 3\n", "line 3 sets seed again, after line 1; keep one of them"),
        ("a: 1\nb: [", "is no YAML (while parsing a flow node expected the node content, but fou"),
        ("a: 1\n\tb: 1", "that cannot start any token, line 2); see docs"),
        ("a: \x00", "is no YAML (unacceptable character #x0000"),
        ("a: 2024-99-99", "holds no value (month must be in 1..12); see docs"),
        ("a: !!timestamp x", "holds no value ("),
        ("a: !!bool x", "holds no value ('x')"),
        ("[" * 4000, "holds no value (maximum recursion depth"),
        (b"a: \xff", "cannot be read ("),
    ],
)
def test_mistakes_are_one_line_with_file_and_line(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_yaml("config", path, "see docs")
    said = str(caught.value)
    assert said.startswith(f"config={str(path)!r}: ")
    assert message in said
    assert len(said.splitlines()) == 1
