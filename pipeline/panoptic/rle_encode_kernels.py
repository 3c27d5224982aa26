"""The compiled loops that find the runs of a map and write them as COCO strings.

Like rle_kernels.py: compiled once per machine, without the GIL, checking nothing that rle.py, their
only caller, has checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

DIRECT = 1024  # ids below are looked up in a plain array, which stays in the nearest cache


@njit(cache=True, nogil=True)
def positions(words: NDArray[Any], out: NDArray[Any]) -> int:
    """Positions of the bytes that are 1, eight bytes a word; how many, or -1 if out is too small.

    Without a branch per byte or word: a mispredicted one costs more than the rest of the work.
    """
    n = 0
    room = out.size - 8
    for low in range(0, words.size, 4):
        if words[low] | words[low + 1] | words[low + 2] | words[low + 3]:
            for w in range(low, low + 4):
                if n > room:
                    return -1
                left = words[w]
                # The lowest set byte, k, has its one at bit 8 k: times the constant, k is on top.
                lowest = left & (~left + np.uint64(1))
                byte = (lowest * np.uint64(0x0001020304050607)) >> np.uint64(56)
                out[n] = 8 * w + np.int64(byte)
                n += left != 0
                left ^= lowest
                while left:  # rare: two changes within eight pixels
                    lowest = left & (~left + np.uint64(1))
                    byte = (lowest * np.uint64(0x0001020304050607)) >> np.uint64(56)
                    out[n] = 8 * w + np.int64(byte)
                    n += 1
                    left ^= lowest
    return n


@njit(cache=True, nogil=True)
def runs_of_rows(rows: NDArray[Any], changes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """rows: (H, W) row-major, changes: where a pixel differs from the one above, row-major and
    headed by the whole first row -> run starts (column-major positions) and values.

    A counting sort by column; rows come ascending already.
    """
    height, width = rows.shape
    ys = np.empty(changes.size, dtype=np.int32)
    place = np.zeros(width + 1, dtype=np.int32)
    y = 0
    low = 0
    for k in range(changes.size):
        while changes[k] >= low + width:
            y += 1
            low += width
        ys[k] = y
        place[changes[k] - low + 1] += 1
    # A column whose top continues the bottom of the column to its left starts no run.
    for x in range(1, width):
        if rows[0, x] == rows[height - 1, x - 1]:
            place[x + 1] -= 1
    for x in range(width):
        place[x + 1] += place[x]
    starts = np.empty(place[width], dtype=np.int32)
    values = np.empty(starts.size, dtype=rows.dtype)
    for k in range(changes.size):
        y = ys[k]
        x = changes[k] - y * width
        if y == 0 and x > 0 and rows[0, x] == rows[height - 1, x - 1]:
            continue
        starts[place[x]] = x * height + y
        values[place[x]] = rows[y, x]
        place[x] += 1
    return starts, values


@njit(cache=True, nogil=True)
def put_number(text: NDArray[Any], p: int, x: int) -> int:
    """One number in COCO's base 32: five bits a character, low first, sign from the last."""
    while True:
        c = x & 31
        x >>= 5
        if x == (-1 if c & 16 else 0):
            text[p] = c + 48
            return p + 1
        text[p] = c + 80
        p += 1


@njit(cache=True, nogil=True)
def _find(table: NDArray[Any], slots: NDArray[Any], shift: int, key: int) -> int:
    """Place of key, or of the empty slot where it would go (open addressing)."""
    at: Any = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(shift))
    while slots[at] >= 0 and table[at] != key:
        at = (at + 1) & (table.size - 1)
    return at


@njit(cache=True, nogil=True)
def _slots(values: NDArray[Any], keys: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """(n,) place in keys of each value, or -1; and whether the keys are distinct."""
    count = keys.size
    slot = np.empty(values.size, dtype=np.int32)
    if count and keys.min() >= 0 and keys.max() < DIRECT:  # the ids of a prediction: 1, 2, 3 ...
        direct = np.full(DIRECT, -1, dtype=np.int32)
        for s in range(count):
            if direct[keys[s]] >= 0:
                return slot, False
            direct[keys[s]] = s
        for r in range(values.size):
            value = np.int64(values[r])
            slot[r] = direct[value] if 0 <= value < DIRECT else -1
        return slot, True

    shift = 62  # a table at least twice as large as the keys
    while (1 << (64 - shift)) < 2 * count + 2:
        shift -= 1
    table = np.empty(1 << (64 - shift), dtype=np.int64)
    slots = np.full(table.size, -1, dtype=np.int32)
    for s in range(count):
        at = _find(table, slots, shift, keys[s])
        if slots[at] >= 0:
            return slot, False
        table[at] = keys[s]
        slots[at] = s
    for r in range(values.size):
        slot[r] = slots[_find(table, slots, shift, values[r])]
    return slot, True


@njit(cache=True, nogil=True)
def encode_runs(
    starts: NDArray[Any], values: NDArray[Any], height: int, width: int, keys: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """-> text, begin (n,), end (n,), area (n,), bbox (n, 4); an empty text if a key repeats."""
    count = keys.size
    pixels = height * width
    slot, distinct = _slots(values, keys)
    if not distinct:
        nothing = np.empty(0, dtype=np.int64)
        return (
            np.empty(0, dtype=np.uint8),
            nothing,
            nothing,
            nothing,
            np.empty((0, 4), dtype=np.int32),
        )
    runs = np.zeros(count, dtype=np.int64)
    for s in slot:
        if s >= 0:
            runs[s] += 1
    begin = np.empty(count, dtype=np.int64)
    total = 0
    for s in range(count):  # a count takes at most 7 characters; two a run, one at the end
        begin[s] = total
        total += 14 * runs[s] + 7
    text = np.empty(total, dtype=np.uint8)
    end: Any = begin.copy()

    area = np.zeros(count, dtype=np.int64)
    box = np.empty((count, 4), dtype=np.int32)  # left, top, right, bottom, inclusive
    box[:, 0] = -1
    last: Any = np.zeros(count, dtype=np.int64)  # end of the segment's last run
    gap: Any = np.zeros(count, dtype=np.int64)  # its last count of zeros, from the second on
    ones: Any = np.zeros(count, dtype=np.int64)
    column = 0
    for r in range(starts.size):
        start = int(starts[r])
        stop = int(starts[r + 1]) if r + 1 < starts.size else pixels
        left = column
        top = start - left * height
        right = left
        bottom = top + stop - start - 1
        if bottom >= height - 1:  # on to the column where the next run starts
            full = bottom // height
            right = left + full
            column = right + (1 if bottom - full * height == height - 1 else 0)
            if full:
                top = 0
                bottom = height - 1
        s = slot[r]
        if s < 0:
            continue
        length = stop - start
        zeros = start - last[s]
        p = put_number(text, end[s], zeros - gap[s])
        end[s] = put_number(text, p, length - ones[s])
        # COCO codes a count against the one two before it, but only from the fourth on.
        if area[s] > 0:
            gap[s] = zeros
        ones[s] = length
        last[s] = stop
        area[s] += length
        if box[s, 0] < 0:
            box[s, 0] = left
            box[s, 1] = top
            box[s, 2] = right
            box[s, 3] = bottom
        else:
            box[s, 1] = min(box[s, 1], top)
            box[s, 2] = max(box[s, 2], right)
            box[s, 3] = max(box[s, 3], bottom)
    bbox = np.zeros((count, 4), dtype=np.int32)
    for s in range(count):
        if area[s] == 0:
            continue
        if last[s] < pixels:
            end[s] = put_number(text, end[s], pixels - last[s] - gap[s])
        bbox[s, 0] = box[s, 0]
        bbox[s, 1] = box[s, 1]
        bbox[s, 2] = box[s, 2] - box[s, 0] + 1
        bbox[s, 3] = box[s, 3] - box[s, 1] + 1
    return text, begin, end, area, bbox
