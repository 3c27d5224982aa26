"""The overlaps of two panoptic maps, from their runs: no map is drawn and no run is sorted.

Every run marks its two ends in a bitmap of the image (one bit a pixel) and writes its label beside.
Walking the set bits of both bitmaps in order visits each stretch of pixels with one predicted and
one true label, and adds its length to one cell of the intersection table. Sorting runs or drawing
pixels costs several times as much, and the check for overlaps comes free: labels written over each
other make the stretches of the walk add up to less than the runs did (they are equal if and only
if no two runs share a pixel).

As in rle_kernels.py: after a change there, `touch` this file, and after one here pq_kernels.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.panoptic.rle_kernels import EMPTY, read_runs

UNKNOWN_CATEGORY = 16  # a code beyond those of reading a string


@intrinsic
def _lowest_bit_of(context: Any, word: Any) -> Any:
    """Index of the lowest set bit of a uint64 that isn't 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


_lowest_bit: Any = _lowest_bit_of  # numba passes the context itself


@njit(cache=True, nogil=True)
def mark(
    starts: NDArray[Any],
    stops: NDArray[Any],
    n: int,
    label: int,
    bits: NDArray[Any],
    labels: NDArray[Any],
) -> int:
    """Mark n runs; returns their pixels. A start outranks the stop of another run there."""
    area = 0
    for r in range(n):
        start = starts[r]
        stop = stops[r]
        area += stop - start
        bits[start >> 6] |= np.uint64(1) << np.uint64(start & 63)
        labels[start] = label
        bit = np.uint64(1) << np.uint64(stop & 63)
        taken = bits[stop >> 6] & bit
        labels[stop] = labels[stop] if taken else 0
        bits[stop >> 6] |= bit
    return area


@njit(cache=True, nogil=True)
def mark_segments(
    text: NDArray[Any],
    text_first: NDArray[Any],
    classes: NDArray[Any],
    first: int,
    count: int,
    pixels: int,
    may_be_empty: bool,
    starts: NDArray[Any],
    stops: NDArray[Any],
    bits: NDArray[Any],
    labels: NDArray[Any],
) -> tuple[int, int, int, int]:
    """Mark the segments first, first + 1, ... of one side as labels 1, 2, ...

    Returns the pixels of all runs, and a fault: code, segment, detail.
    """
    area = 0
    for s in range(count):
        n, code, detail = read_runs(
            text, text_first[first + s], text_first[first + s + 1], pixels, starts, stops
        )
        if code == 0 and n == 0 and not may_be_empty:
            code = EMPTY
        if code == 0 and classes[first + s] < 0:
            code = UNKNOWN_CATEGORY
        if code:
            return area, code, s, detail
        area += mark(starts, stops, n, s + 1, bits, labels)
    return area, 0, 0, 0


@njit(cache=True, nogil=True)
def intersect(
    pixels: int,
    predicted: NDArray[Any],
    predicted_labels: NDArray[Any],
    true: NDArray[Any],
    true_labels: NDArray[Any],
    table: NDArray[Any],
) -> None:
    """Add up table[predicted label, true label] in pixels, and clear both bitmaps."""
    p = 0
    t = 0
    before = 0
    for w in range((pixels >> 6) + 1):
        p_word = predicted[w]
        t_word = true[w]
        predicted[w] = 0
        true[w] = 0
        left = p_word | t_word
        while left:
            k = _lowest_bit(left)
            at = (w << 6) + k
            table[p, t] += at - before
            before = at
            lowest = left & (~left + np.uint64(1))
            p_label = np.int64(predicted_labels[at])
            t_label = np.int64(true_labels[at])
            p = p_label if p_word & lowest else p
            t = t_label if t_word & lowest else t
            left ^= lowest
    table[p, t] += pixels - before
