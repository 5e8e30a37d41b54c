"""Ways in which bytes go wrong: cut, flipped, doubled, moved, and values at their limits."""

import random
import re
from collections.abc import Callable, Sequence

_LIMITS = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff")
_VALUE = re.compile(rb'-?\d+(?:\.\d+)?|"[^"\\]*"|null|true')
_VALUES = (
    *(b"-1", b"0", b"0.5", b"1e999", b"NaN", b"-Infinity", b"1" * 400, b"1e-400", b"true", b"null"),
    *(b'"\\ud800"', b'""', b'" "', b'"\\u0000"', b'"<|image_pad|>"', b"[]", b"{}", b"[[1,2]]"),
    *(b"[1,2,3,4]", b'["a"]', b'{"width":1}', b"[" * 2000 + b"]" * 2000),
)
_MAX_CHANGES = 6
_MAX_PIECE_BYTES = 64
_SHARE_OF_VALUES = 0.8  # of the JSON texts; most others are no JSON any more

Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], bytearray]


def mutated(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One of ``seeds`` after one to six changes.

    Args:
        seeds: Sound files.
        rng: Decides everything, so equal states give equal bytes.
    """
    data = bytearray(rng.choice(seeds))
    kinds = (_value,) if data[:1] == b"{" and rng.random() < _SHARE_OF_VALUES else _OF_BYTES
    for _ in range(rng.randint(1, _MAX_CHANGES)):
        if data:
            data = rng.choice(kinds)(data, rng, seeds)
    return bytes(data)


def _cut(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    return data[: rng.randrange(len(data))]


def _flip(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _flip_early(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    data[rng.randrange(min(len(data), _MAX_PIECE_BYTES))] = rng.randrange(256)
    return data


def _limit(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    value = rng.choice(_LIMITS)
    place = rng.randrange(len(data))
    data[place : place + len(value)] = value
    return data


def _remove(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    place = rng.randrange(len(data))
    del data[place : place + rng.randint(1, _MAX_PIECE_BYTES)]
    return data


def _double(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    place = rng.randrange(len(data))
    piece = data[place : place + rng.randint(1, _MAX_PIECE_BYTES)]
    data[place:place] = piece
    return data


def _splice(data: bytearray, rng: random.Random, seeds: Sequence[bytes]) -> bytearray:
    other = rng.choice(seeds)
    return data[: rng.randrange(len(data))] + bytearray(other[rng.randrange(len(other)) :])


def _value(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    """Another value in a JSON text."""
    if data[:1] != b"{":
        return data
    found = rng.choice(list(_VALUE.finditer(data)) or [None])
    if found is not None:
        data[found.start() : found.end()] = rng.choice(_VALUES)
    return data


_OF_BYTES: tuple[Mutation, ...] = (_cut, _flip, _flip_early, _limit, _remove, _double, _splice)
