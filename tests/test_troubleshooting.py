"""The messages that docs/troubleshooting.md quotes are those of the code."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/troubleshooting.md"


def quoted():
    """In the first column of each row: what is in code and has words."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    found = [text for row in rows for text in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    return [text for text in found if " " in text]


@pytest.fixture(scope="module")
def sources():
    """All code, with the parts of a text that goes over several lines joined."""
    texts = [
        path.read_text(encoding="utf-8")
        for folder in ("grpo_stream", "launch")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))


def test_there_are_some():
    assert len(quoted()) > 20


@pytest.mark.parametrize("text", quoted())
def test_a_quoted_message_is_one_of_the_code(text, sources):
    text = re.sub(r"^has waited 10 s for ", "", text)
    text = re.sub(r"^\w+=[^:]+: |\d[\d.]*|=\.\.\.", "...", text)
    parts = [part.strip(" ,;") for part in text.split("...")]
    lost = [part for part in parts if part and part not in sources]
    assert lost == []
