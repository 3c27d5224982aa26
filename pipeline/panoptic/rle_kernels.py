"""The compiled loops that read COCO's run-length strings.

Compiled once per machine (`cache=True`), without the GIL. They check nothing about their
arguments' shapes and return codes instead of raising: rle.py and pq.py, their only callers, turn
a code into a sentence. Arrays are untyped here because numba compiles a kernel per dtype.

Numba's cache looks at the time stamp of the file that defines a kernel, not of what it calls:
after a change here, `touch pipeline/panoptic/pq_kernels.py`, which has `read_runs` compiled in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

# What `read_runs` may find wrong; 0 is good.
TRUNCATED, BAD_CHARACTER, NUMBER_TOO_LONG, NEGATIVE, PAST_END, SHORT, EMPTY, OVERLAP = range(1, 9)


@njit(cache=True, nogil=True)
def read_runs(
    text: NDArray[Any],
    begin: int,
    end: int,
    pixels: int,
    starts: NDArray[Any],
    stops: NDArray[Any],
) -> tuple[int, int, int]:
    """One COCO string, text[begin:end], as runs of ones in starts[:n], stops[:n].

    Returns n, 0, 0 or -1, code, detail. starts and stops need (end - begin) // 2 + 1 places: each
    count takes at least a byte.
    """
    n = 0
    at = 0  # column-major pixel position
    index = 0  # of the count
    gap = 0  # the last two counts, by parity
    ones = 0
    p = begin
    while p < end:
        c = int(text[p]) - 48
        if c < 0 or c > 63:
            return -1, BAD_CHARACTER, p - begin
        p += 1
        x = c & 31
        if c & 32:
            shift = 5
            while True:
                if p >= end:
                    return -1, TRUNCATED, 0
                c = int(text[p]) - 48
                if c < 0 or c > 63:
                    return -1, BAD_CHARACTER, p - begin
                p += 1
                x |= (c & 31) << shift
                shift += 5
                if c & 32 == 0:
                    break
                if shift > 30:
                    return -1, NUMBER_TOO_LONG, p - begin
            if c & 16:
                x -= 1 << shift
        elif c & 16:
            x -= 32
        if index & 1:
            if index > 2:
                x += ones
            if x < 0:
                return -1, NEGATIVE, index
            ones = x
            if x > 0:
                starts[n] = at
                at += x
                if at > pixels:
                    return -1, PAST_END, at
                stops[n] = at
                n += 1
        else:
            if index > 2:
                x += gap
            if x < 0:
                return -1, NEGATIVE, index
            gap = x
            at += x
            if at > pixels:
                return -1, PAST_END, at
        index += 1
    if at != pixels:
        return -1, SHORT, at
    return n, 0, 0


@njit(cache=True, nogil=True)
def decode(
    text: NDArray[Any],
    offsets: NDArray[Any],
    ids: NDArray[Any],
    out: NDArray[Any],
) -> tuple[int, int, int]:
    """Paint into out (pixels,), column-major; code, segment index, detail."""
    longest = 0
    for s in range(ids.size):
        longest = max(longest, offsets[s + 1] - offsets[s])
    starts = np.empty(longest // 2 + 1, dtype=np.int32)
    stops = np.empty(longest // 2 + 1, dtype=np.int32)
    for s in range(ids.size):
        n, code, detail = read_runs(text, offsets[s], offsets[s + 1], out.size, starts, stops)
        if code == 0 and n == 0:
            code = EMPTY
        if code:
            return code, s, detail
        for r in range(n):
            for i in range(starts[r], stops[r]):
                if out[i]:
                    other = 0
                    while ids[other] != out[i]:
                        other += 1
                    return OVERLAP, s, other
                out[i] = ids[s]
    return 0, 0, 0
