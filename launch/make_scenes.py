"""The generated scenes: shapes on white, and instructions that single one of them out.

``python -m launch.make_scenes --out DIR --num-scenes N --split training`` writes
``DIR/images/*.png`` and ``DIR/records.json`` in the raw record format of shard-builder. No two
shapes of a scene are alike in size, colour and kind, so "Click on the small red circle" means one
of them. Scene i depends on the seed, the split and i alone.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from grpo_stream.flags import with_dashes
from launch.make_shapes import COLOURS, SHAPES, SIDE, draw_shape, write_drawn

SIZES = {"small": (14, 18), "large": (26, 32)}
"""Name -> smallest and largest side of a shape's box in pixels, both included."""

NUM_SHAPES = (3, 4, 5)
"""How many shapes a scene has, drawn evenly."""

NUM_SHAPES_AT_FIRST = (2, 3, 4, 5)
"""The same for pretraining."""

GAP = 2
"""Pixels at least between two boxes."""

LOOSENESS = 2.2
"""Loose answers are anywhere in the box made so many times as wide."""

SNAP = 8
"""Numbers of these answers are multiples of this: a small policy learns a coarse grid sooner."""

QUESTION_KINDS = ("known words", "new words", "swapped")
"""Values of the field ``question_kind`` of a test set."""


class Words(NamedTuple):
    """What an instruction says of a shape."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return " ".join(self)


ALL_WORDS = tuple(Words(*words) for words in product(SIZES, COLOURS, SHAPES))

NEW_WORDS = (
    Words("small", "red", "circle"),
    Words("small", "yellow", "triangle"),
    Words("large", "green", "square"),
    Words("large", "blue", "circle"),
)
"""Kept for the test: each word is known, but these three are never drawn or named together."""

KNOWN_WORDS = tuple(words for words in ALL_WORDS if words not in NEW_WORDS)

Box = tuple[int, int, int, int]
"""In pixels, ends exclusive."""

Scene = list[tuple[Words, Box]]
"""The first shape is the one that a scene with one instruction is about."""

Scenes = Iterator[tuple[Scene, list[dict[str, Any]]]]
"""Scenes, each with its records."""


def make_scene(
    key: Sequence[int], nums: Sequence[int] = NUM_SHAPES, *, new_words: bool = False
) -> Scene:
    """A scene that depends on its arguments alone.

    Args:
        key: Seed and number.
        nums: How many shapes, drawn evenly.
        new_words: The first shape is one of :data:`NEW_WORDS` and the others are any; otherwise
            all are of :data:`KNOWN_WORDS`.
    """
    rng = np.random.default_rng(key)
    num_shapes = int(rng.choice(nums))
    if new_words:
        first = NEW_WORDS[rng.integers(len(NEW_WORDS))]
        others = [words for words in ALL_WORDS if words != first]
        chosen = [first, *_pick(rng, others, num_shapes - 1)]
    else:
        chosen = _pick(rng, KNOWN_WORDS, num_shapes)
    while True:
        boxes = _place(rng, chosen)
        if boxes is not None:
            return list(zip(chosen, boxes, strict=True))


def _pick(rng: np.random.Generator, words: Sequence[Words], num: int) -> list[Words]:
    return [words[i] for i in rng.choice(len(words), num, replace=False)]


def _place(rng: np.random.Generator, chosen: Sequence[Words]) -> list[Box] | None:
    """Boxes that keep their distance; None where 50 draws find no place for one of them."""
    boxes: list[Box] = []
    for words in chosen:
        low, high = SIZES[words.size]
        side = int(rng.integers(low, high + 1))
        for x, y in rng.integers(0, SIDE - side + 1, (50, 2)).tolist():
            box = (x, y, x + side, y + side)
            if all(_are_apart(box, other) for other in boxes):
                boxes.append(box)
                break
        else:
            return None
    return boxes


def _are_apart(a: Box, b: Box) -> bool:
    return any(a[i] - b[i + 2] >= GAP or b[i] - a[i + 2] >= GAP for i in (0, 1))


def draw_scene(scene: Scene) -> Image.Image:
    """An RGB image of 112x112 pixels."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    for words, box in scene:
        draw_shape(draw, words.shape, COLOURS[words.colour], box)
    return image


def loose_answer(rng: np.random.Generator, box: Box) -> str:
    """A point drawn evenly from the widened ``box``, as ``(x, y)``; see :data:`LOOSENESS`."""
    point = []
    for low, high in (box[::2], box[1::2]):
        value = (low + high) / 2 + (high - low) / 2 * LOOSENESS * rng.uniform(-1, 1)
        point.append(min(max(round(value / SNAP), 0), (SIDE - 1) // SNAP) * SNAP)
    return f"({point[0]}, {point[1]})"


def pretraining_set(
    num_scenes: int, seed: int, nums: Sequence[int] = NUM_SHAPES_AT_FIRST
) -> Scenes:
    """Scenes and their records: one for each shape, with the answer that is taught."""
    for number in range(num_scenes):
        scene = make_scene([seed, number], nums)
        rng = np.random.default_rng([seed, number, 1])
        yield (
            scene,
            [{**_record(words, box), "answer": loose_answer(rng, box)} for words, box in scene],
        )


def training_set(num_scenes: int, seed: int) -> Scenes:
    """Scenes and their records: one for the first shape."""
    for number in range(num_scenes):
        scene = make_scene([seed, number])
        yield scene, [_record(*scene[0])]


def held_out_set(num_scenes: int, seed: int) -> Scenes:
    """Scenes and their records: a third of the records for each of :data:`QUESTION_KINDS`.

    One for the first shape of a scene; the same with the instruction of the next scene that has
    another one; and one about a scene of its own whose first shape has new words.
    """
    known, new, swapped = ({"question_kind": kind} for kind in QUESTION_KINDS)
    for number in range(num_scenes):
        scene = make_scene([seed, number])
        words, box = scene[0]
        others = (make_scene([seed, later])[0][0] for later in count(number + 1))
        other = next(one for one in others if one != words)
        yield scene, [_record(words, box) | known, _record(other, box) | swapped]
        scene = make_scene([seed, number], new_words=True)
        yield scene, [_record(*scene[0]) | new]


SPLITS: dict[str, Callable[[int, int], Scenes]] = {
    "one_shape": partial(pretraining_set, nums=(1,)),
    "pretraining": pretraining_set,
    "training": training_set,
    "test": held_out_set,
}
"""What a set is for -> its scenes and their records, from their number and the seed."""


def _record(words: Words, box: Box) -> dict[str, Any]:
    return {"prompt": f"Click on the {words}", "solution": box}


def write_set(out: Path, split: str, num_scenes: int, seed: int, *, quiet: bool = False) -> Path:
    """Writes the first ``num_scenes`` scenes of a seed and their records.

    Returns:
        The path of ``records.json``, which is written last.
    """
    drawn = (
        (draw_scene(scene), [{"num_shapes": len(scene), **one} for one in found])
        for scene, found in SPLITS[split](num_scenes, seed)
    )
    return write_drawn(out, tqdm(drawn, split, num_scenes, unit=" images", disable=quiet))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Write the generated scenes of shapes.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--split", choices=SPLITS, required=True, help="what the records are for")
    parser.add_argument("--num-scenes", type=int, required=True, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(with_dashes(sys.argv[1:] if argv is None else argv))
    if args.num_scenes < 1 or args.seed < 0:
        parser.error("--num-scenes must be at least 1 and --seed at least 0")
    write_set(args.out, args.split, args.num_scenes, args.seed, quiet=args.quiet)


if __name__ == "__main__":
    main()
