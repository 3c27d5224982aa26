"""The difference of prediction and truth as a picture, with a kind (right, missed, ...) per pixel.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart. Right pixels show the
photo in grey, so that errors stand out. Pixels that are void in the truth are never wrong; they are
striped.
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
# Kinds of pixels for two predictions, by category.
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
    """The index in KINDS of each pixel, (H, W) uint8.

    predicted, true: (H, W) ids, 0 without a segment. predicted_category, true_category: the
    category of each id from 0 up; that of id 0 is ignored. matches: (predicted id, true id) of the
    true positives.
    """
    categories, true_categories = np.asarray(predicted_category), np.asarray(true_category)
    kind = np.full((len(categories), len(true_categories)), KINDS.index(UNMATCHED), np.uint8)
    kind[categories[:, None] != true_categories[None]] = KINDS.index(WRONG_CLASS)
    for predicted_id, true_id in matches:
        kind[predicted_id, true_id] = KINDS.index(RIGHT)
    kind[0] = KINDS.index(MISSED)
    kind[:, 0] = KINDS.index(VOID)
    return kind[predicted, true]


def compare_changes(
    before: NDArray[np.integer], now: NDArray[np.integer], true: NDArray[np.integer] | None = None
) -> NDArray[np.uint8]:
    """The index in CHANGES of each pixel, (H, W) uint8.

    before, now, true: (H, W) category ids, -1 without a segment.
    """
    if true is None:
        same, changed = CHANGES.index(SAME), CHANGES.index(CHANGED)
        return np.where(before == now, same, changed).astype(np.uint8)
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
    """The photo in grey under the colours of `kinds`, with the contours of `outlined`.

    image: (H, W, 3) uint8. kinds: (H, W) indices into `named`, whose first entry is not coloured.
    outlined: (H, W) segment ids.
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
