"""The compiled loop of PQ: read both sides of an image, intersect, match, add up.

The rules are those of panopticapi, row by row as docs/evaluation.md lists them. Nothing is raised
here: an image gets a code, and one with a fault leaves every sum as it was. All images of a call
are one kernel, because a call from Python costs as much as a tenth of an image.

As in rle_kernels.py: after a change to a file whose kernels are called here, `touch` this one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.panoptic.overlap_kernels import intersect, mark, mark_segments
from pipeline.panoptic.rle_kernels import OVERLAP, read_runs

SIZE, TOO_MANY = 17, 18  # codes of an image, beyond those of the strings and the segments
TP, FP, FN = range(3)
IOU_HIGH, IOU_LOW, COUNT_TP, COUNT_FP, COUNT_FN = range(5)
MAX_SEGMENTS = 2**16 - 3
SMALL, MEDIUM = 32**2, 96**2  # COCO's bounds of a small and a medium area, in pixels
IOU_UNIT = 2.0**53
REPLICATE_UNIT = 2.0**20  # resolution of an IoU in the bootstrap; its sums stay below 2^53


@njit(cache=True, nogil=True)
def _size_of(area: int) -> int:
    return 0 if area < SMALL else 1 if area < MEDIUM else 2


@njit(cache=True, nogil=True)
def bootstrap_weights(seed: int, poisson: NDArray[Any], out: NDArray[Any]) -> None:
    """Poisson(1) weights of one image in every replicate, from its hash alone (splitmix64)."""
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
    p_rows: NDArray[Any],  # (n,) row of each image among the predictions
    t_rows: NDArray[Any],  # (n,) and in the truth
    p_size: NDArray[Any],  # (predictions, 2) height, width; height -1: failed, no segments
    p_first: NDArray[Any],  # (predictions + 1,) first segment
    p_class: NDArray[Any],  # (segments,) dense class, -1 unknown
    p_text: NDArray[Any],
    p_text_first: NDArray[Any],  # (segments + 1,)
    t_size: NDArray[Any],
    t_first: NDArray[Any],
    t_class: NDArray[Any],
    t_text: NDArray[Any],
    t_text_first: NDArray[Any],
    t_crowd: NDArray[Any],  # (segments,) bool
    u_text: NDArray[Any],  # pixels whose id the truth's JSON doesn't list: no segment, not void
    u_text_first: NDArray[Any],  # (truth + 1,)
    seeds: NDArray[Any],  # (n,) uint64 hash of each image
    labels: NDArray[Any],  # (2, most pixels + 1) of a dtype that holds every segment's label
    poisson: NDArray[Any],  # (65536,) weight by 16 random bits
    sums: NDArray[Any],  # (classes, 3 sizes, 5) int64, added to
    replicates: NDArray[Any],  # (3: IoU, TP, FP + FN; classes, replicates) float64, added to
    faults: NDArray[Any],  # (n, 5) int64 out: code, 0 prediction 1 truth, segment, detail, 0
    totals: NDArray[Any],  # (n, 3) int64 out: TP, FP, FN
    ious: NDArray[Any],  # (n,) out: sum of IoU
    event_first: NDArray[Any],  # (n + 1,) out
    events: NDArray[Any],  # (segments of both, 5) out: class, size, outcome, predicted, true index
    event_iou: NDArray[Any],  # (segments of both,) out
    mix_first: NDArray[Any],  # (n + 1,) out
    mixes: NDArray[Any],  # (segments, 2) out: true class, predicted class of pairs mistaken
    mix_iou: NDArray[Any],  # (segments,) out
) -> None:
    """Score n images; outputs as declared. An image with a fault leaves every sum as it was."""
    longest = 1
    for i in range(t_rows.size):
        t = t_rows[i]
        for s in range(t_first[t], t_first[t + 1]):
            longest = max(longest, t_text_first[s + 1] - t_text_first[s])
        longest = max(longest, u_text_first[t + 1] - u_text_first[t])
        p = p_rows[i]
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
    for i in range(p_rows.size):
        event_first[i] = event
        mix_first[i] = mix
        p_row: Any = p_rows[i]
        t_row: Any = t_rows[i]
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

        # 2. Intersect. Row 0 is unpredicted, column 0 void, the last column unlisted.
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

        # 3. Match: IoU > 1/2 in integers; the void inside a prediction leaves its union.
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

        # 4. What is left: true segments missed, but for crowds; then predictions, but for those
        # that are mostly void and the LAST crowd of their class (even one without pixels there).
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
    event_first[p_rows.size] = event
    mix_first[p_rows.size] = mix
