"""Of several answers to one prompt, the one where most of them point: voting by region."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from grpo_stream.boxes import Box, Point, Size
from grpo_stream.grounding.cases import Case

POINT_SHARE = 0.03
"""Side of the square that a point votes for, as a share of the image's longest side."""


def voted_answer(cases: Sequence[Case]) -> int:
    """The place in ``cases`` of the answer that wins.

    Each answer votes for its box, or for a square around its point. The region with the most
    votes wins, of several the largest, and of the answers that cover it the one whose point is
    nearest to its middle: so what wins is an answer that was given. Where more texts refuse than
    vote for that region, the first refusal wins; where no text can be read, the first text does.

    Source: the consensus region of GUI-RC (arXiv 2508.05615), which answers its middle itself.

    Args:
        cases: Of one sample; at least one, with the size of the image.
    """
    size = cases[0].size
    regions = [None if case.is_refusal or size is None else _region(case, size) for case in cases]
    voters = [number for number, region in enumerate(regions) if region is not None]
    refusals = [number for number, case in enumerate(cases) if case.is_refusal]
    boxes = [region for region in regions if region is not None]
    if not boxes:
        return refusals[0] if refusals else 0
    middle, covers, num_votes = _densest(boxes)
    if len(refusals) > num_votes:
        return refusals[0]

    def away(number: int) -> float:
        centre = boxes[number].centre
        return (centre.x - middle.x) ** 2 + (centre.y - middle.y) ** 2

    return voters[min(covers, key=away)]


def _region(case: Case, size: Size) -> Box | None:
    if case.point is None or case.box is not None:
        return case.box
    reach = POINT_SHARE * max(size) / 2
    x, y = case.point.x, case.point.y
    return Box(x - reach, y - reach, x + reach, y + reach)


def _densest(boxes: Sequence[Box]) -> tuple[Point, list[int], int]:
    """The middle of the densest region, the boxes that cover part of it, and how many do all."""
    xs = np.unique([x for box in boxes for x in (box.x1, box.x2)])
    ys = np.unique([y for box in boxes for y in (box.y1, box.y2)])
    spans = [
        (
            slice(*np.searchsorted(ys, (box.y1, box.y2))),
            slice(*np.searchsorted(xs, (box.x1, box.x2))),
        )
        for box in boxes
    ]
    votes = np.zeros((len(ys) - 1, len(xs) - 1), np.int64)
    for span in spans:
        votes[span] += 1
    top = votes == votes.max()
    areas = np.diff(ys)[:, None] * np.diff(xs)[None, :]
    cells = max(_pieces(top), key=lambda piece: float((areas * piece).sum()))
    rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    middle = Point(
        float(xs[columns[0]] + xs[columns[-1] + 1]) / 2, float(ys[rows[0]] + ys[rows[-1] + 1]) / 2
    )
    covers = [number for number, span in enumerate(spans) if cells[span].any()]
    return middle, covers, int(votes.max())


def _pieces(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Groups of cells that are True and share a side, in the order of their first cells."""
    left, pieces = mask.copy(), []
    while left.any():
        piece = np.zeros_like(mask)
        piece[tuple(np.argwhere(left)[0])] = True
        while True:
            grown = piece.copy()
            grown[1:] |= piece[:-1]
            grown[:-1] |= piece[1:]
            grown[:, 1:] |= piece[:, :-1]
            grown[:, :-1] |= piece[:, 1:]
            grown &= left
            if (grown == piece).all():
                break
            piece = grown
        pieces.append(piece)
        left &= ~piece
    return pieces
