"""PQ by its definition, on pixels, one image at a time: the oracle of the tests.

Written from the rules alone (docs/evaluation.md), in the plainest Python and numpy there is, with
nothing shared with the product. Slow.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray


@dataclass
class ClassSums:
    ious: list[float] = field(default_factory=list)
    tp: int = 0
    fp: int = 0
    fn: int = 0


def plain_pq(
    images: list[tuple[NDArray[Any], list[dict[str, Any]], NDArray[Any], list[dict[str, Any]]]],
) -> dict[int, ClassSums]:
    """images: (predicted map, predicted segments, true map, true segments); 0 is void in a map.

    A segment is {"id", "category_id", "iscrowd"}. Returns the sums of each category id.
    """
    sums: dict[int, ClassSums] = defaultdict(ClassSums)
    for predicted_map, predicted, true_map, true in images:
        assert predicted_map.shape == true_map.shape
        void = true_map == 0
        matched_true = set()
        for p in predicted:
            p_mask = predicted_map == p["id"]
            found = False
            for t in true:
                t_mask = true_map == t["id"]
                if t.get("iscrowd") or t["category_id"] != p["category_id"]:
                    continue
                inter = int((p_mask & t_mask).sum())
                union = int(p_mask.sum()) + int(t_mask.sum()) - inter - int((p_mask & void).sum())
                if inter and 2 * inter > union:
                    sums[p["category_id"]].tp += 1
                    sums[p["category_id"]].ious.append(inter / union)
                    matched_true.add(t["id"])
                    found = True
            if found:
                continue
            forgiven = int((p_mask & void).sum())
            crowds = [t for t in true if t.get("iscrowd") and t["category_id"] == p["category_id"]]
            if crowds:
                forgiven += int((p_mask & (true_map == crowds[-1]["id"])).sum())
            if 2 * forgiven > int(p_mask.sum()):
                continue
            sums[p["category_id"]].fp += 1
        for t in true:
            if not t.get("iscrowd") and t["id"] not in matched_true:
                sums[t["category_id"]].fn += 1
    return dict(sums)


def total_iou(sums: ClassSums) -> float:
    return math.fsum(sums.ious)
