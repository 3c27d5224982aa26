"""Panoptic maps to COCO RLE strings and back, all segments in one pass.

A panoptic map is a partition, so its column-major runs hold all segments. `encode` finds the runs
by one vectorised comparison and appends each run to the string of its segment, for which it keeps
the end of the last run and the two counts of COCO's delta coding. The strings are byte for byte
those of pycocotools, which makes one pass over a binary mask per segment. A row-major map is
compared row by row, and only the changes are sorted by column: a transposed copy would cost more.

`decode` is strict: it refuses a string that pycocotools would decode into a shorter, longer or
overlapping mask, because a wrong mask gives a wrong PQ without an error.

The loops are in kernels.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.panoptic import kernels

MAX_PIXELS = 2**31 - 1


class RleError(ValueError):
    """An RLE string that can't be decoded into a map.

    It is malformed, of another size, empty, or overlaps another segment. The message names the
    segment and the fault. segment_id: the segment.
    """

    def __init__(self, message: str, segment_id: int) -> None:
        super().__init__(message)
        self.segment_id = segment_id


@dataclass(frozen=True)
class Encoded:
    """The n encoded segments, in the order of `ids`.

    counts: COCO compressed RLE, column-major; area: (n,) int64 pixels; bbox: (n, 4) int32
    x, y, width, height in pixels, tight.
    """

    counts: list[str]
    area: NDArray[np.int64]
    bbox: NDArray[np.int32]


def encode(segment_map: NDArray[Any], ids: Sequence[int] | NDArray[Any]) -> Encoded:
    """Encode the segments `ids` of a panoptic map, byte for byte as pycocotools.

    segment_map: (H, W) of any integer dtype, row-major or transposed (Fortran order, fastest in
        uint8). Pixels of other ids are left out, as void.
    ids: distinct; each must have a pixel.

    Raises ValueError for an id without pixels, repeated ids, or a map that is not 2-D integers.
    """
    starts, values = runs(segment_map)
    height, width = segment_map.shape
    return encode_runs(starts, values, height, width, ids)


def runs(segment_map: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """The column-major runs of a map: (n,) int32 starts, ascending from 0, and (n,) segment ids.

    Raises ValueError for a map that is not 2-D integers.
    """
    if segment_map.ndim != 2 or segment_map.dtype.kind not in "iub" or not segment_map.size:
        raise ValueError(
            f"segment_map must be (H, W) integers, got {segment_map.shape} {segment_map.dtype}"
        )
    if segment_map.dtype.kind == "b":
        segment_map = segment_map.view(np.uint8)
    if segment_map.flags.f_contiguous:
        flat = segment_map.T.reshape(-1)
        starts = _changes(flat, 1)
        return starts, flat[starts]
    rows = np.ascontiguousarray(segment_map)
    return kernels.runs_of_rows(rows, _changes(rows.reshape(-1), rows.shape[1]))


def encode_runs(
    starts: NDArray[np.int32],
    values: NDArray[Any],
    height: int,
    width: int,
    ids: Sequence[int] | NDArray[Any],
) -> Encoded:
    """`encode` from the `runs` of a map: run k covers pixels starts[k]:starts[k + 1], column-major.

    starts: (n,) int32, ascending from 0; values: (n,) the segment id of each run. Raises ValueError
    as `encode`, and for more than `MAX_PIXELS`.
    """
    if height * width > MAX_PIXELS:
        raise ValueError(f"{height} x {width} is beyond {MAX_PIXELS} pixels")
    keys = np.asarray(ids, dtype=np.int64).reshape(-1)
    text, begin, end, area, bbox = kernels.encode_runs(starts, values, height, width, keys)
    if text.size == 0 and keys.size:
        raise ValueError("ids must be distinct")
    missing = np.flatnonzero(area == 0)
    if missing.size:
        raise ValueError(f"segment {keys[missing[0]]} has no pixels in the map")
    string = text.tobytes().decode("latin-1")  # the unused gaps between strings may hold anything
    counts = [string[b:e] for b, e in zip(begin.tolist(), end.tolist(), strict=True)]
    return Encoded(counts=counts, area=area, bbox=bbox)


def decode(
    counts: Sequence[str], height: int, width: int, ids: Sequence[int] | NDArray[Any]
) -> NDArray[np.int32]:
    """The panoptic map of RLE strings: the inverse of `encode`.

    Returns (H, W) int32 in Fortran order, 0 where no segment is. Raises RleError for a string that
    is truncated, is for another size, has a bad character, a negative run or no pixels, or overlaps
    another segment; ValueError for an id below 1.
    """
    keys = np.asarray(ids, dtype=np.int64).reshape(-1)
    if keys.size != len(counts):
        raise ValueError(f"{len(counts)} counts for {keys.size} ids")
    if keys.size and (keys.min() <= 0 or keys.max() > MAX_PIXELS):
        raise ValueError("ids must lie in 1 .. 2^31 - 1: 0 is void")
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"{height} x {width} is not the size of a map")
    text, offsets = pack_strings(counts)
    out = np.zeros(height * width, dtype=np.int32)
    code, index, detail = kernels.paint(text, offsets, keys.astype(np.int32), out)
    if code:
        reason = fault_text(code, detail, height, width, ids=keys)
        raise RleError(f"segment {keys[index]}: {reason}", int(keys[index]))
    return out.reshape(width, height).T


def pack_strings(counts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Strings as one uint8 buffer and (n + 1,) int64 offsets, the input of the kernels."""
    # The kernel refuses a zero byte as a bad character.
    encoded = [c.encode("ascii") if c.isascii() else b"\x00" for c in counts]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(c) for c in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets


def fault_text(code: int, detail: int, height: int, width: int, *, ids: NDArray[Any]) -> str:
    """The words for a kernel's fault code and detail. ids: of the image's segments, in order."""
    if code == kernels.OVERLAP:
        return f"it overlaps segment {ids[detail]}"
    size = f"{height} x {width}"
    covered = f"the RLE covers {detail} of the {height * width} pixels of its {size} image"
    return {
        kernels.TRUNCATED: "the RLE string ends inside a number",
        kernels.BAD_CHARACTER: f"the RLE string has a bad character at byte {detail}",
        kernels.NUMBER_TOO_LONG: f"the RLE string has a number beyond 32 bits at byte {detail}",
        kernels.NEGATIVE: f"run {detail} of the RLE is negative",
        kernels.PAST_END: f"the RLE runs past the end of its {size} image",
        kernels.SHORT: covered,
        kernels.EMPTY: "the RLE has no pixels",
    }[code]


def _changes(flat: NDArray[Any], lag: int) -> NDArray[np.int32]:
    """(n,) int32: the first `lag` positions, and every later i with flat[i] != flat[i - lag]."""
    changed = np.empty(-(-flat.size // 64) * 64, dtype=np.bool_)
    changed[:lag] = True
    np.not_equal(flat[lag:], flat[:-lag], out=changed[lag : flat.size])
    changed[flat.size :] = False
    words = changed.view(np.uint64)
    out = np.empty(lag + flat.size // 32 + 64, dtype=np.int32)
    n = kernels.positions(words, out)
    if n < 0:  # many changes: count them, then try again
        out = np.empty(int(np.count_nonzero(changed)) + 8, dtype=np.int32)
        n = kernels.positions(words, out)
    return out[:n]


def empty_counts(height: int, width: int) -> str:
    """The RLE string of a mask without pixels, as pycocotools writes it."""
    text = np.empty(7, dtype=np.uint8)
    end = kernels.put_number(text, 0, height * width)
    return text[:end].tobytes().decode("ascii")
