"""What a run says of its images when there is no truth: how many fail, are empty, show each class.

Shares are of images, not of pixels: an image is the unit that is sampled, so a share of them has an
exact small-sample interval and a few large photos can't move it. Pixels are told besides. The gate
of a night acts only on what is *shown* (a probability, an interval), so that three new images, one
of them broken, wake nobody. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
ALPHA: Final = 0.01  # a night in a hundred may be stopped for nothing


@dataclass
class Shares:
    """Counts over some images; adding them in any order gives the same."""

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
        """Of shard rows, of which COLUMNS are read."""
        ok = rows.filter(pc.field("status") == "ok")
        lists = ok["category_id"].combine_chunks()
        lengths = np.diff(lists.offsets.to_numpy())
        own = class_positions(list_values(lists).to_numpy(zero_copy_only=False), category_ids)
        area = list_values(ok["area"]).to_numpy(zero_copy_only=False)
        image = np.repeat(np.arange(ok.num_rows), lengths)
        classes = len(category_ids)
        shown = np.unique(image * classes + own) % classes if own.size else own
        sides = (ok[side].to_numpy().astype(np.int64) for side in ("height", "width"))
        return cls(
            images=rows.num_rows,
            empty=int((lengths == 0).sum()),
            errors=Counter(rows["error_code"].drop_null().to_pylist()),
            with_class=np.bincount(shown, minlength=classes),
            pixels=np.bincount(own, weights=area, minlength=classes).astype(np.int64),
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
    """The part of the images that show a class, before and after, and the change's interval."""

    category_id: int
    name: str
    before: float
    after: float
    interval: tuple[float, float]
    pixels_before: float
    pixels_after: float

    @property
    def shown(self) -> float:
        """The change that is shown: 0 if the interval holds 0, else its end nearer to 0."""
        low, high = self.interval
        return max(low, 0.0) + min(high, 0.0)


@dataclass(frozen=True)
class ShareLimits:
    """What a night may bring without being stopped; parts of the images, 0 to 1."""

    error_rate: float
    empty_rise: float
    class_drift: float


@dataclass(frozen=True)
class Drift:
    """Two sets of images, side by side."""

    images: tuple[int, int]
    error_rate: tuple[float, float]
    empty_rate: tuple[float, float]
    classes: tuple[ClassDrift, ...] = field(default=())  # largest change first

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def drift(before: Shares, after: Shares, categories: Categories) -> Drift:
    """Classes that occur in either, with intervals that hold together (corrected for number)."""
    live = np.flatnonzero(before.with_class + after.with_class).tolist()
    found = [
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
    found.sort(key=lambda own: -abs(own.after - own.before))
    return Drift(
        images=(before.images, after.images),
        error_rate=tuple(_part(own.errors.total(), own.images) for own in (before, after)),  # type: ignore[arg-type]
        empty_rate=tuple(_part(own.empty, own.ok) for own in (before, after)),  # type: ignore[arg-type]
        classes=tuple(found),
    )


def alarms(before: Shares, after: Shares, categories: Categories, limits: ShareLimits) -> list[str]:
    """Why the images of a night must not be published unseen: a sentence each."""
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
    for own in drift(before, after, categories).classes:
        if abs(own.shown) > limits.class_drift:
            reasons.append(
                f"class {own.category_id} {own.name} is in {100 * own.after:.1f} % of the images, "
                f"before {100 * own.before:.1f} %: a change of {100 * limits.class_drift:g} points "
                "is allowed"
            )
    return reasons


def difference_interval(
    before: tuple[int, int], after: tuple[int, int], alpha: float
) -> tuple[float, float]:
    """Interval of p_after - p_before from (hits, images) each: Newcombe 1998, method 10."""
    (low_b, p_b, high_b), (low_a, p_a, high_a) = (wilson(*own, alpha) for own in (before, after))
    change = p_a - p_b
    down = float(np.hypot(p_a - low_a, high_b - p_b))
    up = float(np.hypot(high_a - p_a, p_b - low_b))
    return change - down, change + up


def wilson(hits: int, images: int, alpha: float) -> tuple[float, float, float]:
    """Wilson's score interval of a proportion: low, estimate, high. Without images 0, 0.5, 1."""
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
