"""What ``import grpo_stream`` loads, and what it gives."""

import subprocess
import sys

import pytest

import grpo_stream

HEAVY = ("torch", "numpy", "PIL", "transformers", "trl", "deepspeed")


def loaded_after(statement):
    """The heavy packages that a fresh interpreter has loaded after ``statement``."""
    code = f"{statement}\nimport sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import grpo_stream; dir(grpo_stream); grpo_stream.__version__", []),
        ("from grpo_stream import parse_answer", []),
        ("from grpo_stream import PromptLoader, PromptStream, StreamConfig", ["numpy", "PIL"]),
    ],
)
def test_a_name_loads_what_it_needs(statement, loaded):
    assert loaded_after(statement) == str(loaded)


def test_every_public_name_is_there():
    pytest.importorskip("trl")
    names = [name for name in grpo_stream.__all__ if name != "__version__"]
    assert len(names) == 6
    for name in names:
        assert getattr(grpo_stream, name).__name__ == name
        assert name in dir(grpo_stream)


def test_other_names_are_none():
    with pytest.raises(AttributeError, match="module 'grpo_stream' has no attribute 'Trainer'"):
        grpo_stream.Trainer  # type: ignore[attr-defined]  # noqa: B018
