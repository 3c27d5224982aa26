"""Numba kernels: read and write COCO's RLE strings, intersect two panoptic maps, score PQ.

The kernels are compiled once per machine (`cache=True`) and run without the GIL. They don't check
the shapes of their arguments, and return fault codes instead of raising; rle.py, pq.py and
bootstrap.py, the only callers, make sentences of the codes. Arrays have no dtype here, because
numba compiles a kernel per dtype. All kernels stand in one file: numba's cache compares the time
stamp of the file that defines a kernel, not the files of the kernels that it calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

# Fault codes: of a string, of a segment, of an image; 0 is no fault.
TRUNCATED, BAD_CHARACTER, NUMBER_TOO_LONG, NEGATIVE, PAST_END, SHORT, EMPTY, OVERLAP = range(1, 9)
UNKNOWN_CATEGORY = 16
SIZE, TOO_MANY = 17, 18

DIRECT = 1024  # smaller ids are looked up in an array, which fits the L1 cache
TP, FP, FN = range(3)
IOU_HIGH, IOU_LOW, COUNT_TP, COUNT_FP, COUNT_FN = range(5)
MAX_SEGMENTS = 2**16 - 3
SMALL, MEDIUM = 32**2, 96**2  # COCO's bounds of a small and a medium area, in pixels
IOU_UNIT = 2.0**53
REPLICATE_UNIT = 2.0**20  # resolution of an IoU in the bootstrap; its sums stay below 2^53


# Strings to runs.


@njit(cache=True, nogil=True)
def read_runs(
    text: NDArray[Any],
    begin: int,
    end: int,
    pixels: int,
    starts: NDArray[Any],
    stops: NDArray[Any],
) -> tuple[int, int, int]:
    """Decode the COCO RLE string text[begin:end] into runs of ones, starts[:n] and stops[:n].

    Returns (n, 0, 0), or (-1, code, detail) for a fault. starts, stops: (>= (end - begin) // 2 +
    1,), since each count takes at least a byte.
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
def paint(
    text: NDArray[Any],
    offsets: NDArray[Any],
    ids: NDArray[Any],
    out: NDArray[Any],
) -> tuple[int, int, int]:
    """Decode RLE strings and write their ids into out, (pixels,) column-major, all 0 before.

    Returns (code, segment index, detail).
    """
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
                    painted = 0
                    while ids[painted] != out[i]:
                        painted += 1
                    return OVERLAP, s, painted
                out[i] = ids[s]
    return 0, 0, 0


# Maps to strings.


@njit(cache=True, nogil=True)
def positions(words: NDArray[Any], out: NDArray[Any]) -> int:
    """Write the positions of bytes that are 1 to out; returns their number, -1 if out is too small.

    words: uint64, eight bytes of 0 or 1 each, a multiple of 4 words. No branch per byte or word:
    mispredicted branches would take most of the time.
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
    """The column-major runs of a row-major map: (n,) int32 starts and (n,) values.

    rows: (H, W). changes: row-major positions, ascending, of the first row and of every pixel that
    differs from the pixel above. A counting sort by column.
    """
    height, width = rows.shape
    ys = np.empty(changes.size, dtype=np.int32)
    slots = np.zeros(width + 1, dtype=np.int32)
    y = 0
    low = 0
    for k in range(changes.size):
        while changes[k] >= low + width:
            y += 1
            low += width
        ys[k] = y
        slots[changes[k] - low + 1] += 1
    # A column whose top pixel equals the bottom pixel of the column to the left starts no run.
    for x in range(1, width):
        if rows[0, x] == rows[height - 1, x - 1]:
            slots[x + 1] -= 1
    for x in range(width):
        slots[x + 1] += slots[x]
    starts = np.empty(slots[width], dtype=np.int32)
    values = np.empty(starts.size, dtype=rows.dtype)
    for k in range(changes.size):
        y = ys[k]
        x = changes[k] - y * width
        if y == 0 and x > 0 and rows[0, x] == rows[height - 1, x - 1]:
            continue
        starts[slots[x]] = x * height + y
        values[slots[x]] = rows[y, x]
        slots[x] += 1
    return starts, values


@njit(cache=True, nogil=True)
def put_number(text: NDArray[Any], p: int, x: int) -> int:
    """Write x at text[p] in COCO's code (5 bits a character, low bits first); returns the end."""
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
    """Index of key, or of the empty slot for it, in a hash table with open addressing."""
    at: Any = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(shift))
    while slots[at] >= 0 and table[at] != key:
        at = (at + 1) & (table.size - 1)
    return at


@njit(cache=True, nogil=True)
def _slots(values: NDArray[Any], keys: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """(n,) position of each value in keys, -1 for none; and whether the keys are distinct."""
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
    """Encode the segments `keys` from the column-major runs of a map.

    Returns text, and of each key s: its RLE string text[begin[s]:end[s]], area[s] in pixels,
    bbox[s] (x, y, width, height). text is empty if a key repeats. starts, values: as `rle.runs`.
    """
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
    gap: Any = np.zeros(
        count, dtype=np.int64
    )  # the segment's last count of zeros, from the second run on
    ones: Any = np.zeros(count, dtype=np.int64)
    column = 0
    for r in range(starts.size):
        start = int(starts[r])
        stop = int(starts[r + 1]) if r + 1 < starts.size else pixels
        left = column
        top = start - left * height
        right = left
        bottom = top + stop - start - 1
        if bottom >= height - 1:  # the run ends its column: find the next run's column
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
        # COCO codes a count as the difference to the count two before, from the fourth count on.
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


# Intersections of two maps from their runs, without drawing maps or sorting runs, which would cost
# several times as much. `mark` sets the bits of the two ends of every run in a bitmap of the image
# (one bit a pixel) and writes the run's label to an array. `intersect` walks the set bits of both
# bitmaps in order: between two bits all pixels have one predicted and one true label, and their
# number is added to one cell of the intersection table. Two runs of one map share a pixel if and
# only if the cells of the map's labels add up to less than the lengths of its runs.


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
    """Set the bits of the ends of n runs, and their labels: `label` at starts, 0 at stops.

    A start keeps its label where another run stops. Returns the sum of the runs' lengths.
    """
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
    """`mark` the segments first, first + 1, ... of one side with the labels 1, 2, ...

    Returns (sum of the runs' lengths, fault code, segment, detail).
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
    """Add the pixels of each pair to table[predicted label, true label], and clear both bitmaps."""
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


# PQ and its bootstrap.


@njit(cache=True, nogil=True)
def _size_of(area: int) -> int:
    return 0 if area < SMALL else 1 if area < MEDIUM else 2


@njit(cache=True, nogil=True)
def bootstrap_weights(seed: int, poisson: NDArray[Any], out: NDArray[Any]) -> None:
    """Write the Poisson(1) weight of one image in each replicate to out (splitmix64 of the hash).

    out: (replicates,), a multiple of 4.
    """
    state = np.uint64(seed)
    for b in range(0, out.size, 4):
        state += np.uint64(0x9E3779B97F4A7C15)
        z = state
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        for k in range(4):
            out[b + k] = poisson[(z >> np.uint64(16 * k)) & np.uint64(0xFFFF)]


@njit(cache=True, nogil=True)
def fill_weights(seeds: NDArray[Any], poisson: NDArray[Any], out: NDArray[Any]) -> None:
    """`bootstrap_weights` of n images. out: (n, replicates)."""
    for i in range(seeds.size):
        bootstrap_weights(seeds[i], poisson, out[i])


@njit(cache=True, nogil=True)
def _add(row: NDArray[Any], weights: NDArray[Any], value: float) -> None:
    for b in range(weights.size):
        row[b] += weights[b] * value


@njit(cache=True, nogil=True)
def _set(row: NDArray[Any], a: int, b: int, c: int, d: int, e: int) -> None:
    row[0] = a
    row[1] = b
    row[2] = c
    row[3] = d
    row[4] = e


@njit(cache=True, nogil=True)
def score(
    prediction_rows: NDArray[Any],  # (n,) row of each image among the predictions
    truth_rows: NDArray[Any],  # (n,) row of each image in the truth
    predictions: Any,  # pq.Side
    truth: Any,  # pq.Side
    seeds: NDArray[Any],  # (n,) uint64 hash of each image
    labels: NDArray[Any],  # (2, pixels of the largest image + 1), dtype for all labels
    poisson: NDArray[Any],  # (65536,) weight by 16 random bits
    sums: NDArray[Any],  # (classes, 3 sizes, 5) int64, added to
    replicates: NDArray[Any],  # (3: IoU, TP, FP + FN; classes, replicates) float64, added to
    scored: Any,  # pq.Scored, written
) -> None:
    """Score n images by panopticapi's rules (docs/evaluation.md lists them).

    An image with a fault adds nothing to the sums. One call scores many images, because a call from
    Python costs as much as a tenth of an image.
    """
    p_size, p_first, p_class = predictions.size, predictions.first, predictions.classes
    p_text, p_text_first = predictions.text, predictions.text_first
    t_size, t_first = truth.size, truth.first
    t_class, t_crowd = truth.classes, truth.crowd
    t_text, t_text_first = truth.text, truth.text_first
    # Pixels whose id the truth's JSON doesn't list are neither a segment nor void.
    u_text, u_text_first = truth.unlisted, truth.unlisted_first
    faults, totals, ious = scored.faults, scored.totals, scored.ious
    events, event_iou, event_first = scored.events, scored.event_iou, scored.event_first
    mixes, mix_iou, mix_first = scored.mixes, scored.mix_iou, scored.mix_first
    longest = 1
    for i in range(truth_rows.size):
        t = truth_rows[i]
        for s in range(t_first[t], t_first[t + 1]):
            longest = max(longest, t_text_first[s + 1] - t_text_first[s])
        longest = max(longest, u_text_first[t + 1] - u_text_first[t])
        p = prediction_rows[i]
        for s in range(p_first[p], p_first[p + 1]):
            longest = max(longest, p_text_first[s + 1] - p_text_first[s])
    starts = np.empty(longest // 2 + 1, dtype=np.int32)
    stops = np.empty(longest // 2 + 1, dtype=np.int32)
    p_labels = labels[0]
    t_labels = labels[1]
    p_bits = np.zeros((p_labels.size >> 6) + 1, dtype=np.uint64)
    t_bits = np.zeros((p_labels.size >> 6) + 1, dtype=np.uint64)
    weights = np.empty(replicates.shape[2], dtype=np.float64)
    last_crowd = np.zeros(sums.shape[0], dtype=np.int32)

    event = 0
    mix = 0
    for i in range(prediction_rows.size):
        event_first[i] = event
        mix_first[i] = mix
        p_row: Any = prediction_rows[i]
        t_row: Any = truth_rows[i]
        height = t_size[t_row, 0]
        pixels = height * t_size[t_row, 1]
        failed = p_size[p_row, 0] < 0
        p0: Any = p_first[p_row]
        t0: Any = t_first[t_row]
        p_count: Any = 0 if failed else p_first[p_row + 1] - p0
        t_count: Any = t_first[t_row + 1] - t0
        if not failed and (p_size[p_row, 0] != height or p_size[p_row, 1] != t_size[t_row, 1]):
            faults[i, 0] = SIZE
            continue
        if max(p_count, t_count) > MAX_SEGMENTS:
            faults[i, 0] = TOO_MANY
            faults[i, 1] = 1 if t_count > MAX_SEGMENTS else 0
            continue

        # 1. Read the strings of both sides into bitmaps.
        side = 1
        t_area, code, segment, detail = mark_segments(
            t_text, t_text_first, t_class, t0, t_count, pixels, True,
            starts, stops, t_bits, t_labels,
        )  # fmt: skip
        u0: Any = u_text_first[t_row]
        u1: Any = u_text_first[t_row + 1]
        if code == 0 and u1 > u0:
            segment = -1
            n, code, detail = read_runs(u_text, u0, u1, pixels, starts, stops)
            if code == 0:
                t_area += mark(starts, stops, n, t_count + 1, t_bits, t_labels)
        p_area = 0
        if code == 0:
            side = 0
            p_area, code, segment, detail = mark_segments(
                p_text, p_text_first, p_class, p0, p_count, pixels, False,
                starts, stops, p_bits, p_labels,
            )  # fmt: skip
        if code:
            _set(faults[i], code, side, segment, detail, 0)
            p_bits[:] = 0
            t_bits[:] = 0
            continue

        # 2. Intersect. Row 0: unpredicted pixels; column 0: void; last column: unlisted pixels.
        table = np.zeros((p_count + 1, t_count + 2), dtype=np.int64)
        intersect(pixels, p_bits, p_labels, t_bits, t_labels, table)
        p_areas = table.sum(axis=1)
        t_areas = table.sum(axis=0)
        if t_areas[1:].sum() != t_area:
            _set(faults[i], OVERLAP, 1, -1, -1, 0)
            continue
        if p_areas[1:].sum() != p_area:
            _set(faults[i], OVERLAP, 0, -1, -1, 0)
            continue

        # 3. Match: IoU > 1/2, in integers; void pixels of a prediction don't count in the union.
        weighted = replicates.shape[2] > 0
        if weighted:
            bootstrap_weights(seeds[i], poisson, weights)
        true_of = np.full(p_count + 1, -1, dtype=np.int64)
        matched = np.zeros(t_count + 1, dtype=np.bool_)
        for p in range(1, p_count + 1):
            kept = p_areas[p] - table[p, 0]
            for t in range(1, t_count + 1):
                common = table[p, t]
                if common == 0 or t_crowd[t0 + t - 1]:
                    continue
                union = kept + t_areas[t] - common
                if 2 * common <= union:
                    continue
                iou = common / union
                c: Any = p_class[p0 + p - 1]
                if c != t_class[t0 + t - 1]:
                    mixes[mix, 0] = t_class[t0 + t - 1]
                    mixes[mix, 1] = c
                    mix_iou[mix] = iou
                    mix += 1
                    continue
                true_of[p] = t
                matched[t] = True
                size = _size_of(t_areas[t])
                exact = np.int64(iou * IOU_UNIT)
                sums[c, size, IOU_HIGH] += exact >> 32
                sums[c, size, IOU_LOW] += exact & 0xFFFFFFFF
                sums[c, size, COUNT_TP] += 1
                totals[i, TP] += 1
                ious[i] += iou
                _set(events[event], c, size, TP, p - 1, t - 1)
                event_iou[event] = iou
                event += 1
                if weighted:
                    _add(replicates[0, c], weights, np.floor(iou * REPLICATE_UNIT + 0.5))
                    _add(replicates[1, c], weights, 1.0)

        # 4. Misses: unmatched true segments that are no crowds. False positives: unmatched
        # predictions, unless more than half of one lies in void and in the LAST crowd of its class
        # (as in panopticapi, even if another crowd of the class lies there).
        for t in range(1, t_count + 1):
            c: Any = t_class[t0 + t - 1]
            if t_crowd[t0 + t - 1]:
                last_crowd[c] = t
            elif not matched[t]:
                size = _size_of(t_areas[t])
                sums[c, size, COUNT_FN] += 1
                totals[i, FN] += 1
                _set(events[event], c, size, FN, -1, t - 1)
                event_iou[event] = 0.0
                event += 1
                if weighted:
                    _add(replicates[2, c], weights, 1.0)
        for p in range(1, p_count + 1):
            if true_of[p] >= 0:
                continue
            c: Any = p_class[p0 + p - 1]
            forgiven = table[p, 0] + (table[p, last_crowd[c]] if last_crowd[c] else 0)
            if 2 * forgiven > p_areas[p]:
                continue
            size = _size_of(p_areas[p])
            sums[c, size, COUNT_FP] += 1
            totals[i, FP] += 1
            _set(events[event], c, size, FP, p - 1, -1)
            event_iou[event] = 0.0
            event += 1
            if weighted:
                _add(replicates[2, c], weights, 1.0)
        for t in range(t_count):
            last_crowd[t_class[t0 + t]] = 0
    event_first[prediction_rows.size] = event
    mix_first[prediction_rows.size] = mix
