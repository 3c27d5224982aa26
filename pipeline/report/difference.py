"""Prediction against truth, pixel by pixel, as a picture: what is right, and in which way it isn't.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; what is right keeps the
photo in grey, so that the eye goes to what is not. Void in the truth is never wrong: it is striped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.report.overlay import contours


class Kind(NamedTuple):
    """One kind of pixel: its colour as RGB, and what it means."""

    name: str
    color: tuple[int, int, int]
    meaning: str


RIGHT: Final = Kind("right", (150, 150, 150), "as in the truth")
WRONG_CLASS: Final = Kind("wrong class", (213, 94, 0), "another category than in the truth")
MISSED: Final = Kind("missed", (0, 114, 178), "in the truth, but nothing was predicted")
UNMATCHED: Final = Kind(
    "unmatched", (240, 228, 66), "the right category, but of segments that match by half or less"
)
VOID: Final = Kind("void", (255, 255, 255), "unnamed in the truth: not scored (striped)")
KINDS: Final = (RIGHT, WRONG_CLASS, MISSED, UNMATCHED, VOID)
# Of two predictions, by the category of each pixel.
SAME: Final = Kind("unchanged", (150, 150, 150), "the same category before and now")
BETTER: Final = Kind("better", (0, 114, 178), "wrong before, now as in the truth")
WORSE: Final = Kind("worse", (213, 94, 0), "as in the truth before, now wrong")
OTHER: Final = Kind("wrong twice", (240, 228, 66), "changed, and wrong before and now")
CHANGED: Final = Kind("changed", (204, 121, 167), "another category, and no truth to judge it by")
CHANGES: Final = (SAME, BETTER, WORSE, OTHER, CHANGED, VOID)
_STRIPE: Final = 12  # pixels


def compare_maps(
    predicted: NDArray[np.integer],
    true: NDArray[np.integer],
    predicted_category: Sequence[int],
    true_category: Sequence[int],
    matches: Iterable[tuple[int, int]],
) -> NDArray[np.uint8]:
    """(H, W): the index in KINDS of each pixel.

    predicted, true: (H, W) ids, 0 where there is no segment; `..._category`: the category of each
    id, from id 0 (whatever is given for it is not used); matches: (predicted id, true id) of the
    true positives.
    """
    own, other = np.asarray(predicted_category), np.asarray(true_category)
    kind = np.full((len(own), len(other)), KINDS.index(UNMATCHED), np.uint8)
    kind[own[:, None] != other[None]] = KINDS.index(WRONG_CLASS)
    for one, two in matches:
        kind[one, two] = KINDS.index(RIGHT)
    kind[0] = KINDS.index(MISSED)
    kind[:, 0] = KINDS.index(VOID)
    return kind[predicted, true]


def compare_changes(
    before: NDArray[np.integer], now: NDArray[np.integer], true: NDArray[np.integer] | None = None
) -> NDArray[np.uint8]:
    """(H, W): the index in CHANGES of each pixel, from the categories (-1: none) of the three."""
    if true is None:
        same, other = CHANGES.index(SAME), CHANGES.index(CHANGED)
        return np.where(before == now, same, other).astype(np.uint8)
    kinds = np.full(true.shape, CHANGES.index(OTHER), np.uint8)
    kinds[now == true] = CHANGES.index(BETTER)
    kinds[before == true] = CHANGES.index(WORSE)
    kinds[before == now] = CHANGES.index(SAME)
    kinds[true < 0] = CHANGES.index(VOID)
    return kinds


def draw_difference(
    image: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    outlined: NDArray[np.integer],
    named: Sequence[Kind] = KINDS,
) -> Image.Image:
    """The photo in grey under the colours of `kinds`, the segments of a map outlined.

    image: (H, W, 3) uint8 of the size of kinds and outlined, both (H, W); named: what kinds index,
    the first what is right.
    """
    grey = image.mean(axis=2, keepdims=True) * 0.5 + 60
    picture = np.repeat(grey, 3, axis=2)
    colors = np.array([kind.color for kind in named], np.float64)
    wrong = (kinds != 0) & (kinds != named.index(VOID))
    picture[wrong] = picture[wrong] * 0.3 + colors[kinds[wrong]] * 0.7
    rows, columns = np.indices(kinds.shape)
    stripes = (kinds == named.index(VOID)) & ((rows + columns) % _STRIPE < 3)
    picture[stripes] = picture[stripes] * 0.4 + 255 * 0.6
    picture[contours(outlined, 1)] = 245
    return Image.fromarray(picture.round().clip(0, 255).astype(np.uint8))
