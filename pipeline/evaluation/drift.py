"""Drift of a run without ground truth: shares of images that fail, are empty, or show a class.

Shares are of images, not of pixels: images are what is sampled, so small samples have valid
intervals, and a few large photos can't move a share. Shares of pixels are reported, too. The
release gate acts only on a change outside its interval (ALPHA), so that one broken image among
three new ones raises no alarm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import binom

from detr.categories import Categories
from pipeline.amounts import counted
from pipeline.panoptic.pq import class_positions
from pipeline.schema import list_values

COLUMNS: Final = ("status", "error_code", "height", "width", "category_id", "area")
ALPHA: Final = 0.01  # error rate of each test: one false alarm in a hundred nights


@dataclass
class Shares:
    """Counts over a set of images."""

    images: int
    empty: int  # ok, without a segment
    errors: Counter[str]
    with_class: NDArray[np.int64]  # (C,) images that show the class
    pixels: NDArray[np.int64]  # (C,)
    all_pixels: int

    @classmethod
    def zero(cls, classes: int) -> Shares:
        return cls(0, 0, Counter(), np.zeros(classes, np.int64), np.zeros(classes, np.int64), 0)

    @classmethod
    def of(cls, rows: pa.Table, category_ids: Sequence[int]) -> Shares:
        """The counts over shard rows with COLUMNS."""
        ok = rows.filter(pc.field("status") == "ok")
        lists = ok["category_id"].combine_chunks()
        lengths = np.diff(lists.offsets.to_numpy())
        positions = class_positions(list_values(lists).to_numpy(zero_copy_only=False), category_ids)
        area = list_values(ok["area"]).to_numpy(zero_copy_only=False)
        image = np.repeat(np.arange(ok.num_rows), lengths)
        classes = len(category_ids)
        shown = np.unique(image * classes + positions) % classes if positions.size else positions
        sides = (ok[side].to_numpy().astype(np.int64) for side in ("height", "width"))
        return cls(
            images=rows.num_rows,
            empty=int((lengths == 0).sum()),
            errors=Counter(rows["error_code"].drop_null().to_pylist()),
            with_class=np.bincount(shown, minlength=classes),
            pixels=np.bincount(positions, weights=area, minlength=classes).astype(np.int64),
            all_pixels=int(np.prod(list(sides), axis=0).sum()),
        )

    def add(self, other: Shares) -> None:
        self.images += other.images
        self.empty += other.empty
        self.errors.update(other.errors)
        self.with_class += other.with_class
        self.pixels += other.pixels
        self.all_pixels += other.all_pixels

    @property
    def ok(self) -> int:
        return self.images - self.errors.total()


@dataclass(frozen=True)
class ClassDrift:
    """Shares (0 to 1) of the ok images that show a class, with an interval of the difference."""

    category_id: int
    name: str
    before: float
    after: float
    interval: tuple[float, float]
    pixels_before: float
    pixels_after: float

    @property
    def shown(self) -> float:
        """The change that is certain: 0 if the interval holds 0, else the end nearer to 0."""
        low, high = self.interval
        return max(low, 0.0) + min(high, 0.0)


@dataclass(frozen=True)
class ShareLimits:
    """The limits of the release gate, as shares of images (0 to 1)."""

    error_rate: float
    empty_rise: float
    class_drift: float


@dataclass(frozen=True)
class Drift:
    """Shares of two sets of images, as (before, after)."""

    images: tuple[int, int]
    error_rate: tuple[float, float]
    empty_rate: tuple[float, float]
    classes: tuple[ClassDrift, ...] = field(default=())  # largest change first


def drift(before: Shares, after: Shares, categories: Categories) -> Drift:
    """Compare two sets of images, over the classes that occur in either.

    The intervals of the classes hold together at level 1 - ALPHA (Bonferroni).
    """
    live = np.flatnonzero(before.with_class + after.with_class).tolist()
    classes = [
        ClassDrift(
            category_id=categories[c].id,
            name=categories[c].name,
            before=_part(before.with_class[c], before.ok),
            after=_part(after.with_class[c], after.ok),
            interval=difference_interval(
                (int(before.with_class[c]), before.ok),
                (int(after.with_class[c]), after.ok),
                ALPHA / len(live),
            ),
            pixels_before=_part(before.pixels[c], before.all_pixels),
            pixels_after=_part(after.pixels[c], after.all_pixels),
        )
        for c in live
    ]
    classes.sort(key=lambda entry: -abs(entry.after - entry.before))
    return Drift(
        images=(before.images, after.images),
        error_rate=tuple(_part(side.errors.total(), side.images) for side in (before, after)),  # type: ignore[arg-type]
        empty_rate=tuple(_part(side.empty, side.ok) for side in (before, after)),  # type: ignore[arg-type]
        classes=tuple(classes),
    )


def alarms(before: Shares, after: Shares, categories: Categories, limits: ShareLimits) -> list[str]:
    """The reasons, a sentence each, why the release gate must stop the images `after`."""
    reasons = []
    failed = after.errors.total()
    if failed and binom.sf(failed - 1, after.images, limits.error_rate) < ALPHA:
        codes = ", ".join(f"{code} {count}" for code, count in after.errors.most_common())
        reasons.append(
            f"{failed:,} of {counted(after.images, 'image')} failed ({codes}), "
            f"{100 * limits.error_rate:g} % are allowed"
        )
    low, _ = difference_interval((before.empty, before.ok), (after.empty, after.ok), ALPHA)
    if low > limits.empty_rise:
        reasons.append(
            f"{after.empty:,} of {after.ok:,} images show no segment, before "
            f"{100 * _part(before.empty, before.ok):.1f} %: a rise of "
            f"{100 * limits.empty_rise:g} points is allowed"
        )
    for entry in drift(before, after, categories).classes:
        if abs(entry.shown) > limits.class_drift:
            reasons.append(
                f"class {entry.category_id} {entry.name} is in {100 * entry.after:.1f} % of the "
                f"images, before {100 * entry.before:.1f} %: a change of "
                f"{100 * limits.class_drift:g} points is allowed"
            )
    return reasons


def difference_interval(
    before: tuple[int, int], after: tuple[int, int], alpha: float
) -> tuple[float, float]:
    """Interval of p_after - p_before at level 1 - alpha (Newcombe 1998, method 10).

    before, after: (hits, images).
    """
    (low_b, p_b, high_b), (low_a, p_a, high_a) = (wilson(*side, alpha) for side in (before, after))
    change = p_a - p_b
    down = float(np.hypot(p_a - low_a, high_b - p_b))
    up = float(np.hypot(high_a - p_a, p_b - low_b))
    return change - down, change + up


def wilson(hits: int, images: int, alpha: float) -> tuple[float, float, float]:
    """Wilson's score interval of hits / images at level 1 - alpha: (low, estimate, high).

    Without images: (0, 0.5, 1).
    """
    if not images:
        return 0.0, 0.5, 1.0
    z = NormalDist().inv_cdf(1 - alpha / 2)
    p = hits / images
    scale = 1 + z * z / images
    centre = (p + z * z / (2 * images)) / scale
    half = z * float(np.sqrt(p * (1 - p) / images + z * z / (4 * images**2))) / scale
    return max(centre - half, 0.0), p, min(centre + half, 1.0)


def _part(count: Any, whole: int) -> float:
    return float(count) / whole if whole else 0.0
