"""The files that a word of the command line means, on this machine or in a bucket."""

import glob
import re
from pathlib import Path

from grpo_stream.errors import ConfigError, StoreError
from grpo_stream.records.formats.byte_chunks import is_remote, local_path
from grpo_stream.storage.store import open_store


def find_files(word: str) -> list[tuple[str, str]]:
    """The files of a path, a URL or a pattern, sorted.

    ``*`` and ``?`` stand for characters of one name, ``[ab]`` for one of these, ``**`` for any
    folders. In URLs of web servers, which list nothing, ``?`` begins the query.

    Returns:
        Pairs of a name and the query that belongs to it, mostly empty. The query of a signed URL
        is a secret, so it is no part of the name.

    Raises:
        ConfigError: nothing is found, or the bucket cannot be listed.
    """
    if word.startswith(("http://", "https://")):
        name, _, query = word.partition("?")
        if "*" in name:
            raise ConfigError("INPUT", name, "web servers list nothing: give the URL of each file")
        return [(name, query)]
    if not word:
        raise ConfigError("INPUT", word, "must name a file, for example data/train.jsonl")
    if is_remote(word):
        return [(name, "") for name in _in_bucket(word)]
    return [(name, "") for name in _local(word)]


def _local(word: str) -> list[str]:
    path = local_path(word)
    if Path(path).is_file():
        return [word]
    if Path(path).is_dir():
        expected = f"is a folder: name its files, for example '{word.rstrip('/')}/*.json'"
        raise ConfigError("INPUT", word, expected)
    found = [name for name in glob.glob(path, recursive=True) if Path(name).is_file()]  # noqa: PTH207
    if not found:
        raise ConfigError("INPUT", word, "must be a file that exists, or match some: data/*.jsonl")
    return sorted(found)


def _in_bucket(word: str) -> list[str]:
    try:
        open_store(word)
    except ConfigError as error:
        raise ConfigError("INPUT", word, error.expected) from error
    if (special := re.search(r"[*?\[]", word)) is None:
        return [word]
    root = word[: word.rindex("/", 0, special.start()) + 1].rstrip("/")
    if root.endswith(":"):
        raise ConfigError("INPUT", word, "must name a bucket, for example s3://bucket/data/*.jsonl")
    try:
        names = open_store(root).walk()
    except StoreError as error:
        raise ConfigError("INPUT", word, f"cannot be listed: {error.detail}") from error
    pattern = re.compile(_as_regex(word[len(root) + 1 :]))
    found = [f"{root}/{name}" for name in names if pattern.fullmatch(name)]
    if not found:
        raise ConfigError("INPUT", word, f"matches none of {len(names)} objects under {root}")
    return sorted(found)


def _as_regex(pattern: str) -> str:
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\])", pattern)
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        meanings.get(piece) or (_as_class(piece) if index % 2 else re.escape(piece))
        for index, piece in enumerate(pieces)
    )


def _as_class(piece: str) -> str:
    inside = piece[1:-1].replace("\\", "\\\\").replace("^", "\\^")
    return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
