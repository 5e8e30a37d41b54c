"""What README and docs name is there: links, files, tests, modules, commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "ds_configs/*.md", "data/*/*.md")
    for path in ROOT.glob(pattern)
)
DATED = ("CHANGELOG.md", "NOTES.md")
"""They also tell what things were called before."""
CODE = ("grpo_stream", "tools", "benchmarks", "launch", "examples", "docs", "tests")
FOLDERS = (*CODE, "ds_configs", ".ci")
BASES = ("", "grpo_stream", "tools/shard_builder")
"""Where a path in a text may start, besides the page's own folder."""
OTHERS = ("transformers", "deepspeed", "runtime", "trainer", "trl")
"""Folders of other projects whose files ds_configs/README.md names as sources."""
NOT_OURS = {"my_rewards.py", "zero_to_fp32.py"}

present = pytest.mark.parametrize("page", [page for page in PAGES if page not in DATED])


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    links = re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)", read(page))
    for target, anchor in links:
        if "://" in target:
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}#{anchor}"


@present
def test_paths(page):
    """Of paths with a folder: those of code, and those that begin with a folder of this project."""
    words = re.findall(
        r"(?<![\w./:-])(\.?[\w-]+(?:/[\w.-]+)*/[\w-]+(?:\.\w+)*)(?:::(\w+))?", read(page)
    )
    lost = []
    for word, name in words:
        top = word.split("/")[0]
        if top in OTHERS or not (word.endswith((".py", ".md")) or top in FOLDERS):
            continue
        path = find(word, page)
        if path is None or (name and f"def {name}" not in path.read_text(encoding="utf-8")):
            lost.append(f"{word}::{name}" if name else word)
    assert lost == []


def find(word, page):
    for base in (*(ROOT / name for name in BASES), (ROOT / page).parent):
        for name in (word, f"{word}.example"):  # which the user copies
            if (base / name).exists():
                return base / name
    return None


@present
def test_bare_file_names(page):
    known = {path.name for folder in CODE for path in (ROOT / folder).rglob("*.py")} | NOT_OURS
    assert set(re.findall(r"(?<![\w/.*-])\w+\.py\b", read(page))) - known == set()


@present
def test_modules(page):
    """A dotted name is a module or package, or a name that its file has."""
    for dotted in re.findall(
        r"(?<![\w/])((?:grpo_stream|benchmarks|launch)(?:\.\w+)+)", read(page)
    ):
        parts = dotted.split(".")
        while parts and not is_module(parts):
            parts.pop()
        rest = dotted.split(".")[len(parts) :]
        if rest and parts:
            path = ROOT.joinpath(*parts)
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            assert re.search(rf"\b{rest[0]}\b", file.read_text(encoding="utf-8")), dotted


def is_module(parts):
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@present
def test_commands(page):
    """Benchmarks and targets of make."""
    sources = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "benchmarks").rglob("*.py"))
    benchmarks = set(re.findall(r"new_command\(\s*commands,\s*\"(\w+)\"", sources))
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    text = read(page)
    assert set(re.findall(r"python -m benchmarks ([a-z]\w*)", text)) - benchmarks == set()
    assert set(re.findall(r"(?:`|^    |&& )make ([a-z-]+)", text, re.MULTILINE)) - targets == set()


def test_the_map_has_every_room_and_file_of_the_ground():
    text = read("docs/architecture.md")
    drawn = text[text.index("## The map") : text.index("## Data flow")]
    library = ROOT / "grpo_stream"
    rooms = [path for path in library.iterdir() if (path / "__init__.py").is_file()]
    rooms += [path for path in (library / "train").iterdir() if (path / "__init__.py").is_file()]
    names = [f"{path.name}/" for path in rooms]
    names += [path.stem for path in library.glob("*.py") if path.stem != "__init__"]
    names += [path.name for path in (library / "train").glob("*.py") if path.stem != "__init__"]
    assert [name for name in names if not re.search(rf"(?<![\w.]){name}", drawn)] == []
