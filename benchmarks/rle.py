"""Encoding panoptic maps as COCO RLE, against pycocotools' fastest form.

    python benchmarks/rle.py

The claims: byte-identical, at least 10 times faster at 640 x 480 and 8 times at 2048 x 1365. CPU
time of one thread, best of several rounds. pycocotools is given every advantage: masks are compared
in Fortran order already, which is the order it reads, and the faster of its two forms counts (one
mask a call, or all in one stack). The floor is one comparison of the map with itself shifted: no
encoder can look at fewer pixels.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.made_maps import SIZES, made_pair
from benchmarks.measure import cpu_ms, print_result
from pipeline.panoptic import rle

SEEDS = range(4)
TARGET = {"640x480": 10.0, "2048x1365": 8.0}


def one_by_one(segment_map: NDArray[np.uint8], ids: list[int]) -> list[dict[str, Any]]:
    """segment_map in Fortran order."""
    return [coco.encode((segment_map == i).view(np.uint8)) for i in ids]  # type: ignore[misc]


def stacked(segment_map: NDArray[np.uint8], ids: list[int]) -> list[dict[str, Any]]:
    """segment_map in Fortran order; the planes are laid out as pycocotools reads them."""
    planes = segment_map.T[None] == np.array(ids, np.uint8)[:, None, None]  # (n, W, H)
    return coco.encode(planes.view(np.uint8).transpose(2, 1, 0))  # type: ignore[return-value]


def with_area_and_box(encoded: list[dict[str, Any]]) -> None:
    coco.area(encoded)  # type: ignore[arg-type]
    coco.toBbox(encoded)  # type: ignore[arg-type]


def measure(size: str) -> dict[str, float]:
    rows = []
    for seed in SEEDS:
        made, _ = made_pair(seed, size)
        transposed = np.asfortranarray(made)
        wide = made.astype(np.int32)
        ids = [int(i) for i in np.unique(made) if i]
        expected = one_by_one(transposed, ids)
        strings = [e["counts"].decode() for e in expected]
        assert strings == [e["counts"].decode() for e in stacked(transposed, ids)]
        for given in (made, transposed, wide):
            encoded = rle.encode(given, ids)
            assert encoded.counts == strings
            assert (encoded.area == coco.area(expected)).all()  # type: ignore[arg-type]
            assert (encoded.bbox == coco.toBbox(expected)).all()  # type: ignore[arg-type]
        starts, values = rle.runs(transposed)
        flat = transposed.T.reshape(-1)
        height, width = made.shape
        calls = {
            "pycocotools_one_by_one": partial(one_by_one, transposed, ids),
            "pycocotools_stacked": partial(stacked, transposed, ids),
            "pycocotools_area_bbox": partial(with_area_and_box, expected),
            "row_major_uint8": partial(rle.encode, made, ids),
            "row_major_int32": partial(rle.encode, wide, ids),
            "transposed_uint8": partial(rle.encode, transposed, ids),
            "from_runs": partial(rle.encode_runs, starts, values, height, width, ids),
            "decode": partial(rle.decode, strings, height, width, ids),
            "floor_one_comparison": partial(np.not_equal, flat[1:], flat[:-1]),
        }
        counts = {"segments": float(len(ids)), "runs": float(len(starts))}
        rows.append({**counts, **{name: cpu_ms(call) for name, call in calls.items()}})
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def main() -> None:
    result: dict[str, Any] = {}
    for size in SIZES:
        found = measure(size)
        best = min(found["pycocotools_one_by_one"], found["pycocotools_stacked"])
        best += found["pycocotools_area_bbox"]
        forms = ("row_major_uint8", "row_major_int32", "transposed_uint8", "from_runs")
        print(f"{size}: {found['segments']:.1f} segments, {found['runs']:.0f} runs; CPU ms a map")
        for name, value in found.items():
            if name not in ("segments", "runs"):
                ratio = f"{best / value:8.1f} x" if name in forms else ""
                print(f"  {name:26s} {value:9.3f} {ratio}")
        ratios = {form: round(best / found[form], 2) for form in forms}
        print(f"  target {TARGET[size]:.0f} x; pycocotools with area and box: {best:.3f}\n")
        result[size] = {
            **{name: round(value, 4) for name, value in found.items()},
            "pycocotools_best": round(best, 4),
            "times_faster": ratios,
            "target": TARGET[size],
        }
    print_result("rle", **result)


if __name__ == "__main__":
    main()
