"""Records in, chunks out: so many records each, split by split."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.inline_image import InlineImage
from grpo_stream.records.formats.rules import Rules
from grpo_stream.records.stored_image import ImageReader
from shard_builder.build.chunk_plan import Chunk, Reading, Row, ShardLimits, Splits, unpack_row
from shard_builder.build.image_neighbours import image_identity

_NUM_AHEAD = 256  # records whose images are asked for before they are needed


class Cutter:
    """Cuts records into chunks, split by split.

    Args:
        limits: A chunk is full at ``max_samples`` records, and when the images that its records
            carry with them pass ``max_bytes``.
        reading: The inputs, surveyed.
        rules: How the records of each form are written.
        splits: Shares of the images; None for one set.
        reader: Gives the bytes of an image, which decide about its split.
        by_image: A full chunk takes what is left of its last image.
    """

    def __init__(
        self,
        limits: ShardLimits,
        reading: Reading,
        rules: Sequence[Rules],
        splits: Splits | None,
        reader: ImageReader,
        *,
        by_image: bool = False,
    ) -> None:
        self._by_image = by_image
        self._limits = limits
        self._carries = reading.carries_images
        self._rules = tuple(rules)
        self._splits = splits
        self._reader = reader
        self.num_chunks: Counter[str] = Counter()
        """By split, so far."""

    def cut(self, rows: Iterable[Row | bytes]) -> Iterator[Chunk]:
        """The chunks of ``rows``, in the order of the build."""
        started: dict[str, list[Row | bytes]] = {}
        carried: Counter[str] = Counter()
        full: dict[str, bytes] = {}  # splits with a full chunk, and its last image
        for given in self._images_ahead(rows):
            split, row = "", given
            if self._splits is not None or self._carries:
                place, form, record = unpack_row(given)
                split, record = self._assign(form, record)
                carried[split] += _num_carried_bytes(record)
                row = (place, form, record)
            if split in full and full[split] != self._image_of(row):
                yield self._chunk(split, started.pop(split))
                del full[split]
                carried[split] = _num_carried_bytes(unpack_row(row)[2])
            chunk = started.setdefault(split, [])
            chunk.append(row)
            if len(chunk) >= self._limits.max_samples or carried[split] >= self._limits.max_bytes:
                if self._by_image:
                    full[split] = self._image_of(row)
                    continue
                yield self._chunk(split, chunk)
                del started[split], carried[split]
        for split, chunk in started.items():
            yield self._chunk(split, chunk)

    def _images_ahead(self, rows: Iterable[Row | bytes]) -> Iterator[Row | bytes]:
        """The rows, while images of the next ones are on their way from their bucket."""
        if self._splits is None or self._carries:
            yield from rows
            return
        coming = iter(rows)
        while window := list(islice(coming, _NUM_AHEAD)):
            values = (
                self._image_value(form, record) for _, form, record in map(unpack_row, window)
            )
            self._reader.prefetch([value for value in values if isinstance(value, str)])
            yield from window

    def _chunk(self, split: str, rows: list[Row | bytes]) -> Chunk:
        chunk = Chunk(split, self.num_chunks[split], rows, self._rules)
        self.num_chunks[split] += 1
        return chunk

    def _image_of(self, row: Row | bytes) -> bytes:
        _, form, record = unpack_row(row)
        return image_identity(record, self._rules[form].image_key)

    def _assign(self, form: int, record: Any) -> tuple[str, Any]:
        if self._splits is None:
            return "", record
        image = self._image_value(form, record)
        if isinstance(image, list):
            image_key = self._rules[form].image_key
            detail = f"{image_key} lists {len(image)} images, --split goes by one image a record"
            return self._splits.rest, RecordError("several_images", detail)
        try:
            if isinstance(image, InlineImage):
                data = image.data
            else:
                data = self._reader.read(image) if isinstance(image, str) else b""
        except RecordError:  # it will be rejected, in some split
            data = str(image).encode(errors="surrogatepass")
        return self._splits.of(data), record

    def _image_value(self, form: int, record: Any) -> Any:
        image = record.get(self._rules[form].image_key) if isinstance(record, dict) else None
        return image[0] if isinstance(image, list) and len(image) == 1 else image


def _num_carried_bytes(record: Any) -> int:
    """Bytes of the images that a record carries with it."""
    if type(record) is not dict:
        return 0
    total = 0
    for value in record.values():
        if type(value) is InlineImage:
            total += len(value.data)
        elif type(value) is list:
            total += sum(len(item.data) for item in value if type(item) is InlineImage)
    return total
