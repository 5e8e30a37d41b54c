"""The generated toy set: one coloured shape on white, and where it is.

``python -m launch.make_shapes --out DIR --num-images N --seed S`` writes ``DIR/images/*.png`` and
``DIR/records.json`` in the raw record format of shard-builder. Image i depends on the seed and i
alone, so a smaller set is the beginning of a larger one; use other seeds for other splits.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from grpo_stream.flags import with_dashes

SIDE = 112
"""Width and height of an image in pixels: 4 x 4 visual tokens of 28 pixels."""

MIN_BOX, MAX_BOX = 24, 36
"""Smallest and largest side of a shape's box in pixels, both included."""

SHAPES = ("circle", "square", "triangle")

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 200, 30),
}
"""Name -> RGB."""


def make_shape(seed: int, number: int) -> tuple[Image.Image, dict[str, Any]]:
    """Image ``number`` of the set with this seed, and its record.

    Returns:
        An RGB image of 112x112 pixels, and the record: ``prompt``, ``solution`` (the exact box
        ``[x1, y1, x2, y2]`` of the coloured pixels, ends exclusive), ``width``, ``height``,
        ``shape``, ``colour``; ``image`` is left to whoever stores it.
    """
    rng = np.random.default_rng([seed, number])
    shape = SHAPES[rng.integers(len(SHAPES))]
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    side = int(rng.integers(MIN_BOX, MAX_BOX + 1))
    x1, y1 = (int(corner) for corner in rng.integers(0, SIDE - side + 1, 2))
    x2, y2 = x1 + side, y1 + side
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw_shape(ImageDraw.Draw(image), shape, COLOURS[colour], (x1, y1, x2, y2))
    record = {
        "prompt": f"Click on the {colour} {shape}",
        "solution": [x1, y1, x2, y2],
        "width": SIDE,
        "height": SIDE,
        "shape": shape,
        "colour": colour,
    }
    return image, record


def draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    colour: tuple[int, int, int],
    box: tuple[int, int, int, int],
) -> None:
    """Fills a shape that touches all four sides of ``box``, in pixels, ends exclusive."""
    x1, y1, x2, y2 = box
    last = (x2 - 1, y2 - 1)  # Pillow's ends are inclusive
    if shape == "circle":
        draw.ellipse(((x1, y1), last), fill=colour)
    elif shape == "square":
        draw.rectangle(((x1, y1), last), fill=colour)
    else:
        draw.polygon(((x1, y2 - 1), last, ((x1 + x2 - 1) / 2, y1)), fill=colour)


def write_set(out: Path, num_images: int, seed: int, *, quiet: bool = False) -> Path:
    """Writes the first ``num_images`` images of a seed and their records.

    Returns:
        The path of ``records.json``, which is written last.
    """
    shapes = (make_shape(seed, number) for number in range(num_images))
    drawn = ((image, [record]) for image, record in shapes)
    return write_drawn(out, tqdm(drawn, "shapes", num_images, unit=" images", disable=quiet))


def write_drawn(out: Path, drawn: Iterable[tuple[Image.Image, Sequence[dict[str, Any]]]]) -> Path:
    """Writes images and, behind them, the records of all in their order.

    Args:
        out: Gets ``images/`` and ``records.json``.
        drawn: Each image with its records, to which its name is added.

    Returns:
        The path of ``records.json``, which is written last.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (image, records) in enumerate(drawn):
        name = f"images/{number:06d}.png"
        image.save(out / name)
        lines += [json.dumps({"image": name, **record}) for record in records]
    path = out / "records.json"
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Write the generated set of coloured shapes.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--num-images", type=int, required=True, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(with_dashes(sys.argv[1:] if argv is None else argv))
    if args.num_images < 1 or args.seed < 0:
        parser.error("--num-images must be at least 1 and --seed at least 0")
    write_set(args.out, args.num_images, args.seed, quiet=args.quiet)


if __name__ == "__main__":
    main()
