"""The lists beside the manifest: what was rejected and what was warned of, one JSON a line."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from grpo_stream.storage.store import Store
from shard_builder.build.chunk_plan import Place

REJECTS_NAME = "rejects.jsonl"
WARNINGS_NAME = "warnings.jsonl"


class ListWriter:
    """Writes one of the lists; nobody sees it before it is whole.

    Args:
        name: :data:`REJECTS_NAME` or :data:`WARNINGS_NAME`.
        input_names: The inputs, as the list names them.
        folder: For the unfinished list.
    """

    def __init__(self, name: str, input_names: Sequence[str], folder: Path) -> None:
        self.counts: Counter[str] = Counter()
        """Lines by cause."""
        self.examples: dict[str, str] = {}
        """By cause, where the first one stands and what is wrong with it."""
        self._name = name
        self._input_names = input_names
        self._path = folder / name
        self._file = self._path.open("w", encoding="utf-8")

    def add(
        self, place: Place, image: str | None, cause: str, detail: str, key: str | None = None
    ) -> None:
        """Appends a line; what became a sample has a ``key``."""
        self.counts[cause] += 1
        if cause not in self.examples:
            where = f"{self._input_names[place.input]} record {place.record}"
            self.examples[cause] = f"{where}: {detail}"
        line = {
            "input": self._input_names[place.input],
            "index": place.record,
            "image": image,
            "cause": cause,
            "detail": detail,
        }
        if key is not None:
            line["key"] = key
        # ASCII: a path may hold letters that UTF-8 cannot.
        self._file.write(json.dumps(line) + "\n")

    def save(self, store: Store) -> None:
        """Puts the finished list into ``store``."""
        self._file.close()
        store.put_file(self._name, self._path)
