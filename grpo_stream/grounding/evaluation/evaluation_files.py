"""The files that an evaluation leaves, and reading them again to compare another one with it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.scores import ScoredAnswer
from grpo_stream.report.html_page import PAGE_NAME, page_bytes
from grpo_stream.storage.atomic_files import write_together

RESULTS_NAME = "results.json"
"""Figures, settings, versions; written last: without it there is no evaluation."""
ANSWERS_NAME = "answers.jsonl"
"""One line per sample: what was asked, answered and scored."""
VERSION = 2
"""Of both files; 2 adds targets of several places, polygons and none, further looks and samples."""
_READABLE = (1, VERSION)


@dataclass(frozen=True)
class SavedRun:
    """An evaluation that was done before."""

    path: str
    results: dict[str, Any]
    answers: list[ScoredAnswer]


def write_run(
    folder: str | Path, results: Mapping[str, Any], answers: Sequence[ScoredAnswer], page: str
) -> Path:
    """Writes all files of an evaluation; returns the path of its page.

    Each file appears whole or not at all, and a full disk leaves the older ones as they were.
    Older results go first and new ones come last, so figures are never beside the answers of
    another run.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(answer.to_dict(), ensure_ascii=False) + "\n" for answer in answers)
    text = json.dumps({"version": VERSION, **results}, ensure_ascii=False, indent=1)
    results_path, path = folder / RESULTS_NAME, folder / PAGE_NAME
    files = {
        folder / ANSWERS_NAME: "".join(lines).encode(errors="surrogatepass"),
        path: page_bytes(page),
        results_path: f"{text}\n".encode(errors="surrogatepass"),
    }
    write_together(files, removed_first=results_path)
    return path


def read_run(path: str | Path) -> SavedRun:
    """Reads an evaluation's files.

    Args:
        path: Its folder, or the ``results.json`` in it.

    Raises:
        ConfigError: they are not there, or this version does not read them.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    try:
        results = json.loads((folder / RESULTS_NAME).read_text(encoding="utf-8"))
        if results["version"] not in _READABLE:
            known = " and ".join(map(str, _READABLE))
            raise ValueError(f"version {results['version']}, this program reads {known}")
        with (folder / ANSWERS_NAME).open(encoding="utf-8", errors="surrogatepass") as lines:
            answers = [ScoredAnswer.from_dict(json.loads(line)) for line in lines]
    except (OSError, KeyError, TypeError, ValueError) as error:
        expected = f"is no report of an evaluation ({error}); give a folder with {RESULTS_NAME}"
        raise ConfigError("compare", str(path), expected) from error
    return SavedRun(str(folder), results, answers)


def check_same_data(run: SavedRun, digest: str) -> None:
    """Checks that a run answered the samples of the data set with this digest.

    Raises:
        ConfigError: it did not.
    """
    found = run.results["data"]["digest"]
    if found != digest:
        expected = (
            f"is of other samples (digest {found[:12]}, here {digest[:12]}); compare evaluations "
            "of one data set"
        )
        raise ConfigError("compare", run.path, expected)
